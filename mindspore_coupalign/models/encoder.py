"""Early fusion: vision stage, BERT group and fusion take turns, four times.

Shapes: image (B, 3, H, W); ids, word_mask (B, T); S_i (B, P_i, C_i); words (B, T, D); attention (B, h, P_i, T).
"""

from mindspore import nn

from mindspore_coupalign.models.bert import Bert, padding_bias


class FusedEncoder(nn.Cell):
    """Returns (S_1..S_4), the fused words, and the word attention of each fused stage in order.

    Args:
        backbone, text: the encoders.
        fusions: stage (1 to 4) -> the cell that joins pixels and words after it. Where their class says ``text_first``,
            all of BERT runs before the first; else a group of its layers runs beside each stage.
    """

    def __init__(self, *, backbone: nn.Cell, text: Bert, fusions: dict[int, nn.Cell]):
        super().__init__()
        self.backbone = backbone
        self.text = text
        order = sorted(fusions)
        self.fused = tuple(i + 1 in fusions for i in range(4))
        self.slot = tuple(order.index(i + 1) if i + 1 in fusions else -1 for i in range(4))
        self.fusion = nn.CellList([fusions[stage] for stage in order])
        self.text_first = any(getattr(cell, "text_first", False) for cell in fusions.values())

    def construct(self, image, ids, word_mask):
        v = self.backbone.embed(image)
        words = self.text.embed(ids)
        bias = padding_bias(word_mask, words.dtype)
        if self.text_first:
            for group in self.text.groups:
                words = group(words, bias)
        stages, attention = (), ()
        for i in range(4):
            v = self.backbone.stages[i](v)
            if not self.text_first:
                words = self.text.groups[i](words, bias)
            features = v
            if self.fused[i]:
                v, words, features, over_words = self.fusion[self.slot[i]](v, words, bias)
                attention += (over_words,)
            stages += (self.backbone.outputs[i](features),)
            if i < 3:
                v = self.backbone.downsamples[i](v)
        return stages, words, attention
