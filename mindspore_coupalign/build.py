"""Config -> network, losses, parameter groups. With schedule.py the only reader of Config beside the entry points."""

import mindspore as ms

from mindspore_coupalign.checkpoint import Checkpoint, load_parameters
from mindspore_coupalign.config import Config, ImageConfig, ModelConfig
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.losses import MaskLoss, PixelContrast
from mindspore_coupalign.models.bert import Bert
from mindspore_coupalign.models.coupalign import CoupAlign
from mindspore_coupalign.models.darknet import darknet
from mindspore_coupalign.models.encoder import FusedEncoder
from mindspore_coupalign.models.lavt import LavtEncoder
from mindspore_coupalign.models.mask_generator import MaskGenerator, PixelDecoder
from mindspore_coupalign.models.resnet import resnet
from mindspore_coupalign.models.sentence_mask import SentenceMaskAlignment
from mindspore_coupalign.models.swin import Swin
from mindspore_coupalign.muon import matrix_shape
from mindspore_coupalign.optim import PACK_BELOW, Optimizer
from mindspore_coupalign.precision import choose_precision, restored_precision, set_precision
from mindspore_coupalign.train_step import Objective, TrainStep
from mindspore_coupalign.weights.load import Loaded, load_image_weights, load_text_weights

SCALE_START, SCALE_WINDOW = 2.0**16, 1000  # of the loss; doubled after so many steps without an overflow
MUON_SIDE = 96  # on CPU the orthogonal factor of a matrix with two longer sides costs more than it gives


def build_model(config: Config, vocab_size: int) -> CoupAlign:
    """The whole architecture as one constructor tree; parameters are initialised from MindSpore's seed."""
    model: ModelConfig = config.model
    size = (config.data.image_size, config.data.image_size)
    vision = build_vision(model.image, size)
    bert = build_text(config, vocab_size)
    if model.name == "lavt":
        encoder = LavtEncoder(vision, bert, model.wpa_gate_opening)
    else:
        encoder = FusedEncoder(vision, bert, model.wpa_stages, model.wpa_heads, model.wpa_gate_zero,
                               model.wpa_gate_opening)
    decoder = PixelDecoder(vision.channels, vision.sizes, model.decoder_dim)
    generator = alignment = None
    if model.has_proposals:
        stage = model.query_stage - 1
        generator = MaskGenerator(vision.channels[stage], vision.sizes[stage], model.decoder_dim, model.queries,
                                  model.query_layers, model.query_heads, model.query_ffn)
        alignment = SentenceMaskAlignment(model.decoder_dim, bert.hidden)
    return CoupAlign(encoder, decoder, size, model.decoder_dim, generator, alignment, model.query_stage, model.upsample,
                     stage_masks=config.loss.stages > 0, picked_mask=config.loss.proposals > 0)


def build_vision(image: ImageConfig, size: tuple):
    """The backbone of a configuration behind its protocol (see ``swin.Swin``), for images of one size (H, W)."""
    frozen = image.norm == "frozen"
    if image.name == "resnet":
        return resnet(size, image.embed_dim, image.depths, frozen)
    if image.name == "darknet":
        return darknet(size, image.embed_dim, image.depths, frozen, image.slope)
    return Swin(size, image.embed_dim, image.depths, image.heads, image.window, image.mlp_ratio, image.drop_path,
                image.activation, image.absolute_position)


def build_text(config: Config, vocab_size: int) -> Bert:
    """The text encoder of a configuration, in one group of layers per visual stage."""
    text = config.model.text
    return Bert(vocab_size, text.hidden, text.heads, text.ffn, text.groups, text.max_positions, config.data.max_tokens,
                text.dropout, text.activation)


def load_pretrained(model: CoupAlign, config: Config) -> list[Loaded]:
    """Fill the encoders from ``model.image_weights`` and ``model.text_weights`` where they are set.

    Raises:
        UserError: a file that does not fit (see ``weights.load``), or frozen statistics without a file to have them
            from.
    """
    return load_pretrained_image(model, config) + load_pretrained_text(model, config)


def load_pretrained_image(model: CoupAlign, config: Config) -> list[Loaded]:
    """The vision encoder's part of ``load_pretrained``."""
    image = config.model.image
    if config.model.image_weights:
        return [load_image_weights(model.encoder.vision, image, config.model.image_weights)]
    if image.name != "swin" and image.norm == "frozen":
        raise UserError(f"model.image.norm=frozen normalises {image.name} by pretrained statistics: set "
                        "model.image_weights, or model.image.norm=batch to train it from scratch")
    return []


def load_pretrained_text(model: CoupAlign, config: Config) -> list[Loaded]:
    """The text encoder's part of ``load_pretrained``."""
    if config.model.text_weights:
        return [load_text_weights(model.encoder.text, config.model.text, config.model.text_weights)]
    return []


