"""Sentences -> BERT word pieces. S sentences, T = max_tokens word pieces with [CLS] and [SEP].

The tokenizer travels as one JSON text (the format of the ``tokenizers`` library), so that a checkpoint carries it and
needs neither a vocabulary file nor the transformers package to be read again.
"""

import logging
import os
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from mindspore_coupalign.errors import UserError, one_line

_ASSETS = Path(__file__).resolve().parent.parent / "assets"
SHIPPED = {name: _ASSETS / f"{name}_tokenizer" for name in ("refshapes", "refshapes_general")}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
BERT_VOCABULARY = 30522  # of bert-base-uncased
_PROBE_SECONDS = 5


class SentenceTokenizer:
    """Word pieces of sentences, padded or truncated to ``max_tokens``.

    Raises:
        UserError: the tokenizer is not of BERT's kind ([PAD], [UNK], [CLS] sentence [SEP]).
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, source: str = "tokenizer"):
        # Without the added tokens: transformers adds missing ones behind the vocabulary, where no embedding is.
        missing = set(SPECIAL) - tokenizer.get_vocab(with_added_tokens=False).keys()
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if missing or tokenizer.encode("").tokens != ["[CLS]", "[SEP]"]:
            raise UserError(f"{source}: not a BERT tokenizer (needs {', '.join(SPECIAL)}); use for example the files "
                            "of bert-base-uncased")
        self.max_tokens = max_tokens
        self.pad_id, self.unknown_id = (tokenizer.get_vocab()[name] for name in ("[PAD]", "[UNK]"))
        self.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
        self._tokenizer = tokenizer

    @classmethod
    def from_name(cls, name: str, max_tokens: int, download: bool = True) -> "SentenceTokenizer":
        """Load a shipped one (SHIPPED), a local folder (vocab.txt is enough), or a name on the Hugging Face hub.

        Args:
            download: False: of the hub, take only what was downloaded before.

        Raises:
            UserError: no such folder and no such name within reach, or files that are no BERT tokenizer.
        """
        folder = local_folder(name)
        return cls(_from_folder(folder) if folder.is_dir() else _from_hub(name, download), max_tokens, str(name))

    @classmethod
    def from_json(cls, text: str, max_tokens: int, source: str = "tokenizer") -> "SentenceTokenizer":
        """From ``to_json``'s text; ``source`` is named in errors. Raises UserError when the text is none."""
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as exc:  # the library raises plain Exception
            raise UserError(f"{source}: its tokenizer cannot be read ({one_line(exc, 100)})") from exc
        return cls(tokenizer, max_tokens, source)

    def to_json(self) -> str:
        """The whole tokenizer as one JSON text."""
        return self._tokenizer.to_str()

    def __call__(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """ids (S, T) int32 and word_mask (S, T) int32, 1 = word piece, 0 = padding. Truncation keeps [SEP]."""
        ids = np.full((len(sentences), self.max_tokens), self.pad_id, np.int32)
        word_mask = np.zeros_like(ids)
        for row, pieces in enumerate(self.pieces(sentences)):
            if len(pieces) > self.max_tokens:
                pieces = pieces[: self.max_tokens - 1] + pieces[-1:]
            ids[row, : len(pieces)] = pieces
            word_mask[row, : len(pieces)] = 1
        return ids, word_mask

    def pieces(self, sentences: list[str]) -> list[list[int]]:
        """Ids of each sentence's word pieces with [CLS] and [SEP], neither padded nor truncated."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(sentences)]

    def lengths(self, sentences: list[str]) -> np.ndarray:
        """Word pieces per sentence before truncation, with [CLS] and [SEP]; (S,) int32."""
        return np.array([len(pieces) for pieces in self.pieces(sentences)], np.int32)

    def unknown(self, sentence: str) -> list[str]:
        """The sentence's words, as written, that the vocabulary cannot spell."""
        encoding = self._tokenizer.encode(sentence)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return [sentence[a:b] for token, (a, b) in pairs if token == self.unknown_id]


def local_folder(name: str) -> Path:
    """Where a tokenizer of that name lies, if it is one on this machine."""
    return SHIPPED.get(name, Path(os.path.expanduser(name)))


def vocabulary_size(name: str, max_tokens: int) -> tuple[int, str]:
    """A tokenizer's word pieces and where the number is from; BERT's where it is not on this machine.

    Raises:
        UserError: it is here and cannot be read.
    """
    try:
        return SentenceTokenizer.from_name(name, max_tokens, download=False).vocab_size, name
    except UserError:
        if local_folder(name).is_dir():
            raise
        return BERT_VOCABULARY, f"BERT's: the tokenizer {name!r} is not on this machine"


def _from_folder(folder: Path) -> Tokenizer:
    transformers = _transformers()
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise UserError(f"{folder}: holds neither tokenizer.json nor vocab.txt; give a folder with a BERT tokenizer")
    try:
        if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "config.json")):
            loaded = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        else:  # a classic BERT folder, which AutoTokenizer cannot place
            loaded = transformers.BertTokenizer(vocab=str(folder / "vocab.txt"))
        return loaded.backend_tokenizer
    except Exception as exc:  # transformers raises many kinds; all mean that the files are no tokenizer
        raise UserError(f"{folder}: the tokenizer cannot be read ({one_line(exc)})") from exc


def _from_hub(name: str, download: bool) -> Tokenizer:
    load = _transformers().AutoTokenizer.from_pretrained
    try:
        return load(name, local_files_only=True).backend_tokenizer
    except Exception:  # not in the cache
        pass
    advice = "download its files (vocab.txt is enough) and give the path of their folder as data.tokenizer"
    if not download or not _hub_answers():
        raise UserError(f"tokenizer {name!r}: no such folder, and the Hugging Face hub cannot be reached; {advice}")
    try:
        return load(name).backend_tokenizer
    except Exception as exc:
        raise UserError(f"tokenizer {name!r}: no such folder, and not on the Hugging Face hub "
                        f"({one_line(exc)}); {advice}") from exc


def _hub_answers() -> bool:
    """Whether the hub answers at all: transformers alone would retry for most of a minute before it gives up."""
    import huggingface_hub

    if huggingface_hub.constants.is_offline_mode():
        return False
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_PROBE_SECONDS)
    except Exception:  # whatever the HTTP library raises: no answer
        return False
    return True


def _transformers():
    """The transformers package (1.5 s to import), without its advice to install PyTorch."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    return transformers


def build_vocabulary(sentences: list[str]) -> str:
    """The vocab.txt of a data set's own words, for a network trained from scratch on a few sentences.

    Special tokens, characters, words; the same for the same sentences in any order. Words are split as BERT's uncased
    tokenizer splits them; single characters, as beginnings and as continuations, spell the words that are not in it.
    """
    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    words = {word for text in sentences for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    characters = set("abcdefghijklmnopqrstuvwxyz0123456789").union(*words)
    pieces = [*SPECIAL, "[MASK]", *sorted(characters), *(f"##{c}" for c in sorted(characters)),
              *sorted(words - characters)]
    return "".join(f"{piece}\n" for piece in pieces)
