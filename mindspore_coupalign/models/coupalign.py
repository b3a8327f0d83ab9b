"""CoupAlign (Zhang et al., NeurIPS 2022): word-pixel alignment in the encoders, sentence-mask alignment at the end.

Shapes: image (B, 3, H, W); ids, word_mask (B, T) int32; logits (B, 1, H, W), positive inside the mask.
"""

from mindspore import nn, ops

from mindspore_coupalign.models.encoder import FusedEncoder
from mindspore_coupalign.models.guided_filter import GuidedFilter
from mindspore_coupalign.models.layers import Resize, SubPixel
from mindspore_coupalign.models.mask_generator import MaskGenerator, PixelDecoder
from mindspore_coupalign.models.sentence_mask import PickedMask, SentenceMaskAlignment


class CoupAlign(nn.Cell):
    """``construct`` gives the mask logits; ``forward`` gives them with the named intermediates for losses and figures.

    The exported graph is ``construct``'s: what only ``forward`` returns is not in it. ``upsample`` takes the logits
    from stride 4 to the input's size: "bilinear"; "subpixel", where the last convolution predicts 4×4 blocks; or
    "guided", where the image guides them. With ``stage_masks``, a linear head on each of the first two fused stages
    predicts the mask too, for a loss that teaches word-pixel alignment directly; ``picked_mask`` does the same for the
    sentence-mask alignment.
    """

    def __init__(self, encoder: FusedEncoder, decoder: PixelDecoder, size: tuple, dim: int,
                 generator: MaskGenerator | None = None, alignment: SentenceMaskAlignment | None = None,
                 query_stage: int = 4, upsample: str = "bilinear", stage_masks: bool = False,
                 picked_mask: bool = False):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.generator = generator
        self.alignment = alignment
        self.query_stage = query_stage - 1
        channels = 16 if upsample == "subpixel" else 1
        self.head = nn.Conv2d(dim if alignment is None else 2 * dim, channels, 1, has_bias=True)
        self.guided = GuidedFilter((size[0] // 4, size[1] // 4), 4) if upsample == "guided" else None
        self.stage_heads = nn.CellList([nn.Dense(c, 1, bias_init="zeros") for c in encoder.vision.channels[:2]]
                                       if stage_masks else [])
        self.picked = PickedMask() if picked_mask else None
        self.to_input_size = SubPixel(4) if upsample == "subpixel" else Resize(size)

    def construct(self, image, ids, word_mask):
        return self.forward(image, ids, word_mask)[0]

    def forward(self, image, ids, word_mask):
        """(logits (B,1,H,W), Y (B,C_d,H/4,W/4), proposals (B,P,N), weights (B,N), words ((B,h,P_i,T), …), early,
        picked).

        ``words`` is each aligned stage's attention; proposals and weights are None without sentence-mask alignment;
        ``early`` are the stage heads' logits (B,P_i,1), empty without; ``picked`` (B,P_1,1) or None.
        """
        stages, words, attention = self.encoder(image, ids, word_mask)
        y = self.decoder(stages)
        pixels, proposals, weights, picked = y, None, None, None
        if self.alignment is not None:
            b, c, h, w = y.shape
            masks = self.generator(stages[self.query_stage])
            sentence = words[:, 0]  # [CLS] of the last fused text layer
            tokens = y.reshape((b, c, h * w)).transpose((0, 2, 1))
            aligned, proposals, weights = self.alignment(tokens, masks, sentence)
            if self.picked is not None:
                picked = self.picked(proposals, weights)
            pixels = ops.concat((y, aligned.transpose((0, 2, 1)).reshape(y.shape).astype(y.dtype)), 1)
        coarse = self.head(pixels)
        logits = self.to_input_size(coarse) if self.guided is None else self.guided(coarse, image)
        early = ()
        for i in range(len(self.stage_heads)):
            early += (self.stage_heads[i](stages[i]),)
        return logits, y, proposals, weights, attention, early, picked