def freeze(model, prefixes: tuple):
    """Keep the parameters whose names start so out of training.

    Raises:
        UserError: no parameter's name starts so, or none is left to train.
    """
    for prefix in prefixes:
        found = [p for p in model.get_parameters() if p.name.startswith(prefix)]
        if not found:
            raise UserError(f"train.freeze: no parameter's name starts with '{prefix}'; names start with "
                            "encoder.vision.stages.0, encoder.text.groups.1, decoder and the like")
        for parameter in found:
            parameter.requires_grad = False
    if not model.trainable_params():
        raise UserError("train.freeze: leaves nothing to train")


def parameter_groups(model, weight_decay: float, position_bias_rate: float = 1.0, muon_rate: float = 0.0,
                     rates: dict | None = None, decayed: str = "matrices") -> list:
    """The optimizer's groups: matrices decay; norms, biases, position embeddings and position-bias tables do not.

    The tables learn ``position_bias_rate`` times as fast: Adam moves a value by at most the rate per step, and a score
    has to move by several units before attention prefers a direction. With a ``muon_rate``, the matrices of dense
    layers and of the decoder's convolutions, all but the largest, are a fourth group that Muon moves.

    Args:
        rates: factors of the rate by prefix of the parameters' names; each of them gets four groups of its own.
        decayed: "matrices", as above; "all"; or "lavt": all but the image encoder's norms and position-bias tables, as
            in LAVT's code, where biases and the norms of the text encoder and decoder decay.
    """
    groups = []
    left = model.trainable_params()
    rates = {"": 1.0} | (rates or {})
    for prefix in sorted(rates, key=len, reverse=True):
        own = [p for p in left if p.name.startswith(prefix)]
        left = [p for p in left if not p.name.startswith(prefix)]
        groups += _kinds(own, weight_decay, position_bias_rate, muon_rate, rates[prefix], decayed)
    return groups


def _kinds(parameters: list, weight_decay: float, position_bias_rate: float, muon_rate: float, factor: float,
           rule: str) -> list:
    decayed, plain, tables, matrices = [], [], [], []
    for parameter in parameters:
        if "position_bias_table" in parameter.name:
            tables.append(parameter)
        elif _stays(parameter, rule):
            plain.append(parameter)
        elif muon_rate > 0 and _is_muons(parameter):
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay, "rate": factor},
            {"params": plain, "weight_decay": 0.0, "rate": factor},
            {"params": tables, "weight_decay": weight_decay if rule == "all" else 0.0,
             "rate": factor * position_bias_rate},
            {"params": matrices, "weight_decay": weight_decay, "rate": factor * muon_rate, "muon": True}]


def _stays(parameter, rule: str) -> bool:
    """Whether a parameter that is no position-bias table has no weight decay."""
    if rule == "matrices":
        return parameter.ndim < 2 or "position_embeddings" in parameter.name
    image_norm = parameter.name.startswith("encoder.vision.") and parameter.name.endswith((".gamma", ".beta"))
    return rule == "lavt" and image_norm


def _is_muons(parameter) -> bool:
    """Not embeddings, nor rows that are read one by one, nor the head, nor what sees the image's own values."""
    if not parameter.name.endswith(".weight") or parameter.name.endswith("embed.proj.weight"):
        return False
    return 1 < min(matrix_shape(parameter)) <= MUON_SIDE and parameter.size < PACK_BELOW


def build_train_step(model, config: Config, ranks: int = 1, target: str = "CPU") -> TrainStep:
    """The jitted step with its losses, precision and optimizer.

    Raises:
        UserError: a precision that the target has not, or a part to freeze that is not there.
    """
    loss, train = config.loss, config.train
    precision = choose_precision(train.amp, train.amp_dtype, target)
    set_precision(model, precision)
    scaler = None
    if precision.amp_dtype == "float16":
        scaler = ms.amp.DynamicLossScaler(SCALE_START, 2, SCALE_WINDOW)
    freeze(model, train.freeze)
    objective = Objective(model, MaskLoss(loss.class_weights), PixelContrast(loss.temperature, loss.negatives),
                          (loss.bce, loss.dice, loss.contrast, loss.stages, loss.proposals))
    rates = {"encoder.vision.": train.image_rate, "encoder.text.": train.text_rate, "": train.head_rate}
    groups = parameter_groups(model, train.weight_decay, train.position_bias_rate, train.muon_rate,
                              {prefix: rate for prefix, rate in rates.items() if rate != 1}, train.decayed)
    return TrainStep(objective, Optimizer(groups), train.clip_norm, train.ema, ranks, scaler, train.accumulate,
                     saturates=target == "Ascend")


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
    precision = restored_precision(checkpoint, amp, target or ms.get_context("device_target"))
    config = config or checkpoint.config
    tokenizer = SentenceTokenizer.from_json(checkpoint.tokenizer, config.data.max_tokens, str(checkpoint.path))
    model = build_model(config, tokenizer.vocab_size)
    weights = checkpoint.section("model") | checkpoint.section("ema")  # what is frozen has no average
    load_parameters(model.get_parameters(), weights, str(checkpoint.path))
    model.set_train(False)
    set_precision(model, precision)
    return model, tokenizer
