"""The two ways to join pixels and words: CoupAlign's word-pixel alignment and LAVT's pixel-word attention.

Shapes: v (B, P, C) pixels; words (B, T, D); word_mask (B, T); attention of the pixels over the words (B, h, P, T).
"""

import torch
from torch import nn
from torch.nn import functional

from torch_twin.layers import Gate, Rectifier


class WordPixelAlignment(nn.Module):
    """CoupAlign: one affinity, read in both directions; gated residuals on both sides.

    A = LN(V) W_v (LN(L) W_l)^T / sqrt(d); V' = softmax_T(A) LN(L) W_lv W_ov; L' = softmax_P(A^T) LN(V) W_vl W_ol.
    """

    def __init__(self, pixel_dim: int, word_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.pixel_norm, self.word_norm = nn.LayerNorm(pixel_dim), nn.LayerNorm(word_dim)
        self.pixel_key, self.pixel_value = nn.Linear(pixel_dim, pixel_dim), nn.Linear(pixel_dim, pixel_dim)
        self.word_key, self.word_value = nn.Linear(word_dim, pixel_dim), nn.Linear(word_dim, pixel_dim)
        self.pixel_out, self.word_out = nn.Linear(pixel_dim, pixel_dim), nn.Linear(pixel_dim, word_dim)
        self.pixel_gate, self.word_gate = Gate(pixel_dim, False), Gate(word_dim, False)

    def forward(self, v, words, word_mask):
        pixels, normed = self.pixel_norm(v), self.word_norm(words)
        heads = (self.heads, -1)
        affinity = torch.einsum("bphd,bthd->bhpt", self.pixel_key(pixels).unflatten(2, heads),
                                self.word_key(normed).unflatten(2, heads))
        affinity = affinity / (v.shape[2] // self.heads) ** 0.5
        over_words = affinity.masked_fill(word_mask[:, None, None, :] == 0, -torch.inf).softmax(3)
        over_pixels = affinity.softmax(2)
        to_pixels = torch.einsum("bhpt,bthd->bphd", over_words, self.word_value(normed).unflatten(2, heads))
        to_words = torch.einsum("bhpt,bphd->bthd", over_pixels, self.pixel_value(pixels).unflatten(2, heads))
        to_pixels, to_words = self.pixel_out(to_pixels.flatten(2)), self.word_out(to_words.flatten(2))
        return v + self.pixel_gate(to_pixels) * to_pixels, words + self.word_gate(to_words) * to_words, over_words


class PixelWordAttention(nn.Module):
    """LAVT, section 3.1, with the paper's 1×1 convolutions as such: F_i (B, P, C)."""

    def __init__(self, pixel_dim: int, word_dim: int):
        super().__init__()
        self.query, self.gathered = nn.Conv1d(pixel_dim, pixel_dim, 1), nn.Conv1d(pixel_dim, pixel_dim, 1)
        self.key, self.value = nn.Conv1d(word_dim, pixel_dim, 1), nn.Conv1d(word_dim, pixel_dim, 1)
        self.pixels, self.out = (nn.Sequential(nn.Conv1d(pixel_dim, pixel_dim, 1), Rectifier()) for _ in range(2))

    def forward(self, v, words, word_mask):
        v, words = v.transpose(1, 2), words.transpose(1, 2)  # channels first
        query = functional.instance_norm(self.query(v))
        scores = query.transpose(1, 2) @ self.key(words) / v.shape[1] ** 0.5
        over_words = scores.masked_fill(word_mask[:, None, :] == 0, -torch.inf).softmax(2)
        gathered = functional.instance_norm(self.gathered(self.value(words) @ over_words.transpose(1, 2)))
        fused = self.out(self.pixels(v) * gathered)
        return fused.transpose(1, 2), over_words[:, None]
