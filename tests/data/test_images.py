"""Image files: cut, turned, of another size, somewhere else, or no images at all."""

import re
import zlib

import cv2
import numpy as np
import pytest
from refer_files import HEIGHT, WIDTH, cut_at, refcoco_mini, refs_and_instances, with_exif, write_refer

from mindspore_coupalign.data.images import MissingImage, read_annotated, read_rgb
from mindspore_coupalign.data.refer import read_refer
from mindspore_coupalign.data.warnings import exif_warning
from mindspore_coupalign.errors import UserError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return read_refer(write_refer(tmp_path_factory.mktemp("refer")), "tiny", "unc")


def test_images_are_rgb_of_the_file_in_instances_json(tiny):
    assert tiny.image_path(0).name == "im0.jpg" and tiny.image_path(5).name == "im3.png"
    image = tiny.read_image(5)
    assert image.dtype == np.uint8 and image[15, 20].tolist() == [250, 0, 0] and image[35, 50].tolist() == [120] * 3


@pytest.mark.parametrize("name, keep", [("im0.jpg", 0.6), ("im0.jpg", 0.99), ("im0.jpg", 0.02), ("im3.png", 0.9)])
def test_truncated_images_are_refused(tiny, tmp_path, name, keep):
    data = (tiny.image_dir / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UserError, match=f"{name}: .*truncated"):
        read_rgb(tmp_path / name)
    (tmp_path / name).write_bytes(data + b"\x00\x00trailing")  # harmless
    assert read_rgb(tmp_path / name).shape == (HEIGHT, WIDTH, 3)


def test_an_embedded_thumbnail_does_not_hide_a_truncation(tiny, tmp_path):
    data = (tiny.image_dir / "im0.jpg").read_bytes()
    segment = b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data  # APP1 holding a whole JPEG
    whole = data[:2] + segment + data[2:]
    (tmp_path / "a.jpg").write_bytes(whole)
    assert read_rgb(tmp_path / "a.jpg").shape == (HEIGHT, WIDTH, 3)
    (tmp_path / "a.jpg").write_bytes(whole[:-20])
    with pytest.raises(UserError, match="truncated"):
        read_rgb(tmp_path / "a.jpg")


