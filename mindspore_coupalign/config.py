"""Configuration: typed dataclasses read from YAML files (with a ``base:``) and ``key=value`` overrides.

Every field has one type; an unknown key, a wrong type or an impossible combination raises UserError in one line that
names the file and the field. Nothing but the entry points and ``build.py`` reads a Config.
"""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from mindspore_coupalign.errors import UserError

AMP_LEVELS = ("auto", "O0", "O1", "O2", "O3")  # mixed precision; precision.py says what they are


@dataclass(frozen=True)
class DataConfig:
    root: str = "data/refshapes"  # folder that holds <dataset>/ and the images
    dataset: str = "refshapes"  # refcoco, refcoco+, refcocog, refclef, refshapes or any folder of that layout
    split_by: str = "shapes"  # the X of refs(X).p
    images: str = ""  # image folder; empty: looked for in the usual places below root
    train_split: str = "train"  # split to train on
    val_split: str = "val"  # split to validate on, and to choose the best checkpoint by
    sentence_field: str = "sent"  # sent: as REFER cleaned it; raw: as it was typed (LAVT's choice)
    overlap: str = "union"  # an object's pixels under two of its parts: union keeps them, single does not (LAVT's rule)
    image_size: int = 480  # network input, H = W, after squashing
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # RGB, of values in 0..1 (ImageNet)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)  # the standard deviations that go with mean
    tokenizer: str = "bert-base-uncased"  # folder, hub name, or "refshapes" for the shipped vocabulary
    max_tokens: int = 20  # with [CLS] and [SEP]
    flip: float = 0.0  # probability of a left-right flip with the words left and right swapped
    workers: int = 4  # threads of the data pipeline


@dataclass(frozen=True)
class ImageConfig:
    name: str = "swin"  # swin, resnet or darknet
    embed_dim: int = 128  # channels of stage 1; each stage doubles them (Swin-B 128, ResNet 256, Darknet-53 128)
    depths: tuple[int, ...] = (2, 2, 18, 2)  # blocks of each stage
    norm: str = "frozen"  # resnet, darknet: batch norm by the loaded statistics (frozen) or by each batch's (batch)
    slope: float = 0.1  # darknet: of its leaky ReLUs, 0.1 in darknet's weights, 0.01 in timm's
    heads: tuple[int, ...] = (4, 8, 16, 32)  # this and the rest: swin only
    window: int = 12  # side of the attention windows, in tokens
    mlp_ratio: float = 4.0  # width of a block's MLP, relative to the stage's channels
    drop_path: float = 0.3  # stochastic depth: the rate of the last block, rising linearly from 0
    activation: str = "gelu"  # gelu (the paper's) or relu (faster on CPU)
    absolute_position: bool = False  # add sine positions after the patch embedding (for training from scratch)


@dataclass(frozen=True)
class TextConfig:
    hidden: int = 768  # width
    heads: int = 12  # of attention
    ffn: int = 3072  # width of the feed-forward layers
    groups: tuple[int, ...] = (3, 3, 3, 3)  # BERT layers beside each visual stage
    max_positions: int = 512  # rows of the table of position embeddings
    dropout: float = 0.1  # of embeddings, attention weights and residual branches
    activation: str = "gelu"  # gelu (BERT's) or relu (faster on CPU)


@dataclass(frozen=True)
class ModelConfig:
    name: str = "coupalign"  # coupalign, or lavt: LAVT's fusion, without proposals
    image: ImageConfig = field(default_factory=ImageConfig)
    text: TextConfig = field(default_factory=TextConfig)
    image_weights: str = ""  # file of pretrained weights that training starts from (docs/weights.md); empty: random
    text_weights: str = ""  # file or Hugging Face folder of pretrained BERT weights; empty: random
    wpa_stages: tuple[int, ...] = (1, 2, 3, 4)  # those with word-pixel alignment (supplement, Table 3); LAVT needs all
    wpa_heads: tuple[int, ...] = (4, 8, 16, 32)  # attention heads of the word-pixel alignment at each stage
    wpa_gate_zero: bool = False  # zero-initialised W2: with an opening of 0, pretrained encoders start unchanged
    wpa_gate_opening: float = 0.0  # initial bias of the gates, LAVT's too; 1 lets the words in at once
    decoder_dim: int = 256  # channels of the pixel embedding and the mask embeddings
    queries: int = 100  # mask queries, so many mask proposals
    query_layers: int = 3  # transformer decoder layers of the mask generator
    query_heads: int = 8  # of their attention
    query_ffn: int = 1024  # width of their feed-forward layers
    query_stage: int = 4  # the stage whose features the queries read
    upsample: str = "bilinear"  # logits from stride 4 to the input's size: bilinear (the paper's), subpixel or guided
    sentence_mask: bool = True  # SMA; off: the mask is predicted from the pixel embedding alone

    @property
    def has_proposals(self) -> bool:
        """Whether there are mask proposals and the sentence-mask alignment; LAVT has neither."""
        return self.sentence_mask and self.name == "coupalign"


