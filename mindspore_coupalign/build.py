"""Config -> network, with or without a checkpoint's weights. A part gets its own settings; no cell reads a Config."""

import mindspore as ms
import numpy as np

from mindspore_coupalign.config import Config
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.mindspore_calls import device_target, operator_by_operator
from mindspore_coupalign.models.bert import Bert
from mindspore_coupalign.models.coupalign import CoupAlign
from mindspore_coupalign.models.encoder import FusedEncoder
from mindspore_coupalign.models.heads.auxiliary import ProposalHead, TargetHead, stage_heads
from mindspore_coupalign.models.mask_generator import MaskGenerator
from mindspore_coupalign.models.parts import BackboneSettings, find, is_own
from mindspore_coupalign.models.precision import restored_precision, set_precision
from mindspore_coupalign.models.sentence_mask import SentenceMaskAlignment
from mindspore_coupalign.weights.checkpoint import Checkpoint, load_parameters
from mindspore_coupalign.weights.load import Loaded, load_backbone_weights, load_text_weights


def build_model(config: Config, vocab_size: int) -> CoupAlign:
    """The whole architecture as one constructor tree; parameters are initialised from MindSpore's seed."""
    model, size = config.model, (config.data.image_size, config.data.image_size)
    backbone, text = build_backbone(model.backbone, size), build_text(config, vocab_size)
    channels, sizes, dim, word_dim = backbone.channels, backbone.sizes, model.decoder.dim, text.hidden
    fusion, stage = find("fusion", model.fusion.name), model.query_stage - 1
    fusions = {i: fusion(model.fusion, stage=i, pixel_dim=channels[i - 1], word_dim=word_dim)
               for i in sorted(model.fusion.stages)}
    encoder = FusedEncoder(backbone=backbone, text=text, fusions=fusions)
    decoder = find("decoder", model.decoder.name)(model.decoder, channels=channels, sizes=sizes)
    generator = alignment = None
    if model.sentence_mask:
        generator = MaskGenerator(channels[stage], sizes[stage], dim, model.queries, model.query_layers,
                                  model.query_heads, model.query_ffn)
        alignment = SentenceMaskAlignment(dim, word_dim)
    inputs = 2 * dim if model.sentence_mask else dim
    head = find("head", model.head.name)(model.head, channels=inputs, size=size)
    pixels = [(1, height * width, c) for (height, width), c in zip(sizes, channels, strict=True)]
    words, embedding = (1, config.data.max_tokens, word_dim), (1, dim, *sizes[0])
    for i, cell in fusions.items():
        attention = (1, "heads", pixels[i - 1][1], words[1])
        _check_part("model.fusion", cell, (pixels[i - 1], words, (1, 1, 1, words[1])),
                    (pixels[i - 1], words, pixels[i - 1], attention))
    _check_part("model.decoder", decoder, (tuple(pixels),), (embedding,))
    _check_part("model.head", head, ((1, inputs, *sizes[0]), (1, 3, *size)), ((1, 1, *sizes[0]), (1, 1, *size)))
    return CoupAlign(encoder=encoder, pixel_decoder=decoder, mask_generator=generator, alignment=alignment, head=head,
                     query_stage=model.query_stage, stage_heads=stage_heads(channels) if model.stage_heads else None,
                     proposal_head=ProposalHead() if model.proposal_head else None,
                     target_head=TargetHead(dim, word_dim) if model.no_target else None)


def _check_part(key: str, cell, inputs: tuple, wanted: tuple):
    """Run a part from outside the package once, and compare the shapes that it returns with docs/extending.md.

    Raises:
        UserError: another number of values, or another shape.
    """
    if not is_own(type(cell)):
        return

    def zeros(shape):
        return tuple(map(zeros, shape)) if isinstance(shape[0], tuple) else ms.Tensor(np.zeros(shape, np.float32))

    with operator_by_operator():
        returned = cell(*map(zeros, inputs))
    returned = returned if isinstance(returned, tuple) else (returned,)
    shapes = [tuple(value.shape) for value in returned]
    if len(shapes) != len(wanted) or any(
            len(a) != len(b) or any(isinstance(y, int) and x != y for x, y in zip(a, b, strict=True))
            for a, b in zip(shapes, wanted, strict=True)):
        raise UserError(f"{key}: {type(cell).__name__} returns {', '.join(map(str, shapes))} for a batch of one, "
                        f"expected are {', '.join(map(str, wanted))} (docs/extending.md)")


def build_backbone(settings: BackboneSettings, size: tuple):
    """The backbone of a configuration for images of one size (H, W)."""
    return find("backbone", settings.name)(settings, size=size)


def build_text(config: Config, vocab_size: int) -> Bert:
    """The text encoder of a configuration, in one group of layers per visual stage."""
    text = config.model.text
    return Bert(vocab_size, text.hidden, text.heads, text.ffn, text.groups, text.max_positions, config.data.max_tokens,
                text.dropout, text.activation)


def load_pretrained(model: CoupAlign, config: Config) -> list[Loaded]:
    """Fill the encoders from ``model.backbone_weights`` and ``model.text_weights`` where they are set.

    Raises:
        UserError: a file that does not fit (see ``weights.load``), or frozen statistics without a file to have them
            from.
    """
    return load_pretrained_backbone(model, config) + load_pretrained_text(model, config)


def load_pretrained_backbone(model: CoupAlign, config: Config) -> list[Loaded]:
    """The backbone's part of ``load_pretrained``."""
    backbone = config.model.backbone
    if config.model.backbone_weights:
        return [load_backbone_weights(model.encoder.backbone, backbone, config.model.backbone_weights)]
    if getattr(backbone, "freeze_batch_norm", False):
        raise UserError(f"model.backbone.freeze_batch_norm=true normalises {backbone.name} by pretrained statistics: "
                        "set model.backbone_weights, or model.backbone.freeze_batch_norm=false to train from scratch")
    return []


def load_pretrained_text(model: CoupAlign, config: Config) -> list[Loaded]:
    """The text encoder's part of ``load_pretrained``."""
    if config.model.text_weights:
        return [load_text_weights(model.encoder.text, config.model.text, config.model.text_weights)]
    return []


def restore_model(checkpoint: Checkpoint, config: Config | None = None, amp: str | None = None,
                  target: str | None = None) -> tuple[CoupAlign, SentenceTokenizer]:
    """The network with a checkpoint's weights (the averaged ones where it has them) and its tokenizer.

    Args:
        config: of the network; default: the checkpoint's.
        amp: level of mixed precision; default: the level that the checkpoint's training has on ``target``.
        target: device that will compute; default: MindSpore's current one.

    Raises:
        UserError: ``config`` describes another network than the checkpoint's, or the target cannot compute at ``amp``.
    """
    precision = restored_precision(checkpoint, amp, target or device_target())
    config = config or checkpoint.config
    tokenizer = SentenceTokenizer.from_json(checkpoint.tokenizer, config.data.max_tokens, str(checkpoint.path))
    model = build_model(config, tokenizer.vocab_size)
    weights = checkpoint.section("model") | checkpoint.section("ema")  # what is frozen has no average
    load_parameters(model.get_parameters(), weights, str(checkpoint.path))
    model.set_train(False)
    set_precision(model, precision)
    return model, tokenizer
