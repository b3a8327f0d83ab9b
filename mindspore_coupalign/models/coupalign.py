"""CoupAlign (Zhang et al., NeurIPS 2022): word-pixel alignment in the encoders, sentence-mask alignment at the end.

Shapes: image (B, 3, H, W); ids, word_mask (B, T) int32; logits (B, 1, H, W), positive inside the mask; has_target (B,),
positive where the image has what the sentence refers to.
"""

from typing import NamedTuple

from mindspore import Tensor, nn, ops

from mindspore_coupalign.models.encoder import FusedEncoder
from mindspore_coupalign.models.heads.auxiliary import ProposalHead, TargetHead
from mindspore_coupalign.models.mask_generator import MaskGenerator
from mindspore_coupalign.models.sentence_mask import SentenceMaskAlignment


class Outputs(NamedTuple):
    """The mask's logits and what losses and figures read beside them; P_i pixels at stage i, P at stride 4.

    Compiled graphs know plain tuples alone: there the names below are indexes, ``outputs[PIXELS]``; outside,
    ``Outputs(*network.outputs(image, ids, word_mask))`` has them as attributes.
    """

    logits: Tensor  # (B, 1, H, W)
    pixels: Tensor  # (B, C_d, H/4, W/4) the pixel embedding Y
    proposals: Tensor | None  # (B, P, N); None without sentence-mask alignment, weights too
    weights: Tensor | None  # (B, N) the sentence's, of the proposals
    attention: tuple  # (B, heads, P_i, T) of each fused stage, pixels over words
    stage_logits: tuple  # (B, P_i, 1) of the stage heads on stages 1 and 2; empty without
    proposal_logits: Tensor | None  # (B, P, 1) of the proposal head
    has_target: Tensor | None  # (B,) of the target-presence head


LOGITS, PIXELS, PROPOSALS, WEIGHTS, ATTENTION, STAGE_LOGITS, PROPOSAL_LOGITS, HAS_TARGET = range(len(Outputs._fields))


class CoupAlign(nn.Cell):
    """``construct`` gives the mask logits, with a target-presence head the tuple (logits, has_target); ``outputs``
    those and the intermediates for losses and figures.

    The exported graph is ``construct``'s: what only ``outputs`` returns is not in it.

    Args:
        encoder: image and words -> four stages' features, fused words, attention.
        pixel_decoder: the stages' features -> the pixel embedding (B, C_d, H/4, W/4).
        mask_generator, alignment: mask proposals, and their alignment with the sentence; both or neither.
        head: pixels and image -> logits at stride 4 and at the input's size.
        query_stage: the stage, 1 to 4, whose features the mask generator reads.
        stage_heads: linear heads on the first stages, for a loss that teaches the fusion directly.
        proposal_head: the same for the sentence-mask alignment.
        target_head: whether the image has what the sentence refers to; needs the alignment.
    """

    def __init__(self, *, encoder: FusedEncoder, pixel_decoder: nn.Cell, mask_generator: MaskGenerator | None,
                 alignment: SentenceMaskAlignment | None, head: nn.Cell, query_stage: int = 4,
                 stage_heads: nn.CellList | None = None, proposal_head: ProposalHead | None = None,
                 target_head: TargetHead | None = None):
        super().__init__()
        self.encoder = encoder
        self.pixel_decoder = pixel_decoder
        self.mask_generator = mask_generator
        self.alignment = alignment
        self.query_index = query_stage - 1
        self.head = head
        self.stage_heads = stage_heads if stage_heads is not None else nn.CellList([])
        self.proposal_head = proposal_head
        self.target_head = target_head

    def construct(self, image, ids, word_mask):
        outputs = self.outputs(image, ids, word_mask)
        if self.target_head is None:
            return outputs[LOGITS]
        return outputs[LOGITS], outputs[HAS_TARGET]

    def outputs(self, image, ids, word_mask):
        """The fields of Outputs as a tuple."""
        stages, words, attention = self.encoder(image, ids, word_mask)
        y = self.pixel_decoder(stages)
        sentence = words[:, 0]  # [CLS] of the last text layer
        pixels, proposals, weights, proposal_logits, has_target = y, None, None, None, None
        if self.alignment is not None:
            b, c, h, w = y.shape
            masks = self.mask_generator(stages[self.query_index])
            tokens = y.reshape((b, c, h * w)).transpose((0, 2, 1))
            aligned, proposals, weights = self.alignment(tokens, masks, sentence)
            if self.proposal_head is not None:
                proposal_logits = self.proposal_head(proposals, weights)
            pixels = ops.concat((y, aligned.transpose((0, 2, 1)).reshape(y.shape).astype(y.dtype)), 1)
        coarse, logits = self.head(pixels, image)
        if self.target_head is not None:
            has_target = self.target_head(pixels, coarse, sentence)
        stage_logits = ()
        for i in range(len(self.stage_heads)):
            stage_logits += (self.stage_heads[i](stages[i]),)
        return logits, y, proposals, weights, attention, stage_logits, proposal_logits, has_target

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Title -> where the part is: beginnings of its parameters' and cells' names; in the order of computation."""
        stages = range(1, 5)
        rows = {"backbone stem": ("encoder.backbone.embed",)}
        for i in stages:
            cells = ("downsamples." + str(i - 2),) if i > 1 else ()
            rows[f"backbone stage {i}"] = tuple(f"encoder.backbone.{cell}" for cell in
                                                (*cells, f"stages.{i - 1}", f"outputs.{i - 1}"))
        rows["text embedding"] = ("encoder.text.embed",)
        rows |= {f"text group {i}": (f"encoder.text.groups.{i - 1}",) for i in stages}
        rows |= {f"fusion {i}": (f"encoder.fusion.{self.encoder.slot[i - 1]}",) for i in stages
                 if self.encoder.fused[i - 1]}
        rows |= {"pixel decoder": ("pixel_decoder",)}
        if self.alignment is not None:
            rows |= {"mask generator": ("mask_generator",), "sentence-mask alignment": ("alignment",)}
        rows["head"] = ("head",)
        if self.target_head is not None:
            rows["target-presence head"] = ("target_head",)
        if len(self.stage_heads):
            rows["stage heads (training)"] = ("stage_heads",)
        if self.proposal_head is not None:
            rows["proposal head (training)"] = ("proposal_head",)
        return rows
