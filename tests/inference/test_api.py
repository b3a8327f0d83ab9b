"""``coupalign.load`` and its Model: one sentence, lists, many pairs, what a prediction knows, what is imported.

Most of it on a network without parameters; a real one is in test_predict.py and test_export.py.
"""

import itertools
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from conftest import ROOT, SENTENCES, red_network
from PIL import Image
from pycocotools import mask as coco

import mindspore_coupalign as coupalign
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference import loading, sidecar
from mindspore_coupalign.inference.network import ANY, InputSpec
from mindspore_coupalign.inference.predictions import Prediction


def pictures(number: int) -> list[np.ndarray]:
    random = np.random.default_rng(number)
    return [random.integers(0, 256, (int(random.integers(5, 90)), int(random.integers(5, 90)), 3), np.uint8)
            for _ in range(number)]


def same(found: Prediction, expected: Prediction):
    assert found.sentence == expected.sentence
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_array_equal(found.probability, expected.probability)


def test_one_sentence_gives_one_prediction_and_a_list_gives_a_list(make_model, picture):
    model = make_model()
    found = model.predict(picture.path, SENTENCES[0])
    assert isinstance(found, coupalign.Prediction) and found.source == str(picture.path)
    np.testing.assert_array_equal(found.image, picture.rgb)
    several = model.predict(picture.rgb, list(SENTENCES))
    assert isinstance(several, list) and [p.sentence for p in several] == list(SENTENCES)
    same(found, several[0])
    same(model.predict(Image.open(picture.path), [SENTENCES[0]])[0], found)
    high = model.predict(picture.path, SENTENCES[0], threshold=0.9)
    assert 0 < high.area < found.area
    for arguments, match in (((picture.rgb, []), "empty"), ((picture.rgb, "zebra"), "none of its words"),
                             ((picture.rgb / 255, "red"), "not uint8"), (("none.png", "red"), "no such image")):
        with pytest.raises(UserError, match=match):
            model.predict(*arguments)
    with pytest.raises(UserError, match="threshold must lie between 0 and 1, found 'x'"):
        model.predict(picture.path, "the red circle", threshold="x")
    with pytest.raises(UserError, match="threshold must lie"):
        model.predict(picture.rgb, "red", threshold=1)


def test_a_prediction_knows_its_box_rle_and_score(make_model, picture):
    found = make_model().predict(picture.rgb, SENTENCES[0])
    y, x = np.nonzero(found.mask)
    assert found.box == (x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1)
    assert found.score == pytest.approx(found.probability[found.mask].mean()) and 0.5 < found.score < 1
    assert json.loads(json.dumps(found.rle())) == found.rle() and found.area == found.mask.sum() > 0
    np.testing.assert_array_equal(coco.decode(found.rle()), found.mask)
    assert found.box == tuple(coco.toBbox(found.rle()))
    assert found.overlay().shape[2] == 3 and str(found.box) in repr(found)
    nothing = make_model(threshold=0.9999).predict(np.zeros((4, 5, 3), np.uint8), "red")
    assert nothing.box is None and nothing.area == 0 and nothing.score == 0 and nothing.rle()["size"] == [4, 5]
    with pytest.raises(UserError, match="does not hold its image"):
        Prediction("red", found.mask, found.probability, 0.1, [], False).overlay()


def test_saving_overwrites_nothing(make_model, picture, tmp_path):
    model = make_model()
    folder = tmp_path / "new" / "folder"
    found = model.predict(picture.path, SENTENCES[0])
    saved = [found.save(folder) for _ in range(3)] + [model.predict(picture.rgb, "?! red").save(folder)]
    names = [path.name for pair in saved for path in pair]
    assert len(set(names)) == 8 and {path.name for path in folder.iterdir()} == set(names)
    assert names[:3] == ["shapes_the-red-circle_mask.png", "shapes_the-red-circle_overlay.png",
                         "shapes_the-red-circle-2_mask.png"] and names[6] == "image_red_mask.png"
    for mask, overlay in saved[:3]:
        np.testing.assert_array_equal(cv2.imread(str(mask), cv2.IMREAD_UNCHANGED), found.mask * np.uint8(255))
        np.testing.assert_array_equal(cv2.imread(str(overlay))[..., ::-1], found.overlay())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: not a folder"):
        found.save(tmp_path / "file")


