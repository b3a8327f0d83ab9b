"""CoupAlign (Zhang et al., NeurIPS 2022): word-pixel alignment in the encoders, sentence-mask alignment at the end.

Shapes: image (B, 3, H, W); ids, word_mask (B, T) int32; logits (B, 1, H, W), positive inside the mask; exists (B,),
positive where the sentence means anything.
"""

from typing import NamedTuple

from mindspore import Tensor, nn, ops

from mindspore_coupalign.models.encoder import FusedEncoder
from mindspore_coupalign.models.guided_filter import GuidedFilter
from mindspore_coupalign.models.layers import Resize
from mindspore_coupalign.models.mask_generator import MaskGenerator, PixelDecoder
from mindspore_coupalign.models.sentence_mask import ExistenceHead, ProposalHead, SentenceMaskAlignment


class Outputs(NamedTuple):
    """What losses and figures read beside the mask; P_i pixels at stage i, P of the pixel embedding at stride 4.

    Compiled graphs know plain tuples alone: there the names below are indexes, ``outputs[PIXELS]``; outside,
    ``Outputs(*network(image, ids, word_mask))`` has them as attributes.
    """

    logits: Tensor  # (B, 1, H, W)
    pixels: Tensor  # (B, C_d, H/4, W/4) the pixel embedding Y
    proposals: Tensor | None  # (B, P, N); None without sentence-mask alignment, weights too
    weights: Tensor | None  # (B, N) the sentence's, of the proposals
    attention: tuple  # (B, heads, P_i, T) of each aligned stage, pixels over words
    stage_logits: tuple  # (B, P_i, 1) of the stage heads on stages 1 and 2; empty without
    proposal_logits: Tensor | None  # (B, P, 1) of the proposal head
    exists: Tensor | None  # (B,) of the existence head


LOGITS, PIXELS, PROPOSALS, WEIGHTS, ATTENTION, STAGE_LOGITS, PROPOSAL_LOGITS, EXISTS = range(len(Outputs._fields))


class CoupAlign(nn.Cell):
    """``construct`` gives the mask logits, with an existence head the tuple (logits, exists); ``outputs`` those and the
    intermediates for losses and figures.

    The exported graph is ``construct``'s: what only ``outputs`` returns is not in it.

    Args:
        upsample: logits from stride 4 to the input's size: "bilinear", or "guided", where the image guides them.
        stage_heads: a linear head on each of the first two fused stages predicts the mask too, for a loss that teaches
            word-pixel alignment directly.
        proposal_head: the same for the sentence-mask alignment.
        no_target: a head says whether the sentence means anything; it needs the sentence-mask alignment.
    """

    def __init__(self, encoder: FusedEncoder, decoder: PixelDecoder, size: tuple, dim: int,
                 generator: MaskGenerator | None = None, alignment: SentenceMaskAlignment | None = None,
                 query_stage: int = 4, upsample: str = "bilinear", stage_heads: bool = False,
                 proposal_head: bool = False, no_target: bool = False):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.generator = generator
        self.alignment = alignment
        self.query_stage = query_stage - 1
        self.head = nn.Conv2d(dim if alignment is None else 2 * dim, 1, 1, has_bias=True)
        self.guided = GuidedFilter((size[0] // 4, size[1] // 4), 4) if upsample == "guided" else None
        self.stage_heads = nn.CellList([nn.Dense(c, 1, bias_init="zeros") for c in encoder.vision.channels[:2]]
                                       if stage_heads else [])
        self.proposal_head = ProposalHead() if proposal_head else None
        self.existence_head = ExistenceHead(dim, encoder.text.hidden) if no_target else None
        self.to_input_size = Resize(size)

    def construct(self, image, ids, word_mask):
        outputs = self.outputs(image, ids, word_mask)
        if self.existence_head is None:
            return outputs[LOGITS]
        return outputs[LOGITS], outputs[EXISTS]

    def outputs(self, image, ids, word_mask):
        """The fields of Outputs as a tuple."""
        stages, words, attention = self.encoder(image, ids, word_mask)
        y = self.decoder(stages)
        pixels, proposals, weights, proposal_logits, exists = y, None, None, None, None
        if self.alignment is not None:
            b, c, h, w = y.shape
            masks = self.generator(stages[self.query_stage])
            sentence = words[:, 0]  # [CLS] of the last fused text layer
            tokens = y.reshape((b, c, h * w)).transpose((0, 2, 1))
            aligned, proposals, weights = self.alignment(tokens, masks, sentence)
            if self.proposal_head is not None:
                proposal_logits = self.proposal_head(proposals, weights)
            pixels = ops.concat((y, aligned.transpose((0, 2, 1)).reshape(y.shape).astype(y.dtype)), 1)
        coarse = self.head(pixels)
        if self.existence_head is not None:
            exists = self.existence_head(pixels, coarse, words[:, 0])
        logits = self.to_input_size(coarse) if self.guided is None else self.guided(coarse, image)
        stage_logits = ()
        for i in range(len(self.stage_heads)):
            stage_logits += (self.stage_heads[i](stages[i]),)
        return logits, y, proposals, weights, attention, stage_logits, proposal_logits, exists
