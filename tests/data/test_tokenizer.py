import os
import subprocess
import sys
import time

import numpy as np
import pytest
from refer_files import VOCABULARY, write_vocabulary

from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.errors import UserError

PAD, UNK, CLS, SEP = range(4)


def ids_of(words: str) -> list[int]:
    return [VOCABULARY.index(word) for word in words.split()]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return SentenceTokenizer.from_name(str(write_vocabulary(tmp_path_factory.mktemp("bert"))), max_tokens=7)


def test_ids_and_word_mask(tokenizer):
    ids, mask = tokenizer(["The Big triangle", "", "square left"])
    assert ids.dtype == mask.dtype == np.int32 and ids.shape == mask.shape == (3, 7)
    assert ids[0].tolist() == [CLS, *ids_of("the big tri ##angle"), SEP, PAD]
    assert ids[1].tolist() == [CLS, SEP] + [PAD] * 5
    np.testing.assert_array_equal(mask.sum(axis=1), [6, 2, 4])
    np.testing.assert_array_equal(mask, ids != PAD)
    assert tokenizer.vocab_size == len(VOCABULARY) and tokenizer.pad_id == PAD and tokenizer.max_tokens == 7
    assert tokenizer([])[0].shape == (0, 7)


def test_truncation_keeps_sep(tokenizer):
    ids, mask = tokenizer(["the left big red square the left big red"])
    assert ids[0].tolist() == [CLS, *ids_of("the left big red square"), SEP] and mask.all()
    exact = tokenizer(["the left big red square"])[0]
    np.testing.assert_array_equal(ids, exact)


def test_lengths_are_untruncated(tokenizer):
    sentences = ["the left big red square the left big red", "", "triangle"]
    assert tokenizer.lengths(sentences).tolist() == [11, 2, 4]
    tokenizer(sentences)
    assert tokenizer.lengths(sentences).tolist() == [11, 2, 4]


def test_unknown_words_as_written(tokenizer):
    assert tokenizer.unknown("the Zebra left of square, trix") == ["Zebra", ",", "trix"]
    assert tokenizer.unknown("the left square") == []
    ids = tokenizer(["the zebra"])[0]
    assert (ids == tokenizer.unknown_id).sum() == 1


def test_json_carries_everything(tokenizer):
    text = tokenizer.to_json()
    again = SentenceTokenizer.from_json(text, 7)
    sentences = ["The big triangle", "zebra", "the left big red square the left big red"]
    for a, b in zip(tokenizer(sentences), again(sentences), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.to_json() == text
    assert SentenceTokenizer.from_json(text, 4)(["the left big"])[0].tolist() == [[CLS, *ids_of("the left"), SEP]]


def test_padding_stored_in_a_foreign_file_is_ignored(tmp_path, tokenizer):
    from tokenizers import Tokenizer

    stored = Tokenizer.from_str(tokenizer.to_json())
    stored.enable_padding(length=64)
    stored.enable_truncation(3)
    (tmp_path / "tokenizer.json").write_text(stored.to_str())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    loaded = SentenceTokenizer.from_name(str(tmp_path), 7)
    assert loaded.lengths(["the left big red"]).tolist() == [6]


def test_a_configured_folder_reads_alike(tmp_path, tokenizer):
    folder = write_vocabulary(tmp_path / "bert")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    loaded = SentenceTokenizer.from_name(str(folder), 7)
    np.testing.assert_array_equal(loaded(["The big triangle"])[0], tokenizer(["The big triangle"])[0])


def test_files_that_are_no_bert_tokenizer(tmp_path):
    with pytest.raises(UserError, match="neither tokenizer.json nor vocab.txt"):
        SentenceTokenizer.from_name(str(tmp_path), 7)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="not a BERT tokenizer"):
        SentenceTokenizer.from_name(str(tmp_path), 7)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        SentenceTokenizer.from_name(str(tmp_path), 7)
    with pytest.raises(UserError, match="model.ckpt: its tokenizer cannot be read"):
        SentenceTokenizer.from_json("{}", 7, "model.ckpt")


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_name_out_of_reach_fails_in_seconds(tmp_path, offline):
    """In a process of its own, for the hub's settings are read at import. Port 9 of this host answers nothing."""
    code = ("from mindspore_coupalign.data.tokenizer import SentenceTokenizer as T\n"
            "from mindspore_coupalign.errors import UserError\n"
            "try: T.from_name('someone/some-bert', 20)\n"
            "except UserError as exc: print(exc)")
    env = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": str(int(offline))}
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True,
                          timeout=60)
    assert time.monotonic() - start < 20
    assert "someone/some-bert" in done.stdout and "download its files" in done.stdout and done.stdout.count("\n") == 1
    assert "PyTorch" not in done.stderr and not done.stderr.strip()
