"""BERT encoder (Devlin et al., 2019) whose layers can be run in groups.

Shapes: ids (B, T) int32; word_mask (B, T), 1 = word, 0 = padding; text (B, T, D); bias (B, 1, 1, T).
"""

from mindspore import Tensor, nn, ops

from mindspore_coupalign.models.layers import Attention, Mlp, embedding_table, layer_norm
from mindspore_coupalign.models.rng import Dropout


def padding_bias(word_mask, dtype):
    """Attention bias (B, 1, 1, T): 0 for words and -1e4, which fp16 can hold, for padding."""
    return ((1 - word_mask).astype(dtype) * -1e4).reshape((word_mask.shape[0], 1, 1, word_mask.shape[1]))


class BertEmbeddings(nn.Cell):
    """Word + position + segment embeddings, normalised: (B, T) -> (B, T, D). Every token is of segment 0."""

    def __init__(self, vocab: int, hidden: int, max_positions: int, max_tokens: int, dropout: float):
        super().__init__()
        self.word_embeddings = embedding_table(vocab, hidden)
        self.position_embeddings = embedding_table(max_positions, hidden)
        self.token_type_embeddings = embedding_table(2, hidden)
        self.norm = layer_norm(hidden, 1e-12)
        self.dropout = Dropout(dropout)
        self.positions = Tensor(list(range(max_tokens)))
        self.segment = Tensor([0])

    def construct(self, ids):
        x = ops.gather(self.word_embeddings, ids, 0)
        x = x + ops.gather(self.position_embeddings, self.positions, 0)
        x = x + ops.gather(self.token_type_embeddings, self.segment, 0)
        return self.dropout(self.norm(x))


class BertLayer(nn.Cell):
    """Self-attention and feed-forward with post-normalisation: (B, T, D) -> (B, T, D)."""

    recomputable = True

    def __init__(self, hidden: int, heads: int, ffn: int, dropout: float, act: str):
        super().__init__()
        self.attention = Attention(hidden, heads, dropout)
        self.norm1 = layer_norm(hidden, 1e-12)
        self.mlp = Mlp(hidden, ffn, act)
        self.norm2 = layer_norm(hidden, 1e-12)
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)

    def construct(self, x, bias):
        x = self.norm1(x + self.dropout1(self.attention(x, x, x, bias)))
        return self.norm2(x + self.dropout2(self.mlp(x)))


class BertGroup(nn.Cell):
    """Consecutive BERT layers: (B, T, D) -> (B, T, D)."""

    def __init__(self, layers: list):
        super().__init__()
        self.layers = nn.CellList(layers)

    def construct(self, x, bias):
        for layer in self.layers:
            x = layer(x, bias)
        return x


class Bert(nn.Cell):
    """``embed(ids)`` and ``groups[i](x, bias)``; construct runs all groups without vision."""

    def __init__(self, vocab, hidden, heads, ffn, groups, max_positions, max_tokens, dropout=0.1, act="gelu"):
        super().__init__()
        self.hidden = hidden
        self.embed = BertEmbeddings(vocab, hidden, max_positions, max_tokens, dropout)
        self.groups = nn.CellList([
            BertGroup([BertLayer(hidden, heads, ffn, dropout, act) for _ in range(count)]) for count in groups])

    def construct(self, ids, word_mask):
        x = self.embed(ids)
        bias = padding_bias(word_mask, x.dtype)
        for group in self.groups:
            x = group(x, bias)
        return x
