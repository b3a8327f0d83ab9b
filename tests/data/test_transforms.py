import cv2
import numpy as np
import pytest

from mindspore_coupalign.data.transforms import ImageTransform, flip_sentence

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 96
# wider, taller, shrinking, growing, and one side each way
SHAPES = [(64, 200), (200, 64), (213, 160), (50, 40), (96, 96), (95, 97)]


def axis_weights(n_out: int, n_in: int) -> np.ndarray:
    """(n_out, n_in) bilinear weights, half-pixel convention, edges repeated: the reference."""
    at = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    low = np.minimum(at.astype(int), max(n_in - 2, 0))
    weights = np.zeros((n_out, n_in))
    weights[np.arange(n_out), low] = 1 - (at - low)
    weights[np.arange(n_out), np.minimum(low + 1, n_in - 1)] += at - low
    return weights


def overlap_weights(n_out: int, n_in: int) -> np.ndarray:
    """(n_out, n_in) area averaging: the share of each output pixel that an input pixel covers."""
    edges_out, edges_in = np.arange(n_out + 1) * n_in / n_out, np.arange(n_in + 1)
    low = np.maximum(edges_out[:-1, None], edges_in[None, :-1])
    high = np.minimum(edges_out[1:, None], edges_in[None, 1:])
    return np.maximum(high - low, 0) * n_out / n_in


@pytest.fixture
def transform():
    return ImageTransform(SIZE, MEAN, STD)


@pytest.mark.parametrize("shape", SHAPES)
def test_image_equals_a_numpy_reference(transform, shape):
    rgb = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    rows, columns = ((overlap_weights if n > SIZE else axis_weights)(SIZE, n) for n in shape)
    expected = np.einsum("ih,hwc,jw->cij", rows, rgb.astype(float), columns, optimize=True) / 255
    expected = (expected - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    out = transform.image(rgb)
    assert out.dtype == np.float32 and out.shape == (3, SIZE, SIZE) and out.flags.c_contiguous
    np.testing.assert_allclose(out, expected, atol=1.6 / 255 / min(STD))  # two roundings to 8 bits


@pytest.mark.parametrize("shape", SHAPES)
def test_inverse_is_bilinear_with_half_pixels(transform, shape):
    logits = np.random.default_rng(2).normal(size=(SIZE, SIZE)).astype(np.float32)
    expected = axis_weights(shape[0], SIZE) @ logits @ axis_weights(shape[1], SIZE).T
    out = transform.inverse(logits, shape)
    assert out.dtype == np.float32 and out.shape == shape
    np.testing.assert_allclose(out, expected, atol=2e-3)  # cv2 rounds its weights


@pytest.mark.parametrize("shape", SHAPES)
def test_a_box_stays_put_through_image_and_inverse(transform, shape):
    h, w = shape
    box = np.zeros((h, w), np.uint8)
    top, bottom, left, right = h // 5, h - h // 3, w // 4, w - w // 5
    box[top:bottom, left:right] = 1
    seen = ImageTransform(SIZE, (0, 0, 0), (1, 1, 1)).image(np.repeat(box[..., None] * 255, 3, axis=2))[0]
    for network in (seen, transform.mask(box).astype(np.float32)):
        back = transform.inverse(network - 0.5, shape) > 0
        x, y, width, height = cv2.boundingRect(back.astype(np.uint8))
        pixel = np.ceil(np.array([h, w]) / SIZE)  # one pixel of the coarser grid
        assert np.abs([y - top, y + height - bottom]).max() <= pixel[0]
        assert np.abs([x - left, x + width - right]).max() <= pixel[1]
        assert abs(back.sum() - box.sum()) / box.sum() < 0.06


def test_geometry_has_no_drift():
    """The centre of mass keeps its relative place to a fraction of a pixel, which INTER_NEAREST would not give."""
    transform = ImageTransform(100, (0, 0, 0), (1, 1, 1))
    mask = np.zeros((250, 170), np.uint8)
    mask[75:175, 51:119] = 1  # centred
    for out in (transform.mask(mask).astype(float), transform.image(np.repeat(mask[..., None] * 255, 3, 2))[0]):
        rows, columns = np.mgrid[:100, :100] + 0.5
        assert abs((out * rows).sum() / out.sum() - 50) < 0.05
        assert abs((out * columns).sum() / out.sum() - 50) < 0.3


def test_mask_takes_the_nearest_pixel(transform):
    mask = np.random.default_rng(3).integers(0, 2, (40, 250)).astype(np.uint8)
    rows, columns = (((np.arange(SIZE) + 0.5) * n / SIZE).astype(int) for n in mask.shape)
    out = transform.mask(mask)
    assert out.dtype == np.uint8 and out.shape == (SIZE, SIZE)
    assert (out != mask[np.ix_(rows, columns)]).mean() < 0.01  # ties
    assert transform.mask(mask.astype(bool)).tolist() == out.tolist()


@pytest.mark.parametrize("text, flipped", [
    ("man on the left", "man on the right"), ("leftmost of the right ones", "rightmost of the left ones"),
    ("right-hand lamp", "left-hand lamp"), ("Left guy, RIGHT row", "Right guy, LEFT row"), ("lefty", "righty"),
    ("left.", "right."), ("top left/bottom right", "top right/bottom left"), ("his left arm", "his right arm"),
    ("far r, 2nd from l", "far l, 2nd from r"), ("lft guy", "rt guy"), ("rgt", "lt"),
    ("leftover pizza", "leftover pizza"), ("bright upright cup", "bright upright cup"), ("", ""),
    ("righteous rightful copyright", "righteous rightful copyright"), ("they're tall", "they're tall"),
    ("l'oreal bottle", "l'oreal bottle"), ("red circle", "red circle"),
])
def test_flip_sentence(text, flipped):
    assert flip_sentence(text) == flipped
    assert flip_sentence(flipped) == text