@pytest.mark.parametrize("spec", [InputSpec(), InputSpec(ANY), InputSpec(1), InputSpec(3)])
@pytest.mark.parametrize("number, batch_size", [(0, 4), (1, 4), (3, 4), (4, 4), (9, 4), (5, 1), (2, 64)])
def test_many_pairs_give_what_each_alone_gives(make_model, spec, number, batch_size):
    sizes = []

    def network(image, ids, word_mask):
        sizes.append(len(image))
        assert image.dtype == np.float32 and ids.dtype == word_mask.dtype == np.int32
        return red_network(image, ids, word_mask)

    pairs = list(zip(pictures(number), itertools.cycle(SENTENCES)))
    alone = make_model()
    for (image, sentence), found in zip(pairs, make_model(network, spec).predict_many(pairs, batch_size), strict=True):
        same(found, alone.predict(image, sentence))
    if spec.batch:
        assert set(sizes) <= {spec.batch}
    elif spec.batch is None:  # few sizes to compile
        assert len(set(sizes)) <= 1 and all(size <= batch_size for size in sizes)


@pytest.mark.parametrize("spec", [InputSpec(), InputSpec(ANY), InputSpec(3)])
def test_a_list_of_any_length_gives_what_each_alone_gives(make_model, picture, spec):
    sentences = [f"{'red ' * k}circle" for k in range(19)]
    alone = make_model()
    for number in (1, 2, 3, 8, 19):
        model = make_model(spec=spec)
        for found, sentence in zip(model.predict(picture.rgb, sentences[:number]), sentences, strict=False):
            same(found, alone.predict(picture.rgb, sentence))


def test_large_inputs_go_one_by_one_on_a_cpu(make_model, picture):
    """A batch of eight takes 26 GiB with the full recipe."""
    from mindspore_coupalign.data.transforms import ImageTransform
    from mindspore_coupalign.inference.model import Model

    sizes = []

    def network(image, ids, word_mask):
        sizes.append(len(image))
        return red_network(image, ids, word_mask)

    for side, expected in ((64, 8), (128, 8), (224, 2), (256, 2), (480, 1)):
        model = Model(network, make_model()._tokenizer, ImageTransform(side, [0.5] * 3, [0.25] * 3), 0.5)
        assert model.batch_size == expected
        sizes.clear()
        model.predict(picture.rgb, ["red"] * 9)
        list(model.predict_many([(picture.rgb, "red")] * 9))
        assert max(sizes) == expected


def test_a_graph_of_pixels_is_given_pixels(make_model, picture):
    def network(image, ids, word_mask):
        assert image.dtype == np.uint8 and image.shape[1:] == (64, 64, 3)
        return red_network((image.transpose(0, 3, 1, 2) / np.float32(255) - np.float32(0.5)) * 4, ids, word_mask)

    found = make_model(network, InputSpec(ANY, uint8=True)).predict(picture.rgb, SENTENCES[0])
    expected = make_model().predict(picture.rgb, SENTENCES[0])
    np.testing.assert_allclose(found.probability, expected.probability, atol=1e-5)


def test_reading_ahead_is_bounded_and_ends_with_the_iterator(make_model):
    taken = []

    def endless():
        for k in itertools.count():
            taken.append(k)
            yield np.full((6, 6, 3), k % 256, np.uint8), "red"

    before = threading.active_count()
    found = make_model().predict_many(endless(), 4)
    for _ in range(3):
        next(found)
    assert len(taken) <= 4 + 2 * 4 + 2
    found.close()
    assert threading.active_count() == before


def test_a_buffer_that_is_drawn_into_again(make_model):
    """As a video is read: the same array for every frame."""
    frames, buffer = pictures(1)[0], np.zeros((8, 9, 3), np.uint8)
    shades = [(200, 10, 10), (10, 10, 200), (200, 10, 10)]

    def video():
        for shade in shades:
            buffer[:] = shade
            yield buffer, "red"

    found = list(make_model().predict_many(video(), 3))
    assert [bool(p.mask.all()) for p in found] == [True, False, True] and len(frames)
    np.testing.assert_array_equal(found[1].image[0, 0], shades[1])


