"""The order of training, the shares of ranks, flips, and the batches of an evaluation."""

import multiprocessing

import numpy as np
import pytest
from refer_files import refs_and_instances, write_refer, write_vocabulary

from mindspore_coupalign.data.loader import PromptSource, Tokens, TrainSource, batches
from mindspore_coupalign.data.refer import read_refer
from mindspore_coupalign.data.refshapes.dataset import make_shapes
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.data.transforms import ImageTransform
from mindspore_coupalign.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "data"
    make_shapes(root, 3, train=5, val=2, testA=1, testB=1)
    return read_refer(root, "refshapes", "shapes")


@pytest.fixture(scope="module")
def tokenizer():
    return SentenceTokenizer.from_name("refshapes", 16)


@pytest.fixture(scope="module")
def transform():
    return ImageTransform(32, MEAN, STD)


@pytest.fixture
def train(shapes, tokenizer, transform):
    def make(steps=(0, 10), batch=4, flip=0.0, rank=0, ranks=1, seed=0):
        return TrainSource(shapes, "train", tokenizer, transform, seed, batch, flip, steps, rank, ranks)

    return make


def drawn(source):
    return [int(source.item(k)[-1]) for k in range(len(source))]


def test_each_ref_once_per_epoch(train, shapes):
    """One sentence of each; another order and, over the epochs, each of the sentences."""
    refs = shapes.refs_of("train")
    assert len(refs) == 10
    samples = np.array(drawn(train(steps=(0, 50), batch=2))).reshape(10, 10)
    for epoch in samples:
        assert sorted(shapes.sentence_ref[epoch].tolist()) == refs.tolist()
    assert len({tuple(shapes.sentence_ref[epoch]) for epoch in samples}) == 10
    assert set(samples.ravel()) == set(shapes.split("train"))
    assert drawn(train(seed=1)) != drawn(train()) == drawn(train())


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_ranks_share_each_step_of_one_rank(train, ranks):
    """Also across the ends of epochs: 10 refs in batches of 4."""
    whole = np.array(drawn(train())).reshape(10, 4)
    parts = [np.array(drawn(train(rank=rank, ranks=ranks))).reshape(10, 4 // ranks) for rank in range(ranks)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)


def test_a_later_start_goes_on_in_the_same_order(train):
    whole = drawn(train(steps=(0, 10)))
    assert drawn(train(steps=(7, 10))) == whole[28:] and len(train(steps=(7, 10))) == 12
    flipped, later = train(flip=0.5), train(flip=0.5, steps=(7, 10))
    for k in range(12):
        for a, b in zip(flipped.item(28 + k), later.item(k), strict=True):
            np.testing.assert_array_equal(a, b)


def test_items(train, shapes, tokenizer, transform):
    image, ids, word_mask, mask, s = train().item(0)
    assert image.shape == (3, 32, 32) and image.dtype == np.float32 and mask.dtype == np.float32
    assert ids.dtype == word_mask.dtype == s.dtype == np.int32 and ids.shape == word_mask.shape == (16,)
    r = shapes.sentence_ref[s]
    np.testing.assert_array_equal(mask[0], transform.mask(shapes.mask(r)))
    np.testing.assert_array_equal(image, transform.image(shapes.read_image(r)))
    np.testing.assert_array_equal(ids, tokenizer([shapes.sentence(s)])[0][0])
    assert mask.shape == (1, 32, 32) and set(np.unique(mask)) == {0.0, 1.0}


def test_flips_turn_image_mask_and_words_together(train, shapes, tokenizer, transform):
    plain, always = train(), train(flip=1.0)
    sides = 0
    for k in range(40):
        (image, ids, word_mask, mask, s), (image_f, ids_f, word_mask_f, mask_f, s_f) = plain.item(k), always.item(k)
        assert s == s_f
        np.testing.assert_allclose(image_f, image[..., ::-1], atol=0.05)
        turned_mask = np.ascontiguousarray(shapes.mask(shapes.sentence_ref[s])[:, ::-1])
        np.testing.assert_array_equal(mask_f[0], transform.mask(turned_mask))
        assert mask_f.shape == mask.shape and (mask_f != mask).any()
        words = shapes.sentence(s).split()
        turned = " ".join({"left": "right", "right": "left"}.get(w, w) for w in words)
        if any("left" in w or "right" in w for w in words) and turned.split() != words:
            sides += 1
            np.testing.assert_array_equal(ids_f, tokenizer([turned])[0][0])
            assert (ids_f != ids).any()
        elif turned.split() == words and "left" not in turned and "right" not in turned:
            np.testing.assert_array_equal(ids_f, ids)
            np.testing.assert_array_equal(word_mask_f, word_mask)
    assert sides >= 3


def test_some_are_flipped(train):
    plain, some, always = train(), train(flip=0.5), train(flip=1.0)
    flipped = []
    for k in range(40):
        image = some.item(k)[0]
        flipped.append((image == always.item(k)[0]).all())
        assert flipped[-1] or (image == plain.item(k)[0]).all()
    assert 8 < sum(flipped) < 32


def test_batches_keep_the_order(train):
    """The threads of the pipeline may finish in any order; the batches do not show it."""
    source = train(flip=0.5)
    got = list(batches(source, source.local, workers=2))
    assert len(got) == 10 and got[0][0].shape == (4, 3, 32, 32) and got[0][3].shape == (4, 1, 32, 32)
    for k in range(40):
        for column, expected in zip(got[k // 4], source.item(k), strict=True):
            np.testing.assert_array_equal(column[k % 4], expected)


def test_more_workers_than_cores(train):
    assert len(list(batches(train(), 4, workers=multiprocessing.cpu_count() + 1))) == 10


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_refer(tmp_path_factory.mktemp("refer"))


def test_evaluation_batches(tiny, transform, tmp_path):
    data = read_refer(tiny, "tiny", "unc")
    tokenizer = SentenceTokenizer.from_name(str(write_vocabulary(tmp_path / "bert")), 8)
    samples = data.split("val")
    words = zip(*tokenizer([data.sentence(s) for s in samples]), strict=True)
    prompts = [(k, int(data.sentence_ref[s]), ids[mask > 0], mask[mask > 0])
               for k, (s, (ids, mask)) in enumerate(zip(samples, words, strict=True))]
    source = PromptSource(data, prompts, 8, tokenizer.pad_id, lambda r: transform.image(data.read_image(r)), 2)
    image, ids, word_mask, index = (np.concatenate(column)
                                    for column in zip(*batches(source, 2, workers=2), strict=True))
    assert index.tolist() == [*range(len(samples)), -1] and image.shape == (4, 3, 32, 32)
    for row, s in enumerate(samples):
        expected, mask = tokenizer([data.sentence(s)])
        np.testing.assert_array_equal(ids[row], expected[0])
        np.testing.assert_array_equal(word_mask[row], mask[0])
        np.testing.assert_array_equal(image[row], transform.image(data.read_image(int(data.sentence_ref[s]))))
    assert (image[3] == 0).all() and word_mask[3].sum() == 1  # a word for the padding's softmax


def test_training_and_evaluation_read_the_chosen_wording_and_mask(tmp_path, transform):
    """``data.sentence_field`` and ``data.overlap``; a flip turns the words of either."""
    refs, instances = refs_and_instances()
    box, beside = ([x, 10, x + 20, 10, x + 20, 30, x, 30] for x in (10, 20))
    instances["annotations"][3]["segmentation"] = [box, beside]
    for ref in refs:
        for sentence in ref["sentences"]:
            sentence.update(sent="red left", raw="Big RED, right!")
    data = read_refer(write_refer(tmp_path, refs, instances), "tiny", "unc")
    tokenizer = SentenceTokenizer.from_name(str(write_vocabulary(tmp_path / "bert")), 8)
    samples = data.split("val")
    for field, overlap, plain, turned in (("sent", "union", "red left", "red right"),
                                          ("raw", "single", "big red [UNK] right [UNK]", "big red [UNK] left [UNK]")):
        assert Tokens(data, samples, tokenizer, field=field).ids[0].tolist() == tokenizer([plain])[0][0].tolist()
        source = TrainSource(data, "val", tokenizer, transform, 0, 1, 1.0, (0, 20), 0, 1, field, overlap)
        items = [source.item(k) for k in range(20)]
        _, ids, _, target, s = next(item for item in items if data.sentence_ref[item[-1]] == 3)
        assert ids.tolist() == tokenizer([turned])[0][0].tolist()
        truth = data.mask(3, overlap)
        np.testing.assert_array_equal(target[0], transform.mask(np.ascontiguousarray(truth[:, ::-1])))
    assert data.mask(3).sum() == 600 and data.mask(3, "single").sum() == 400


def test_refs_without_sentences_have_no_place_in_the_order(tmp_path, tokenizer, transform):
    refs, _ = refs_and_instances()
    refs[1]["sentences"] = []
    data = read_refer(write_refer(tmp_path, refs), "tiny", "unc")
    source = TrainSource(data, "train", tokenizer, transform, 0, 1, 0.0, (0, 6), 0, 1)
    seen = [int(data.sentence_ref[sample[0]]) for *_, sample in batches(source, 1, workers=1)]
    assert sorted(seen[:2]) == sorted(seen[2:4]) == sorted(seen[4:]) == [0, 2]


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_bad_image_inside_the_pipeline_is_named(tmp_path, tokenizer, transform, damage):
    data = read_refer(write_refer(tmp_path), "tiny", "unc")
    path = data.image_path(2)
    content = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(content[:len(content) // 2])
    source = TrainSource(data, "train", tokenizer, transform, 0, 1, 0.0, (0, 6), 0, 1)
    with pytest.raises(UserError, match=path.name) as caught:
        list(batches(source, 1, workers=2))
    assert "\n" not in str(caught.value)