@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_followed_only_on_request(tiny, tmp_path, orientation):
    """Our reading of it agrees with the decoder's, also in PNG files."""
    pictures = {}
    for name in ("im0.jpg", "im3.png"):
        data = (tiny.image_dir / name).read_bytes()
        if name == "im0.jpg":
            data = with_exif(data, orientation)
        else:
            chunk = b"eXIfII*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + orientation.to_bytes(2, "little") + bytes(6)
            data = data[:33] + (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + \
                data[33:]
        (tmp_path / name).write_bytes(data)
        pictures[name] = (read_rgb(tmp_path / name), read_rgb(tmp_path / name, upright=True))
    for name, (stored, upright) in pictures.items():
        assert stored.shape == (HEIGHT, WIDTH, 3)
        rgb, found = read_annotated(tmp_path / name, (HEIGHT, WIDTH))
        assert (rgb == stored).all() and found == (orientation if 1 <= orientation <= 8 else 1)
        assert (upright.shape != stored.shape) == (5 <= found <= 8)
        assert (upright.shape != stored.shape or (upright != stored).any()) == (found != 1)


def test_pictures_that_exif_would_turn_are_remembered(tmp_path):
    root = write_refer(tmp_path)
    data = read_refer(root, "tiny", "unc")
    path = data.image_path(2)
    path.write_bytes(with_exif(path.read_bytes(), 3))  # upside down: no size shows it
    for r in range(6):
        data.read_image(r)
    assert data.turned == {1} and re.match(f"warning: 1 images read so far .*{path.name}", exif_warning(data))
    stored = cv2.rotate(cv2.imread(str(path), cv2.IMREAD_IGNORE_ORIENTATION | 1), cv2.ROTATE_90_CLOCKWISE)
    sideways = cv2.imencode(".jpg", stored)[1].tobytes()
    for content, words in ((with_exif(sideways, 6), "stored on its side .EXIF orientation 6. .*-auto-orient"),
                           (sideways, "use the images that were annotated"),
                           (with_exif(sideways, 3), "use the images that were annotated")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path.name}: 40 x 60 pixels, not 60 x 40 as instances.json .*{words}"):
            data.read_image(2)


SHARES = (0.01, 0.3, 0.7, 0.9, 0.98)


def test_jpegs_that_are_cut_and_closed_again_are_refused_and_no_whole_one(tmp_path):
    """Random images, flat and rough, of every size, quality, sampling and restart interval."""
    random, path = np.random.default_rng(0), tmp_path / "a.jpg"
    noise = cv2.GaussianBlur(random.integers(0, 256, (200, 200, 3), np.uint8), (5, 5), 1)
    samplings = (0x411111, 0x221111, 0x211111, 0x121111, 0x111111)
    cut = 0
    for i in range(150):
        h, w = random.integers(1, 200, 2)
        picture = noise[:h, :w] if i % 3 else np.full((h, w, 3), random.integers(256), np.uint8)
        picture = picture[..., 0] if i % 5 == 0 else picture
        jpeg = cv2.imencode(".jpg", picture, [
            cv2.IMWRITE_JPEG_QUALITY, int(random.integers(1, 101)), cv2.IMWRITE_JPEG_OPTIMIZE, i % 2,
            cv2.IMWRITE_JPEG_RST_INTERVAL, int(random.integers(9)) * (i % 4 == 0), cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            samplings[i % 5], cv2.IMWRITE_JPEG_PROGRESSIVE, int(i % 7 == 0)])[1].tobytes()
        path.write_bytes(jpeg + b"trailing" * (i % 2))
        expected = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(read_rgb(path), expected[..., ::-1])
        if i % 7:
            pixels = len(jpeg) - jpeg.rindex(b"\xff\xda")
            for share in (share for share in SHARES if (1 - share) * pixels > 100):  # the last few blocks may go unseen
                cut += 1
                path.write_bytes(cut_at(jpeg, share))
                with pytest.raises(UserError, match="a.jpg: the image is truncated"):
                    read_rgb(path)
    assert cut > 300


def test_progressive_jpegs_without_their_last_scans_are_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    jpeg = cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    scans = [at for at in range(len(jpeg) - 1) if jpeg[at:at + 2] == b"\xff\xda"]
    assert len(scans) == 10
    for at in scans[1:]:
        (tmp_path / "a.jpg").write_bytes(jpeg[:at] + b"\xff\xd9")
        with pytest.raises(UserError, match="truncated"):
            read_rgb(tmp_path / "a.jpg")


@pytest.mark.skipif(refcoco_mini() is None, reason="no sample of the real RefCOCO (COUPALIGN_REFCOCO_MINI)")
def test_real_photographs_whole_and_cut(tmp_path):
    photographs = sorted((refcoco_mini() / "images" / "train2014").glob("*.jpg"))
    assert len(photographs) == 12
    for photograph in photographs:
        jpeg = photograph.read_bytes()
        np.testing.assert_array_equal(read_rgb(photograph), cv2.imread(str(photograph))[..., ::-1])
        for share in (*SHARES, 0.999):
            (tmp_path / "a.jpg").write_bytes(cut_at(jpeg, share))
            with pytest.raises(UserError, match="truncated"):
                read_rgb(tmp_path / "a.jpg")


def test_pictures_that_lie_elsewhere_are_looked_for(tmp_path):
    root = write_refer(tmp_path)
    folder = root / "images" / "tiny"

    def fails(*words, images=""):
        with pytest.raises(MissingImage) as caught:
            read_refer(root, "tiny", "unc", images).read_image(0)
        assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), str(caught.value)

    fails("tiny/deep/im0.jpg: no such image file", f"but {folder}/im0.jpg exists; give {folder} as data.images",
          images=str(make(folder / "deep")))
    (folder / "im0.jpg").rename(folder / "deep" / "im0.jpg")
    fails("tiny/im0.jpg: no such image file", f"but {folder}/deep/im0.jpg exists; give {folder}/deep as data.images")
    make(folder / "other")
    (folder / "other" / "im0.jpg").write_bytes((folder / "deep" / "im0.jpg").read_bytes())
    fails("2 other folders hold one", "name one in data.images")
    for name in ("deep", "other"):
        (folder / name / "im0.jpg").unlink()
    fails("check the image folder, or name another in data.images (check-data: --images)")


def make(folder):
    folder.mkdir()
    return folder


def test_backslashes_in_file_names(tmp_path):
    """Written on Windows; on Linux they may also be part of a name."""
    refs, instances = refs_and_instances()
    for image in instances["images"][:3]:
        image["file_name"] = "tiny\\" + image["file_name"]
    root = write_refer(tmp_path, refs, instances)
    (root / "images" / "tiny" / "im2.jpg").rename(root / "images" / "tiny\\im2.jpg")
    data = read_refer(root, "tiny", "unc", str(root / "images"))
    assert data.image_files.tolist() == ["tiny/im0.jpg", "tiny/im1.jpg", "tiny\\im2.jpg", "im3.png"]
    assert all(data.read_image(r).shape == (HEIGHT, WIDTH, 3) for r in range(5))
    with pytest.raises(MissingImage, match="images/tiny/tiny/im0.jpg: no .*give .*/images as data.images"):
        read_refer(root, "tiny", "unc").read_image(0)
    (root / "images" / "other").mkdir()
    (root / "images" / "tiny" / "im0.jpg").rename(root / "images" / "other" / "im0.jpg")
    with pytest.raises(MissingImage, match="other/im0.jpg exists; instances.json puts its images into a folder tiny"):
        read_refer(root, "tiny", "unc", str(root / "images" / "other")).read_image(0)


def test_missing_and_undecodable_images(tmp_path):
    for content in (None, b"", b"not an image"):
        if content is not None:
            (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(UserError, match="a.jpg"):
            read_rgb(tmp_path / "a.jpg")
