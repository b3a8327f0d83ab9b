"""``data.cache``: what it gives is what decoding gives, bounded, safe to kill and to share."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from refer_files import refcoco_mini, with_exif, write_refer
from tiny_network import tiny_config

from mindspore_coupalign.cli import train
from mindspore_coupalign.config import config_from_dict
from mindspore_coupalign.config.paths import without_absolute_paths
from mindspore_coupalign.data.image_cache import ImageCache
from mindspore_coupalign.data.loader import TrainSource, batches
from mindspore_coupalign.data.sets import open_data, open_union, with_cache
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.data.transforms import ImageTransform
from mindspore_coupalign.distributed.process import Runtime
from mindspore_coupalign.errors import UserError

TRANSFORM = ImageTransform(32, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def root(tmp_path):
    return write_refer(tmp_path / "refer")


def names(root, **more):
    return config_from_dict({"data": {"root": str(root), "dataset": "tiny", "split_by": "unc", "image_size": 32,
                                      "cache": str(root / "cache"), **more}}, "test").data


def opened(root, **more):
    config = names(root, **more)
    return with_cache(open_data(config), config)


def entries(root):
    return sorted(path for path in (root / "cache/32").iterdir())


@pytest.fixture
def decoded(monkeypatch):
    """The images that were read from their own files."""
    from mindspore_coupalign.data import refer

    seen, real = [], refer.read_annotated
    monkeypatch.setattr(refer, "read_annotated", lambda path, size: (seen.append(path.name), real(path, size))[1])
    return seen


def test_training_gets_what_decoding_gives(root, decoded):
    plain, cached, tokenizer = open_data(names(root)), opened(root), SentenceTokenizer.from_name("refshapes", 16)
    for _ in range(2):
        first, second = ([item for split in ("train", "val") for batch in batches(
            TrainSource(data, split, tokenizer, TRANSFORM, 0, 2, 0.5, (0, 6), 0, 1), 2, workers=2)
            for item in batch] for data in (plain, cached))
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)
    assert len(entries(root)) == 3
    decoded.clear()
    again = opened(root)  # another run
    for r in range(5):
        np.testing.assert_array_equal(again.resized_image(r, TRANSFORM), TRANSFORM.resize(plain.read_image(r)))
    assert len(decoded) == 5  # plain's


def test_another_picture_another_size_or_a_changed_one_is_decoded(root, decoded):
    data = opened(root)
    before = data.resized_image(0, TRANSFORM)
    path = data.image_path(0)
    content = data.image_path(2).read_bytes()
    path.write_bytes(content)
    assert (opened(root).resized_image(0, TRANSFORM) != before).any()
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    opened(root).resized_image(0, TRANSFORM)
    larger = ImageTransform(64, (0.5,) * 3, (0.25,) * 3)
    assert opened(root, image_size=64).resized_image(0, larger).shape == (64, 64, 3)
    assert len(decoded) == 4 and len(entries(root)) == 3
    path.unlink()
    with pytest.raises(UserError, match="no such image file"):
        opened(root).resized_image(0, TRANSFORM)


def test_a_broken_picture_is_refused_and_not_kept(root):
    data = opened(root)
    data.image_path(0).write_bytes(data.image_path(0).read_bytes()[:300])
    for _ in range(2):
        with pytest.raises(UserError, match="truncated"):
            data.resized_image(0, TRANSFORM)
    assert entries(root) == []


def test_an_exif_orientation_is_remembered(root):
    path = opened(root).image_path(2)
    path.write_bytes(with_exif(path.read_bytes(), 3))
    for _ in range(2):
        data = opened(root)
        data.resized_image(2, TRANSFORM)
        assert data.turned == {data.ref_image[2]}


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: b"", lambda c: c[:200] + bytes(8) + c[208:],
                                    lambda c: b"x" + c[1:], lambda c: c + b"1"])
def test_a_damaged_entry_is_made_again(root, damage):
    data = opened(root)
    right = data.resized_image(0, TRANSFORM)
    (entry,) = entries(root)
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    np.testing.assert_array_equal(data.resized_image(0, TRANSFORM), right)
    assert entry.read_bytes() == whole


def test_it_stops_at_its_bound(root):
    """Over all sizes, and with what others have added."""
    one = 24 + 3 * 32 * 32
    data = opened(root, cache_gb=2.5 * one / 1e9)
    assert "2 of the 4 of this data will not fit" in data.notes[-1]
    for _ in range(2):
        for r in range(6):
            np.testing.assert_array_equal(data.resized_image(r, TRANSFORM), TRANSFORM.resize(data.read_image(r)))
    assert len(entries(root)) == 2
    full = opened(root, cache_gb=2.5 * one / 1e9, image_size=64)
    full.resized_image(0, ImageTransform(64, (0.5,) * 3, (0.25,) * 3))
    assert not list((root / "cache/64").iterdir())


def test_others_additions_count(root, monkeypatch):
    monkeypatch.setattr("mindspore_coupalign.data.image_cache._RECOUNTED", 1)
    one = 24 + 3 * 32 * 32
    first, second = (opened(root, cache_gb=2.5 * one / 1e9) for _ in range(2))
    for r in (0, 2):
        first.resized_image(r, TRANSFORM)
    second.resized_image(5, TRANSFORM)
    assert len(entries(root)) == 2


def test_threads_share_it(root):
    data = opened(root)
    expected = [TRANSFORM.resize(data.read_image(r)) for r in range(6)]
    wrong = []

    def work():
        for k in range(60):
            if (data.resized_image(k % 6, TRANSFORM) != expected[k % 6]).any():
                wrong.append(k)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(entries(root)) == 4 and not any(path.suffix == ".tmp" for path in entries(root))


def test_killed_while_it_writes(root):
    """``kill -9`` just before the name is given: nothing that a later run takes for an image; the rest is cleared."""
    script = ("import os, signal\nfrom mindspore_coupalign.data.image_cache import ImageCache\nimport numpy as np\n"
              "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nfrom pathlib import Path\n"
              f"cache = ImageCache({str(root / 'cache')!r}, 1, 32)\n"
              f"cache.get(Path({str(root / 'images/tiny/im0.jpg')!r}), (40, 60), "
              "lambda: (np.zeros((32, 32, 3), np.uint8), 1))")
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    (left,) = entries(root)
    assert left.suffix == ".tmp"
    data = opened(root)
    np.testing.assert_array_equal(data.resized_image(0, TRANSFORM), TRANSFORM.resize(data.read_image(0)))
    os.utime(left, (time.time() - 7200,) * 2)
    opened(root)
    assert not left.exists() and len(entries(root)) == 1


def test_a_full_disk_ends_the_writing_alone(root, monkeypatch):
    data = opened(root)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    for r in range(6):
        np.testing.assert_array_equal(data.resized_image(r, TRANSFORM), TRANSFORM.resize(data.read_image(r)))
    assert entries(root) == [] and not data.cache.writes


def test_what_is_refused(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="data.cache=.*file: cannot be used"):
        ImageCache(tmp_path / "file", 1, 32)
    with pytest.raises(UserError, match="data.cache_gb must be positive"):
        names(root, cache_gb=0)


def test_a_union_shares_the_cache_and_a_checkpoint_does_not_name_it(root, decoded):
    config = names(root, sets=[{"dataset": "tiny", "split_by": "unc"}])
    validation = with_cache(open_data(config), config)
    union = open_union(config, validation)
    assert union.cache is validation.cache
    assert sum("data.cache" in line for line in (*union.notes, *validation.notes)) == 1
    np.testing.assert_array_equal(union.resized_image(0, TRANSFORM), validation.resized_image(0, TRANSFORM))
    assert len(decoded) == 1
    whole = config_from_dict({"data": {"cache": "images"}}, "test")
    assert without_absolute_paths(whole).data.cache == ""


def test_a_dry_run_leaves_the_folder_alone(root, monkeypatch):
    """It opens the data without the cache; a training opens it with it."""
    opened_data = []
    monkeypatch.setattr(train, "Trainer", lambda config, data, *_: opened_data.append(data) or SimpleNamespace(
        train=lambda: None, code=0))
    monkeypatch.setattr(train, "dry_run", lambda trainer: 0)
    config = tiny_config(f"data.root={root}", "data.dataset=tiny", "data.split_by=unc", f"data.cache={root / 'cache'}")
    for dry in (True, False):
        assert train.start(config, None, root / "run", Runtime("CPU", 0, 1), dry) == 0
        assert (root / "cache").exists() != dry and (opened_data[-1].cache is None) == dry


@pytest.mark.skipif(refcoco_mini() is None, reason="no sample of the real RefCOCO (COUPALIGN_REFCOCO_MINI)")
def test_real_photographs(tmp_path, decoded):
    values = {"root": str(refcoco_mini()), "cache": str(tmp_path), "image_size": 480}
    config = config_from_dict({"data": values}, "test").data
    data, transform = with_cache(open_data(config), config), ImageTransform(480, config.mean, config.std)
    refs = range(0, len(data.ref_ids), 3)
    first = [data.resized_image(r, transform) for r in refs]
    decoded.clear()
    again = [data.resized_image(r, transform) for r in refs]
    assert not decoded
    for r, *images in zip(refs, first, again, strict=True):
        for image in images:
            np.testing.assert_array_equal(transform.normalise(image), transform.image(data.read_image(r)))