@dataclass(frozen=True)
class LossConfig:
    bce: float = 1.0  # weight of the binary cross-entropy of the mask
    dice: float = 1.0  # weight of its Dice loss
    class_weights: tuple[float, ...] = (1.0, 1.0)  # of background, foreground in the cross-entropies (LAVT: 0.9, 1.1)
    contrast: float = 0.1  # weight of the pixel contrast
    stages: float = 0.0  # > 0: weight of the mask losses of linear heads on the first two fused stages
    proposals: float = 0.0  # > 0: weight of the mask losses of the proposals' sum under the sentence's weights
    temperature: float = 0.1  # of the pixel contrast
    negatives: int = 256  # background pixels drawn per sample for the contrast


@dataclass(frozen=True)
class TrainConfig:
    seed: int = 0  # of weights, order, sentences and dropout
    epochs: int = 40  # an epoch has every ref once, with one of its sentences
    steps: int = 0  # > 0: stop after so many steps instead of after `epochs`
    minutes: float = 0.0  # > 0: be done after so much time, compiling and the last validation included; the rate's
    # decay then follows the time that training has had since the warm-up, and what is left of it
    batch_size: int = 32  # global: all ranks and micro-batches together
    accumulate: int = 1  # micro-batches per step, one after the other: less memory for the same batch
    amp: str = "auto"  # mixed precision: O0, O1, O2, O3 (precision.py), or auto: O0 on CPU, O1 elsewhere
    amp_dtype: str = "float16"  # float16 (with dynamic loss scaling) or bfloat16 (Ascend only)
    lr: float = 5e-5  # learning rate after the warm-up
    image_rate: float = 1.0  # factors of lr for the vision encoder, the text encoder and all the rest
    text_rate: float = 1.0  # see image_rate
    head_rate: float = 1.0  # see image_rate
    freeze: tuple[str, ...] = ()  # parameters whose names start so stay as they are, for example encoder.text
    position_bias_rate: float = 1.0  # factor of lr for Swin's tables of relative position biases
    muon_rate: float = 0.0  # > 0: Muon moves the matrices, by a root mean square of muon_rate · lr; 0: AdamW everything
    schedule: str = "poly"  # the decay: poly (power 0.9), cosine or linear
    final_lr: float = 0.0  # where the decay ends
    decay_epochs: int = 0  # > 0: the decay ends after so many epochs, the rate stays at final_lr; 0: at the end
    decay_every: str = "step"  # step or epoch: when the rate changes
    warmup_steps: int = 0  # steps in which the learning rate rises linearly
    weight_decay: float = 0.01  # decoupled, as in AdamW
    decayed: str = "matrices"  # what weight decay acts on: matrices, all, or lavt: all but the image encoder's norms
    # and position biases
    clip_norm: float = 1.0  # 0: no clipping
    ema: float = 0.0  # decay of the averaged weights that are evaluated and exported; 0: off
    val_every: int = 0  # steps between validations; 0: once per epoch
    val_samples: int = 0  # validate on the first so many samples; 0: on all
    save_every: int = 0  # steps between checkpoints that --resume can go on from; 0: at every validation
    keep: int = 2  # so many of the newest checkpoints are kept, beside the best
    max_skipped: int = 10  # end the run after so many steps in a row whose loss or gradient is no number
    hang_seconds: int = 0  # end the run when a rank takes longer for a step; 0: ten of the longest so far, at least 20
    silence_seconds: int = 20  # end it when a rank gives no sign of life for so long
    compile_seconds: int = 0  # the same while it compiles, which holds the signs back; 0: 120 on CPU, 1200 elsewhere
    remote_seconds: int = 60  # more of these three for ranks of other machines: NFS shows their files late
    meet_seconds: int = 1800  # ranks wait so long for one that saves or validates
    log_every: int = 10  # steps between lines of log.jsonl


