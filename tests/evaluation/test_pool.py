"""What keeps evaluation fast: each image is decoded once, and pixels are counted in threads."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from refer_files import write_refer
from tiny_network import tiny_config

from mindspore_coupalign.data.images import MissingImage
from mindspore_coupalign.data.loader import Pictures, PromptSource, batches
from mindspore_coupalign.data.refer import read_refer
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.evaluation import protocols, scoring
from mindspore_coupalign.evaluation.prompts import make_plan


@pytest.fixture
def data(tmp_path):
    return read_refer(write_refer(tmp_path), "tiny", "unc")


@pytest.fixture
def decoded(monkeypatch):
    """The images that were decoded, in that order."""
    from mindspore_coupalign.data.refer import ReferData

    seen, read = [], ReferData.read_image
    monkeypatch.setattr(ReferData, "read_image", lambda self, r: seen.append(int(self.ref_image[r])) or read(self, r))
    return seen


class Answers:
    """A network that sees red, whatever the words."""

    uint8 = False

    def __call__(self, length):
        return length, lambda image, ids, word_mask: image[:, :1] - image[:, 2:]


class Tensors:
    """The same, as a cell."""

    def set_train(self, _):
        pass

    def __call__(self, image, ids, word_mask):
        return image[:, :1] - image[:, 2:]


def test_each_image_is_decoded_once_by_evaluate_and_validation(data, decoded):
    """Eleven sentences of six refs on four pictures; two refs of a picture, batches of two."""
    config = tiny_config("eval.batch_size=2")
    tokenizer = SentenceTokenizer.from_name("refshapes", 8)
    chosen = [protocols.resolve(protocol, config) for protocol in protocols.choose(["sentence"])]
    samples = np.arange(len(data.sentence_ref))
    plan = make_plan(data, samples, tokenizer, chosen)
    counts = scoring.score_plan(Answers(), plan, chosen, data, tokenizer, config)
    assert sorted(decoded) == [0, 1, 2, 3]
    decoded.clear()
    scores = scoring.evaluate_samples(Tensors(), data, samples[::-1], tokenizer, config)
    assert sorted(decoded) == [0, 1, 2, 3] and scores["sample"].tolist() == samples[::-1].tolist()
    for size in ("image", "input"):
        np.testing.assert_array_equal(scores[size][::-1], counts["sentence", size][:, :2])
    assert 0 < counts["sentence", "image"][:, 0].sum() < counts["sentence", "image"][:, 1].sum()


def test_threads_that_need_one_image_decode_it_once(data, decoded):
    def prepare(r):
        time.sleep(0.02)
        return data.read_image(r)

    pictures = Pictures(data, prepare, kept=2)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(pictures.of_ref, [0, 1, 0, 1, 2, 2, 0, 1]))
    assert sorted(decoded) == [0, 1]
    np.testing.assert_array_equal(found[0], found[1])
    pictures.of_ref(3), pictures.of_ref(5), pictures.of_ref(0)  # two are kept
    assert sorted(decoded) == [0, 0, 1, 2, 3]


def test_a_missing_image_is_named_every_time(data):
    data.image_path(0).unlink()
    pictures = Pictures(data, data.read_image)
    for _ in range(2):
        with pytest.raises(MissingImage, match="im0.jpg"):
            pictures.of_ref(0)
    prompts = [(0, 0, np.array([1], np.int32), np.array([1], np.int32))]
    with pytest.raises(UserError, match="im0.jpg"):
        list(batches(PromptSource(data, prompts, 4, 0, data.read_image, 2), 2, 2))


def test_a_mask_that_cannot_be_read_ends_the_scoring(data, monkeypatch):
    """It is read in a thread."""
    def fail(*_):
        raise UserError("bad mask")

    monkeypatch.setattr(type(data), "mask", fail)
    tokenizer = SentenceTokenizer.from_name("refshapes", 8)
    with pytest.raises(UserError, match="bad mask"):
        scoring.evaluate_samples(Tensors(), data, np.arange(11), tokenizer, tiny_config("eval.batch_size=1"))
