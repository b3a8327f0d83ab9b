"""Config -> what training needs: the initial network, losses, precision, parameter groups, optimizer, step."""

import mindspore as ms

from mindspore_coupalign import build
from mindspore_coupalign.config import Config
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.models.precision import choose_precision, set_precision
from mindspore_coupalign.models.recompute import recompute_blocks
from mindspore_coupalign.training.init_from import InitialWeights
from mindspore_coupalign.training.muon import matrix_shape
from mindspore_coupalign.training.objective import Objective
from mindspore_coupalign.training.optimizer import PACK_BELOW, Optimizer
from mindspore_coupalign.training.step import TrainStep
from mindspore_coupalign.weights.checkpoint import Checkpoint, current_name

SCALE_START, SCALE_WINDOW = 2.0**16, 1000  # of the loss; doubled after so many steps without an overflow
MUON_SIDE = 96  # on CPU, the orthogonal factor of a matrix with two longer sides is not worth its time


def build_initial_model(config: Config, vocabulary: int, initial: InitialWeights | None = None,
                        state: Checkpoint | None = None) -> tuple:
    """(The network with the weights that a run starts from, lines about them). Those of a ``state`` are not loaded yet.

    Raises:
        UserError: weights that do not fit.
    """
    model = build.build_model(config, vocabulary)
    if initial is not None:
        initial.load(model, config)
        return model, initial.lines
    if state is not None:  # every parameter comes from there
        return model, []
    return model, [loaded.table() for loaded in build.load_pretrained(model, config)]


def freeze(model, prefixes: tuple):
    """Exclude the parameters whose names have one of the prefixes from training.

    Raises:
        UserError: no parameter's name has a prefix, or none is left to train.
    """
    for prefix in map(current_name, prefixes):
        frozen = [p for p in model.get_parameters() if p.name.startswith(prefix)]
        if not frozen:
            raise UserError(f"train.freeze: no parameter's name starts with '{prefix}'; names start with "
                            "encoder.backbone.stages.0, encoder.text.groups.1, pixel_decoder and the like")
        for parameter in frozen:
            parameter.requires_grad = False
    if not model.trainable_params():
        raise UserError("train.freeze: leaves nothing to train")


def parameter_groups(model, weight_decay: float, position_bias_lr_mult: float = 1.0, muon_lr_mult: float = 0.0,
                     lr_mults: dict | None = None, decayed: str = "matrices") -> list:
    """The optimizer's groups. Matrices have weight decay; norms, biases, position embeddings and position-bias tables
    have none.

    The tables have the multiplier ``position_bias_lr_mult``: Adam moves a value by at most the learning rate per step,
    and a score has to move by several units before attention prefers a direction. With a ``muon_lr_mult``, the matrices
    of dense layers and of the decoder's convolutions, all but the largest, are a fourth group that Muon moves.

    Args:
        lr_mults: learning-rate multipliers by prefix of the parameters' names; each gets four groups of its own.
        decayed: "matrices", as above; "all"; or "lavt": all but the image encoder's norms and position-bias tables, as
            in LAVT's code, where biases and the norms of text encoder and decoder have weight decay.
    """
    groups, left, lr_mults = [], model.trainable_params(), {"": 1.0} | (lr_mults or {})
    for prefix in sorted(lr_mults, key=len, reverse=True):
        own = [p for p in left if p.name.startswith(prefix)]
        left = [p for p in left if not p.name.startswith(prefix)]
        groups += _kinds(own, weight_decay, position_bias_lr_mult, muon_lr_mult, lr_mults[prefix], decayed)
    return groups


def _kinds(parameters: list, weight_decay: float, position_bias_lr_mult: float, muon_lr_mult: float, factor: float,
           rule: str) -> list:
    decayed, plain, tables, matrices = [], [], [], []
    for parameter in parameters:
        if "position_bias_table" in parameter.name:
            tables.append(parameter)
        elif _is_undecayed(parameter, rule):
            plain.append(parameter)
        elif muon_lr_mult > 0 and _is_for_muon(parameter):
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay, "lr_mult": factor},
            {"params": plain, "weight_decay": 0.0, "lr_mult": factor},
            {"params": tables, "weight_decay": weight_decay if rule == "all" else 0.0,
             "lr_mult": factor * position_bias_lr_mult},
            {"params": matrices, "weight_decay": weight_decay, "lr_mult": factor * muon_lr_mult, "muon": True}]


def _is_undecayed(parameter, rule: str) -> bool:
    """Whether a parameter that is no position-bias table has no weight decay."""
    if rule == "matrices":
        return parameter.ndim < 2 or "position_embeddings" in parameter.name
    image_norm = parameter.name.startswith("encoder.backbone.") and parameter.name.endswith((".gamma", ".beta"))
    return rule == "lavt" and image_norm


def _is_for_muon(parameter) -> bool:
    """Not for embeddings, queries, the head, and the first layer of the image encoder."""
    if not parameter.name.endswith(".weight") or parameter.name.endswith("embed.proj.weight"):
        return False
    return 1 < min(matrix_shape(parameter)) <= MUON_SIDE and parameter.size < PACK_BELOW


def build_train_step(model, config: Config, ranks: int = 1, target: str = "CPU") -> TrainStep:
    """The jitted step with its losses, precision and optimizer.

    Raises:
        UserError: the target lacks the precision, or a part to freeze does not exist.
    """
    train = config.train
    precision = choose_precision(train.amp, train.amp_dtype, target)
    set_precision(model, precision)
    if train.recompute:
        recompute_blocks(model)
    scaler = ms.amp.DynamicLossScaler(SCALE_START, 2, SCALE_WINDOW) if precision.amp_dtype == "float16" else None
    freeze(model, train.freeze)
    lr_mults = {"encoder.backbone.": train.backbone_lr_mult, "encoder.text.": train.text_lr_mult,
                "": train.head_lr_mult}
    groups = parameter_groups(model, train.weight_decay, train.position_bias_lr_mult, train.muon_lr_mult,
                              {prefix: mult for prefix, mult in lr_mults.items() if mult != 1}, train.weight_decay_on)
    objective = Objective(model, config.loss, config.model.no_target)
    return TrainStep(objective, Optimizer(groups), train.clip_norm, train.ema, ranks, scaler, train.accumulate,
                     saturates=target == "Ascend")
