"""Early fusion: vision stage, BERT group and word-pixel alignment take turns, four times.

Shapes: image (B, 3, H, W); ids, word_mask (B, T); S_i (B, P_i, C_i); words (B, T, D); attention (B, h, P_i, T).
"""

from mindspore import nn

from mindspore_coupalign.models.bert import padding_bias
from mindspore_coupalign.models.word_pixel import WordPixelAlignment


class FusedEncoder(nn.Cell):
    """Returns (S_1..S_4), the fused words, and the word attention of each aligned stage in order."""

    def __init__(self, vision, text, wpa_stages, wpa_heads, gate_bias_init=0.0):
        super().__init__()
        self.vision = vision
        self.text = text
        self.aligned = tuple(i + 1 in wpa_stages for i in range(4))
        order = [i for i in range(4) if self.aligned[i]]
        self.slot = tuple(order.index(i) if i in order else -1 for i in range(4))
        self.wpa = nn.CellList([
            WordPixelAlignment(vision.channels[i], text.hidden, wpa_heads[i], gate_bias_init) for i in order])

    def construct(self, image, ids, word_mask):
        v = self.vision.embed(image)
        words = self.text.embed(ids)
        bias = padding_bias(word_mask, words.dtype)
        stages, attention = (), ()
        for i in range(4):
            v = self.vision.stages[i](v)
            words = self.text.groups[i](words, bias)
            if self.aligned[i]:
                v, words, over_words = self.wpa[self.slot[i]](v, words, bias)
                attention += (over_words,)
            stages += (self.vision.outputs[i](v),)
            if i < 3:
                v = self.vision.downsamples[i](v)
        return stages, words, attention