def test_errors_come_at_their_turn(make_model, picture, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"x")
    pairs = [(picture.path, "red"), (tmp_path / "bad.png", "red"), (picture.path, "zebra"), (picture.path, "red")]
    found = list(make_model().predict_many(pairs, 2, errors="return"))
    assert [type(f) for f in found] == [Prediction, UserError, UserError, Prediction]
    assert "bad.png" in str(found[1]) and "zebra" in str(found[2])
    one_by_one = make_model().predict_many(pairs, 4)
    assert next(one_by_one).sentence == "red"
    with pytest.raises(UserError, match="bad.png"):
        next(one_by_one)
    for wrong, match in (([("a.png", ["red"])], "a pair per sentence"), ([3], r"give \(image, sentence\) pairs")):
        with pytest.raises(UserError, match=match):
            list(make_model().predict_many(wrong))
    for arguments in ({"batch_size": 0}, {"errors": "ignore"}, {"threshold": 2}):
        with pytest.raises(UserError, match=next(iter(arguments))):
            make_model().predict_many(pairs, **arguments)


def test_threads_share_a_model(make_model, picture):
    inside, answers = [], {}

    def network(image, ids, word_mask):
        inside.append(1)
        assert len(inside) == 1, "two at a time"
        result = red_network(image, ids, word_mask)
        inside.pop()
        return result

    model = make_model(network)
    images = pictures(8)
    threads = [threading.Thread(target=lambda k=k: answers.update({k: model.predict(images[k], "red")}))
               for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(8):
        same(answers[k], make_model().predict(images[k], "red"))


def test_what_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "SHIPPED", tmp_path)
    (tmp_path / "refshapes.safetensors").write_bytes(b"x")
    for source, options, match in (
            ("refshape", {}, "no such file, and no model .*shipped: refshapes"),
            ("refshapes", {}, "refshapes.safetensors: not a checkpoint"),
            ("none.safetensors", {}, "no such checkpoint"), ("none.mindir", {}, "no such file"),
            ("a.mindir", {"amp": "O1"}, "amp needs a checkpoint"), ("a.onnx", {"details": True}, "details needs"),
            ("a.mindir", {"device": "TPU"}, "device=TPU: no such device; choose one of auto, CPU, GPU, Ascend")):
        with pytest.raises(UserError, match=match):
            coupalign.load(source if source.startswith("ref") else tmp_path / source, **options)
    for source in (None, 3, ""):
        with pytest.raises(UserError, match=f"found {source!r}"):
            coupalign.load(source)


def facts(make_model, **changed) -> dict:
    from tiny_network import tiny_config

    return sidecar.describe("onnx", tiny_config(), make_model()._tokenizer) | changed


def test_an_onnx_file_needs_no_mindspore_device(make_model, picture, monkeypatch, tmp_path):
    """Its loader gives a function of arrays and the sidecar's facts."""
    monkeypatch.setattr(loading, "open_graph", lambda *_: (red_network, facts(make_model)))
    model = coupalign.load(tmp_path / "a.onnx")
    same(model.predict(picture.rgb, "red"), make_model().predict(picture.rgb, "red"))
    changed = loading.open_model(tmp_path / "a.onnx", "onnx", overrides=["eval.threshold=0.9"])
    assert changed.threshold == 0.9
    with pytest.raises(UserError, match="data.image_size=32: an exported graph .* only eval.threshold"):
        loading.open_model(tmp_path / "a.onnx", "onnx", overrides=["data.image_size=32"])


def test_importing_is_cheap_and_a_graph_needs_no_mindspore(picture):
    code = """
import sys
import mindspore_coupalign as coupalign
coupalign.load, coupalign.Model, coupalign.Prediction, coupalign.Predictor, coupalign.UserError
assert "mindspore" not in sys.modules
for name in ("transformers", "matplotlib", "pycocotools", "torch", "mindspore"):
    sys.modules[name] = None
from mindspore_coupalign.inference.model import Model
from mindspore_coupalign.inference import sidecar, loading
from mindspore_coupalign.__main__ import main
try:
    main(["predict", "--help"])
except SystemExit as exc:
    assert not exc.code
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_models_are_loaded_and_used_in_several_threads(tiny_checkpoint, picture):
    """MindSpore compiles for one thread at a time."""
    def work(_):
        return coupalign.load(tiny_checkpoint).predict(picture.path, SENTENCES[0]).mask

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, range(2))
    assert first.any() and np.array_equal(first, second)
