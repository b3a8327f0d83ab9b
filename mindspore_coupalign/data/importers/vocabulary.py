"""A vocabulary of a data set's own words, for networks trained from scratch on a few sentences: BERT's vocab.txt.

Words are split as BERT's uncased tokenizer splits them; single characters, as beginnings and as continuations, spell
the words that are not in it.
"""

from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def vocabulary(sentences: list[str]) -> str:
    """The content of a vocab.txt: special tokens, characters, words; the same for the same sentences in any order."""
    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    words = {word for text in sentences for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    characters = set("abcdefghijklmnopqrstuvwxyz0123456789").union(*words)
    pieces = [*SPECIAL, *sorted(characters), *(f"##{c}" for c in sorted(characters)), *sorted(words - characters)]
    return "".join(f"{piece}\n" for piece in pieces)
