"""Config -> network, losses, parameter groups, learning rates. The only reader of Config beside the entry points."""

import math

from mindspore_coupalign.checkpoint import Checkpoint, load_parameters
from mindspore_coupalign.config import Config, ModelConfig
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.losses import MaskLoss, PixelContrast
from mindspore_coupalign.models.bert import Bert
from mindspore_coupalign.models.coupalign import CoupAlign
from mindspore_coupalign.models.encoder import FusedEncoder
from mindspore_coupalign.models.mask_generator import MaskGenerator, PixelDecoder
from mindspore_coupalign.models.sentence_mask import SentenceMaskAlignment
from mindspore_coupalign.models.swin import Swin
from mindspore_coupalign.muon import matrix_shape
from mindspore_coupalign.optim import PACK_BELOW, Optimizer
from mindspore_coupalign.train_step import Objective, TrainStep

MUON_SIDE = 96  # on CPU the orthogonal factor of a matrix with two longer sides costs more than it gives


def build_model(config: Config, vocab_size: int) -> CoupAlign:
    """The whole architecture as one constructor tree; parameters are initialised from MindSpore's seed."""
    model: ModelConfig = config.model
    image, text = model.image, model.text
    size = (config.data.image_size, config.data.image_size)
    vision = Swin(size, image.embed_dim, image.depths, image.heads, image.window, image.mlp_ratio, image.drop_path,
                  image.activation, image.absolute_position)
    bert = Bert(vocab_size, text.hidden, text.heads, text.ffn, text.groups, text.max_positions,
                config.data.max_tokens, text.dropout, text.activation)
    encoder = FusedEncoder(vision, bert, model.wpa_stages, model.wpa_heads, model.wpa_gate_zero,
                           model.wpa_gate_opening)
    decoder = PixelDecoder(vision.channels, vision.sizes, model.decoder_dim)
    generator = alignment = None
    if model.sentence_mask:
        stage = model.query_stage - 1
        generator = MaskGenerator(vision.channels[stage], vision.sizes[stage], model.decoder_dim, model.queries,
                                  model.query_layers, model.query_heads, model.query_ffn)
        alignment = SentenceMaskAlignment(model.decoder_dim, text.hidden)
    return CoupAlign(encoder, decoder, size, model.decoder_dim, generator, alignment, model.query_stage, model.upsample,
                     stage_masks=config.loss.stages > 0)


def learning_rate(config: Config, step: int, total_steps: int, clock: float = 0.0) -> float:
    """The rate of one step: linear warm-up, then polynomial (power 0.9) or cosine to 0.

    Args:
        clock: share of the time budget used, 0..1; the decay follows the steps or the clock, whichever is ahead.
    """
    train = config.train
    warmup = min(train.warmup_steps, total_steps - 1)
    progress = min(max((step - warmup) / max(1, total_steps - warmup), clock, 0.0), 1.0)
    decay = (1 - progress) ** 0.9 if train.schedule == "poly" else 0.5 * (1 + math.cos(math.pi * progress))
    return train.lr * min(1.0, (step + 1) / (warmup + 1)) * decay


def parameter_groups(model, weight_decay: float, position_bias_rate: float = 1.0, muon_rate: float = 0.0) -> list:
    """The optimizer's groups: matrices decay; norms, biases, position embeddings and position-bias tables do not.

    The tables learn ``position_bias_rate`` times as fast: Adam moves a value by at most the rate per step, and a score
    has to move by several units before attention prefers a direction. With a ``muon_rate``, the matrices of dense
    layers and of the decoder's convolutions, all but the largest, are a fourth group that Muon moves.
    """
    decayed, plain, tables, matrices = [], [], [], []
    for parameter in model.trainable_params():
        if "position_bias_table" in parameter.name:
            tables.append(parameter)
        elif parameter.ndim < 2 or "position_embeddings" in parameter.name:
            plain.append(parameter)
        elif muon_rate > 0 and _is_muons(parameter):
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0},
            {"params": tables, "weight_decay": 0.0, "rate": position_bias_rate},
            {"params": matrices, "weight_decay": weight_decay, "rate": muon_rate, "muon": True}]


def _is_muons(parameter) -> bool:
    """Not embeddings, nor rows that are read one by one, nor the head, nor what sees the image's own values."""
    if not parameter.name.endswith(".weight") or parameter.name.endswith("embed.proj.weight"):
        return False
    return 1 < min(matrix_shape(parameter)) <= MUON_SIDE and parameter.size < PACK_BELOW


def build_train_step(model, config: Config, ranks: int = 1) -> TrainStep:
    """The jitted step with its losses and optimizer."""
    loss, train = config.loss, config.train
    objective = Objective(model, MaskLoss(), PixelContrast(loss.temperature, loss.negatives),
                          (loss.bce, loss.dice, loss.contrast, loss.stages))
    optimizer = Optimizer(parameter_groups(model, train.weight_decay, train.position_bias_rate, train.muon_rate))
    return TrainStep(objective, optimizer, train.clip_norm, train.ema, ranks)


def restore_model(checkpoint: Checkpoint, config: Config | None = None) -> tuple[CoupAlign, SentenceTokenizer]:
    """The network with a checkpoint's weights (the averaged ones where it has them) and its tokenizer.

    Raises:
        UserError: ``config`` describes another network than the checkpoint's.
    """
    config = config or checkpoint.config
    tokenizer = SentenceTokenizer.from_json(checkpoint.tokenizer, config.data.max_tokens, str(checkpoint.path))
    model = build_model(config, tokenizer.vocab_size)
    load_parameters(model.get_parameters(), checkpoint.section("ema") or checkpoint.section("model"),
                    str(checkpoint.path))
    model.set_train(False)
    return model, tokenizer
