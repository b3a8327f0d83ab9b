"""CoupAlign (Zhang et al., NeurIPS 2022): word-pixel alignment in the encoders, sentence-mask alignment at the end.

Shapes: image (B, 3, H, W); ids, word_mask (B, T) int32; logits (B, 1, H, W), positive inside the mask.
"""

from mindspore import nn, ops

from mindspore_coupalign.models.encoder import FusedEncoder
from mindspore_coupalign.models.layers import Resize, SubPixel
from mindspore_coupalign.models.mask_generator import MaskGenerator, PixelDecoder
from mindspore_coupalign.models.sentence_mask import SentenceMaskAlignment


class Refinement(nn.Cell):
    """Lets the picture's edges sharpen the mask: logits (B, 1, H, W), image (B, 3, H, W) -> logits (B, 1, H, W).

    A residual of two 3×3 convolutions at the input's size that starts at zero. No gradient goes back through it: the
    network learns from the coarse logits as it would without, only sharper edges cannot stand in for words.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(4, dim, 3, has_bias=True, weight_init="HeUniform")
        self.conv2 = nn.Conv2d(dim, 1, 3, has_bias=True, weight_init="zeros", bias_init="zeros")

    def construct(self, logits, image):
        logits = ops.stop_gradient(logits)
        return logits + self.conv2(ops.relu(self.conv1(ops.concat((logits, image), 1))))


class CoupAlign(nn.Cell):
    """``construct`` gives the mask logits; ``forward`` gives them with the named intermediates for losses and figures.

    The exported graph is ``construct``'s: what only ``forward`` returns is not in it. ``upsample`` takes the logits
    from stride 4 to the input's size: "bilinear", or "subpixel", where the last convolution predicts 4×4 blocks.
    """

    def __init__(self, encoder: FusedEncoder, decoder: PixelDecoder, size: tuple, dim: int,
                 generator: MaskGenerator | None = None, alignment: SentenceMaskAlignment | None = None,
                 query_stage: int = 4, upsample: str = "bilinear", refine_dim: int = 0):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.generator = generator
        self.alignment = alignment
        self.query_stage = query_stage - 1
        subpixel = upsample == "subpixel"
        self.head = nn.Conv2d(dim if alignment is None else 2 * dim, 16 if subpixel else 1, 1, has_bias=True)
        self.to_input_size = SubPixel(4) if subpixel else Resize(size)
        self.refine = Refinement(refine_dim) if refine_dim else None

    def construct(self, image, ids, word_mask):
        return self.forward(image, ids, word_mask)[0]

    def forward(self, image, ids, word_mask):
        """(logits (B,1,H,W), Y (B,C_d,H/4,W/4), proposals (B,P,N), weights (B,N), words ((B,h,P_i,T), …), coarse).

        ``words`` is each aligned stage's attention; proposals and weights are None without sentence-mask alignment;
        ``coarse`` are the logits before refinement.
        """
        stages, words, attention = self.encoder(image, ids, word_mask)
        y = self.decoder(stages)
        pixels, proposals, weights = y, None, None
        if self.alignment is not None:
            b, c, h, w = y.shape
            masks = self.generator(stages[self.query_stage])
            sentence = words[:, 0]  # [CLS] of the last fused text layer
            tokens = y.reshape((b, c, h * w)).transpose((0, 2, 1))
            aligned, proposals, weights = self.alignment(tokens, masks, sentence)
            pixels = ops.concat((y, aligned.transpose((0, 2, 1)).reshape(y.shape)), 1)
        coarse = self.to_input_size(self.head(pixels))
        logits = coarse if self.refine is None else self.refine(coarse, image)
        return logits, y, proposals, weights, attention, coarse