@dataclass(frozen=True)
class EvalConfig:
    batch_size: int = 32  # sentences per batch; changes no score
    threshold: float = 0.5  # probability above which a pixel belongs to the mask


@dataclass(frozen=True)
class Config:
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def shipped_configs() -> dict[str, Path]:
    """The shipped configurations by name (the file's, without .yaml), wherever the package is installed."""
    package = Path(__file__).resolve().parent
    folders = (package / "configs", package.parent / "configs")  # of an installation, of a source tree
    files = next((sorted(folder.rglob("*.yaml")) for folder in folders if folder.is_dir()), [])
    return {file.stem: file for file in files}


def find_config(name: str | Path) -> Path:
    """The file of that path, or else the shipped configuration: ``refcoco_swin_b``, also as ``configs/….yaml``.

    Raises:
        UserError: there is neither.
    """
    path = Path(name)
    if path.exists():
        return path
    shipped = shipped_configs()
    if path.stem in shipped and path.suffix in ("", ".yaml") and path.parts[:1] in (path.parts[-1:], ("configs",)):
        return shipped[path.stem]
    near = difflib.get_close_matches(path.stem, shipped, n=3) or sorted(shipped)
    raise UserError(f"{name}: no such configuration file, and none of that name is shipped; shipped are "
                    f"{', '.join(near)}")


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a YAML file (following its ``base:``) and apply ``section.key=value`` overrides.

    Args:
        path: a file, or the name of a shipped configuration such as ``refcoco_swin_b``.

    Raises:
        UserError: missing or malformed file, unknown key, wrong type, impossible combination.
    """
    path = find_config(path)
    values = _read_yaml(path, seen=())
    _apply(values, overrides)
    source = str(path) if not overrides else f"{path} with its overrides"
    return config_from_dict(values, source)


def with_overrides(config: Config, overrides: typing.Sequence[str], source: str) -> Config:
    """A copy of a Config with ``section.key=value`` overrides; ``source`` is named in errors."""
    values = config_to_dict(config)
    _apply(values, overrides)
    return config_from_dict(values, source)


def _apply(values: dict, overrides: typing.Sequence[str]):
    for text in overrides:
        key, eq, value = text.partition("=")
        if not eq or not key:
            raise UserError(f"override {text!r}: expected section.key=value, for example train.lr=1e-4")
        try:
            parsed = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as exc:  # ValueError: 2012-13-45, a date that is none
            raise UserError(f"override {text!r}: the value is not valid YAML ({_first_line(exc)})") from exc
        _merge(values, _nest(key.split("."), parsed))


def config_from_dict(values: dict, source: str) -> Config:
    """Build and validate a Config from nested dicts; ``source`` is named in errors."""
    config = _build(Config, values, source, "")
    _validate(config, source)
    return config


def config_to_dict(config: Config) -> dict:
    """The resolved configuration as plain containers (tuples become lists), ready for YAML or JSON."""

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return plain(dataclasses.asdict(config))


def _read_yaml(path: Path, seen: tuple) -> dict:
    if path.resolve() in seen:
        raise UserError(f"{path}: 'base' leads back to this file; remove the loop")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise UserError(f"{path}: no such configuration file, which another one names as its base") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise UserError(f"{path}: cannot be read as a YAML text file ({_first_line(exc)})") from exc
    try:
        values = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise UserError(f"{path}: not valid YAML ({_first_line(exc)})") from exc
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected 'section: values' at the top level, found {type(values).__name__}")
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{path}: base must be a file name, found {base!r}")
    merged = _read_yaml(path.parent / base, seen + (path.resolve(),))
    _merge(merged, values)
    return merged


def _first_line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:200]


def _nest(keys: list, value):
    for key in reversed(keys):
        value = {key: value}
    return value


def _merge(into: dict, update: dict):
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _build(cls, values, source: str, prefix: str):
    if not isinstance(values, dict):
        raise UserError(f"{source}: {prefix.rstrip('.') or 'the file'} must be a section of keys, found {values!r}")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(hints)}"
            raise UserError(f"{source}: unknown key {prefix}{key}; {hint}")
    return cls(**{k: _convert(hints[k], v, source, prefix + k) for k, v in values.items()})


def _convert(kind, value, source: str, name: str):
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, source, name + ".")
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{source}: {name} must be a list, found {value!r}")
        item = typing.get_args(kind)[0]
        return tuple(_convert(item, v, source, f"{name}[{i}]") for i, v in enumerate(value))
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 5e-5 as a string
        try:
            value = float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise UserError(f"{source}: {name} must be {_TYPE_NAMES[kind]}, found {value!r}")
    return value


_TYPE_NAMES = types.MappingProxyType({bool: "true or false", int: "a whole number", float: "a number", str: "a text"})


def _validate(config: Config, source: str):
    data, model, loss, train = config.data, config.model, config.loss, config.train
    image, text = model.image, model.text

    def check(ok: bool, message: str):
        if not ok:
            raise UserError(f"{source}: {message}")

    def one_of(name: str, value, choices):
        check(value in choices, f"{name} must be one of {', '.join(map(str, choices))}, found {value!r}")

    size = data.image_size
    check(size > 0 and size % 32 == 0, f"data.image_size must be a positive multiple of 32, found {size}")
    check(len(data.mean) == 3 and len(data.std) == 3, "data.mean and data.std need three values, R G B")
    check(min(data.std) > 0, "data.std must be positive")
    check(data.max_tokens >= 3, "data.max_tokens must be at least 3: [CLS], one word, [SEP]")
    check(data.max_tokens <= text.max_positions, "data.max_tokens is larger than model.text.max_positions")
    check(0 <= data.flip <= 1, "data.flip is a probability, 0 to 1")
    one_of("data.sentence_field", data.sentence_field, ("sent", "raw"))
    one_of("data.overlap", data.overlap, ("union", "single"))
    check(data.workers >= 1, "data.workers must be at least 1")
    one_of("model.name", model.name, ("coupalign", "lavt"))
    one_of("model.image.name", image.name, ("swin", "resnet", "darknet"))
    one_of("model.image.norm", image.norm, ("frozen", "batch"))
    check(0 <= image.slope < 1, "model.image.slope must be in 0..1")
    for name, value in (("image", image), ("text", text)):
        one_of(f"model.{name}.activation", value.activation, ("gelu", "relu"))
    for name, value in (("depths", image.depths), ("heads", image.heads)):
        check(len(value) == 4 and min(value) >= 1, f"model.image.{name} needs four positive numbers, one per stage")
    check(min(image.embed_dim, text.hidden, text.ffn) >= 1,
          "model.image.embed_dim, model.text.hidden and model.text.ffn must be at least 1")
    check(int(image.embed_dim * image.mlp_ratio) >= 1, "model.image.mlp_ratio leaves no channel in stage 1's MLP")
    if image.name == "swin":
        for i, heads in enumerate(image.heads):
            dim = image.embed_dim * 2**i
            check(dim % heads == 0, f"model.image.heads[{i}]={heads} does not divide the stage's {dim} channels")
    else:
        check(image.embed_dim % 4 == 0, "model.image.embed_dim must be a multiple of 4: the stem has a quarter of it")
    check(image.window >= 1, "model.image.window must be at least 1")
    check(0 <= image.drop_path < 1, "model.image.drop_path must be in 0..1")
    check(len(text.groups) == 4 and min(text.groups) >= 0 and sum(text.groups) > 0,
          "model.text.groups needs four numbers, BERT layers beside each stage")
    check(text.heads >= 1 and text.hidden % text.heads == 0, "model.text.heads must divide model.text.hidden")
    check(0 <= text.dropout < 1, "model.text.dropout must be in 0..1")
    check(set(model.wpa_stages) <= {1, 2, 3, 4} and len(set(model.wpa_stages)) == len(model.wpa_stages),
          "model.wpa_stages is a list of different stages from 1 to 4")
    check(model.name == "coupalign" or len(model.wpa_stages) == 4,
          "model.name=lavt fuses at all four stages; set model.wpa_stages=[1,2,3,4]")
    check(len(model.wpa_heads) == 4 and min(model.wpa_heads) >= 1, "model.wpa_heads needs four positive numbers")
    for i, heads in enumerate(model.wpa_heads):
        dim = image.embed_dim * 2**i
        check(dim % heads == 0, f"model.wpa_heads[{i}]={heads} does not divide the stage's {dim} channels")
    one_of("model.upsample", model.upsample, ("bilinear", "subpixel", "guided"))
    one_of("model.query_stage", model.query_stage, (1, 2, 3, 4))
    check(min(model.queries, model.query_layers, model.query_heads, model.query_ffn, model.decoder_dim) >= 1,
          "model.queries, query_layers, query_heads, query_ffn and decoder_dim must be at least 1")
    check(model.decoder_dim % model.query_heads == 0, "model.query_heads must divide model.decoder_dim")
    check(model.decoder_dim % (8 if model.decoder_dim <= 256 else 32) == 0,
          "model.decoder_dim must be a multiple of 8, above 256 of 32 (its group norms)")
    check(min(loss.bce, loss.dice, loss.contrast, loss.stages, loss.proposals) >= 0 and loss.bce + loss.dice > 0,
          "loss.bce, dice, contrast, stages and proposals must not be negative, and bce or dice must be on")
    check(loss.proposals == 0 or model.has_proposals,
          "loss.proposals needs the proposals of CoupAlign's sentence-mask alignment; set loss.proposals=0")
    check(len(loss.class_weights) == 2 and min(loss.class_weights) > 0,
          "loss.class_weights needs two positive numbers: background, foreground")
    check(loss.temperature > 0 and loss.negatives >= 1, "loss.temperature and loss.negatives must be positive")
    one_of("train.schedule", train.schedule, ("poly", "cosine", "linear"))
    one_of("train.decay_every", train.decay_every, ("step", "epoch"))
    one_of("train.decayed", train.decayed, ("matrices", "lavt", "all"))
    check(0 <= train.final_lr <= train.lr, "train.final_lr must lie between 0 and train.lr")
    check(train.decay_epochs >= 0, "train.decay_epochs must not be negative")
    check(train.minutes == 0 or (train.decay_epochs == 0 and train.decay_every == "step"),
          "train.decay_epochs and decay_every=epoch count epochs, but under train.minutes the rate follows the clock; "
          "set train.minutes=0, or leave them out")
    check(train.warmup_steps == 0 or train.decay_every == "step",
          "train.warmup_steps needs train.decay_every=step")
    check(train.batch_size >= 1 and config.eval.batch_size >= 1, "batch_size must be at least 1")
    check(train.accumulate >= 1 and train.batch_size % train.accumulate == 0,
          f"train.accumulate={train.accumulate} must divide train.batch_size={train.batch_size}")
    one_of("train.amp", train.amp, AMP_LEVELS)
    one_of("train.amp_dtype", train.amp_dtype, ("float16", "bfloat16"))
    check(min(train.image_rate, train.text_rate, train.head_rate) > 0,
          "train.image_rate, text_rate and head_rate must be positive; train.freeze keeps parameters as they are")
    check(train.keep >= 1 and train.max_skipped >= 1, "train.keep and train.max_skipped must be at least 1")
    check(min(train.save_every, train.hang_seconds, train.compile_seconds, train.remote_seconds) >= 0,
          "train.save_every, hang_seconds, compile_seconds and remote_seconds must not be negative")
    check(train.silence_seconds >= 5, "train.silence_seconds must be at least 5: a rank gives a sign every second")
    check(train.meet_seconds >= 1, "train.meet_seconds must be at least 1")
    check(train.epochs >= 1 and train.steps >= 0, "train.epochs must be at least 1 and train.steps at least 0")
    check(train.minutes >= 0, "train.minutes must not be negative")
    check(train.lr > 0, "train.lr must be positive")
    check(train.position_bias_rate > 0 and train.muon_rate >= 0,
          "train.position_bias_rate must be positive and train.muon_rate not negative")
    check(0 <= train.seed < 2**32, "train.seed must lie between 0 and 2^32 - 1")
    check(min(train.warmup_steps, train.weight_decay, train.clip_norm, train.val_every, train.val_samples) >= 0,
          "train.warmup_steps, weight_decay, clip_norm, val_every and val_samples must not be negative")
    check(train.log_every >= 1, "train.log_every must be at least 1")
    check(0 <= train.ema < 1, "train.ema is a decay, 0 (off) to below 1")
    check(0 < config.eval.threshold < 1, "eval.threshold must be between 0 and 1")
