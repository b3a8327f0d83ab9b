"""The sections of a configuration: every field with its type, its default and what it must fulfil.

The defaults are the full recipe: Swin-B (window 12) and BERT-base at 480 × 480 on RefCOCO. Optimizer, learning rate,
schedule, epochs, batch and input size are LAVT's, read from its code, since CoupAlign's own are not public;
docs/paper.md says what differs from LAVT's recipe. The comment behind a field is its line in docs/configuration.md.

A section's ``rules`` are pairs (is it fulfilled, what to say if not). They are asked for one by one, and each may rely
on those before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from mindspore_coupalign.models.parts import (
    BackboneSettings,
    DecoderSettings,
    FusionSettings,
    HeadSettings,
    LossSettings,
    Rule,
    default_settings,
    one_of,
)

AMP_LEVELS = ("auto", "O0", "O1", "O2", "O3")  # mixed precision; models/precision.py says what they are
TARGETS = ("auto", "CPU", "GPU", "Ascend")  # where to compute; runtime.py says what auto takes


def part(kind: str, name: str):
    """A field that holds the settings of a part: of ``name`` unless the configuration names another one."""
    return field(default_factory=lambda: default_settings(kind, name), metadata={"part": kind, "default": name})


@dataclass(frozen=True)
class DataSet:
    root: str = ""  # folder that holds <dataset>/; empty: data.root
    dataset: str = ""  # as data.dataset
    split_by: str = ""  # as data.split_by
    images: str = ""  # image folder; empty: data.images where root is empty too, else the usual places below root
    train_split: str = "train"  # split to train on; the images of all its other splits are kept out of training
    skip_images: tuple[str, ...] = ()  # as data.skip_images
    weight: float = 1.0  # how many times each ref is seen per epoch, on average

    def rules(self, name: str) -> Iterator[Rule]:
        yield self.dataset != "" and self.split_by != "", f"{name} needs dataset and split_by"
        yield self.weight > 0, f"{name}.weight must be positive; leave the set out instead"


@dataclass(frozen=True)
class DataConfig:
    root: str = "data/refer"  # folder that holds <dataset>/ and the images
    dataset: str = "refcoco"  # refcoco, refcoco+, refcocog, refclef, refshapes or any folder of that layout
    split_by: str = "unc"  # the X of refs(X).p
    images: str = ""  # image folder; empty: images/train2014 and the other usual places below root
    skip_images: tuple[str, ...] = ()  # file names of images to leave out, with their refs (broken ones)
    train_split: str = "train"  # split to train on
    sets: tuple[DataSet, ...] = ()  # train on these sets together; the keys above are then of the validation alone
    val_split: str = "val"  # split to validate on, and to choose the best checkpoint by
    sentence_field: str = "sent"  # sent: as REFER cleaned it; raw: as it was typed (LAVT's choice)
    overlap: str = "union"  # an object's pixels under two of its parts: union keeps them, single does not (LAVT's rule)
    image_size: int = 480  # network input, H = W: the image is resized to it without keeping its aspect ratio
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # RGB, of values in 0..1 (ImageNet)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)  # the standard deviations that go with mean
    tokenizer: str = "bert-base-uncased"  # folder of a vocab.txt, hub name, shipped: refshapes, refshapes_general
    max_tokens: int = 20  # with [CLS] and [SEP]
    flip: float = 0.0  # probability of a left-right flip with the words left and right swapped
    workers: int = 8  # threads of the data pipeline
    cache: str = ""  # folder that keeps images at image_size, so that each is decoded once; empty: none
    cache_gb: float = 20.0  # bound of that folder; RefCOCO at 480 takes 14

    def rules(self) -> Iterator[Rule]:
        size = self.image_size
        yield size > 0 and size % 32 == 0, f"data.image_size must be a positive multiple of 32, found {size}"
        yield len(self.mean) == 3 and len(self.std) == 3, "data.mean and data.std need three values, R G B"
        yield min(self.std) > 0, "data.std must be positive"
        yield self.max_tokens >= 3, "data.max_tokens must be at least 3: [CLS], one word, [SEP]"
        yield 0 <= self.flip <= 1, "data.flip is a probability, 0 to 1"
        yield one_of("data.sentence_field", self.sentence_field, ("sent", "raw"))
        yield one_of("data.overlap", self.overlap, ("union", "single"))
        yield self.workers >= 1, "data.workers must be at least 1"
        yield self.cache_gb > 0, "data.cache_gb must be positive; data.cache= keeps nothing"
        for i, entry in enumerate(self.sets):
            yield from entry.rules(f"data.sets[{i}]")
        named = [(entry.root, entry.dataset, entry.split_by, entry.train_split) for entry in self.sets]
        twice = next((f"{name[1]} ({name[2]}), {name[3]}" for name in named if named.count(name) > 1), "")
        yield not twice, f"data.sets names {twice} twice; give it a weight instead"


@dataclass(frozen=True)
class TextConfig:
    hidden: int = 768  # width
    heads: int = 12  # of attention
    ffn: int = 3072  # width of the feed-forward layers
    groups: tuple[int, ...] = (3, 3, 3, 3)  # BERT layers beside each visual stage
    max_positions: int = 512  # rows of the table of position embeddings
    dropout: float = 0.1  # of embeddings, attention weights and residual branches
    activation: str = "gelu"  # gelu (BERT's) or relu (faster on CPU)

    def rules(self) -> Iterator[Rule]:
        yield one_of("model.text.activation", self.activation, ("gelu", "relu"))
        yield min(self.hidden, self.ffn) >= 1, "model.text.hidden and model.text.ffn must be at least 1"
        yield (len(self.groups) == 4 and min(self.groups) >= 0 and sum(self.groups) > 0,
               "model.text.groups needs four numbers, BERT layers beside each stage")
        yield self.heads >= 1 and self.hidden % self.heads == 0, "model.text.heads must divide model.text.hidden"
        yield 0 <= self.dropout < 1, "model.text.dropout must be in 0..1"


@dataclass(frozen=True)
class ModelConfig:
    backbone: BackboneSettings = part("backbone", "swin")
    text: TextConfig = field(default_factory=TextConfig)
    backbone_weights: str = ""  # file of pretrained weights that training starts from (docs/weights.md); empty: random
    text_weights: str = ""  # file or Hugging Face folder of pretrained BERT weights; empty: random
    fusion: FusionSettings = part("fusion", "word_pixel")
    decoder: DecoderSettings = part("decoder", "top_down")
    sentence_mask: bool = True  # SMA; off: the mask is predicted from the pixel embedding alone
    queries: int = 100  # mask queries, so many mask proposals
    query_layers: int = 3  # transformer decoder layers of the mask generator
    query_heads: int = 8  # of their attention
    query_ffn: int = 1024  # width of their feed-forward layers
    query_stage: int = 4  # the stage whose features the queries read
    head: HeadSettings = part("head", "linear")
    stage_heads: bool = False  # linear heads on the first two fused stages, for loss.deep_supervision
    no_target: bool = False  # a head for target presence (whether the image has what the sentence refers to); needs SMA
    proposal_head: bool = False  # the mask of the proposals under the sentence's weights, for loss.proposal_mask

    def rules(self) -> Iterator[Rule]:
        yield from self.backbone.rules("model.backbone")
        yield from self.text.rules()
        yield from self.fusion.rules("model.fusion")
        yield from self.fusion.rules_for("model.fusion", self.backbone.channels, self.text.hidden)
        yield from self.decoder.rules("model.decoder")
        yield from self.head.rules("model.head")
        yield one_of("model.query_stage", self.query_stage, (1, 2, 3, 4))
        yield (min(self.queries, self.query_layers, self.query_heads, self.query_ffn) >= 1,
               "model.queries, query_layers, query_heads and query_ffn must be at least 1")
        yield self.decoder.dim % self.query_heads == 0, "model.query_heads must divide model.decoder.dim"
        yield (self.sentence_mask or not self.proposal_head,
               "model.proposal_head needs the proposals of the sentence-mask alignment (model.sentence_mask=true); set "
               "model.proposal_head=false and loss.proposal_mask=0")
        yield (self.sentence_mask or not self.no_target,
               "model.no_target needs the sentence-mask alignment (model.sentence_mask=true); without it, "
               "eval.min_pixels says when a mask means that there is no target")


@dataclass(frozen=True)
class LossConfig:
    bce: float = 1.0  # weight of the binary cross-entropy of the mask
    dice: float = 1.0  # weight of its Dice loss
    class_weights: tuple[float, ...] = (1.0, 1.0)  # of background, foreground in the cross-entropies (LAVT: 0.9, 1.1)
    contrast: float = 0.1  # weight of the pixel contrast
    deep_supervision: float = 0.0  # weight of the mask losses of the stage heads (model.stage_heads)
    proposal_mask: float = 0.0  # weight of the mask losses of the proposals' sum (model.proposal_head)
    no_target: float = 1.0  # weight of the cross-entropy of the target-presence head (model.no_target); ignored without
    temperature: float = 0.1  # of the pixel contrast
    negatives: int = 256  # background pixels drawn per sample for the contrast
    extra: tuple[LossSettings, ...] = field(default=(), metadata={"part": "loss", "default": None})

    def rules(self) -> Iterator[Rule]:
        yield (min(self.bce, self.dice, self.contrast, self.deep_supervision, self.proposal_mask) >= 0
               and self.bce + self.dice > 0,
               "loss.bce, dice, contrast, deep_supervision and proposal_mask must not be negative, and bce or dice "
               "must be on")
        yield self.no_target > 0, "loss.no_target must be positive; model.no_target=false leaves the head out"
        yield (len(self.class_weights) == 2 and min(self.class_weights) > 0,
               "loss.class_weights needs two positive numbers: background, foreground")
        yield self.temperature > 0 and self.negatives >= 1, "loss.temperature and loss.negatives must be positive"
        for i, entry in enumerate(self.extra):
            yield from entry.rules(f"loss.extra[{i}]")
        names = [entry.name for entry in self.extra]
        yield len(set(names)) == len(names), f"loss.extra names a loss twice: {', '.join(names)}"


@dataclass(frozen=True)
class TrainConfig:
    seed: int = 0  # of weights, order, sentences and dropout
    epochs: int = 40  # an epoch has every ref once, with one of its sentences
    steps: int = 0  # > 0: stop after so many steps instead of after `epochs`
    minutes: float = 0.0  # > 0: a time budget, compiling and the last validation included; the learning rate's
    # decay then follows the time that training has had since the warm-up, and what is left of it
    batch_size: int = 32  # global: all ranks and micro-batches together
    accumulate: int = 1  # micro-batches per step, one after the other: less memory for the same batch
    recompute: bool = False  # compute the activations of Swin, CNN and BERT blocks again in the backward pass instead
    # of keeping them: less memory, longer steps, the same results
    amp: str = "auto"  # mixed precision: O0, O1, O2, O3 (models/precision.py), or auto: O0 on CPU, O1 elsewhere
    amp_dtype: str = "float16"  # float16 (with dynamic loss scaling) or bfloat16 (Ascend only)
    lr: float = 5e-5  # learning rate after the warm-up
    backbone_lr_mult: float = 1.0  # learning-rate multiplier of the backbone
    text_lr_mult: float = 1.0  # of the text encoder
    head_lr_mult: float = 1.0  # of all the rest
    freeze: tuple[str, ...] = ()  # parameters whose names start so stay as they are, for example encoder.text
    position_bias_lr_mult: float = 1.0  # learning-rate multiplier of Swin's tables of relative position biases
    muon_lr_mult: float = 0.0  # > 0: Muon moves the matrices, by a root mean square of muon_lr_mult · lr; 0: all AdamW
    schedule: str = "poly"  # the decay: poly (power 0.9), cosine or linear
    final_lr: float = 0.0  # where the decay ends
    lr_decay_epochs: int = 0  # > 0: the decay ends after so many epochs and final_lr stays; 0: at the end
    lr_decay_unit: str = "step"  # step or epoch: when the learning rate changes
    warmup_steps: int = 0  # steps in which the learning rate rises linearly
    weight_decay: float = 0.01  # decoupled, as in AdamW
    weight_decay_on: str = "matrices"  # matrices, all, or lavt: all but the backbone's norms and position biases
    clip_norm: float = 1.0  # 0: no clipping
    ema: float = 0.0  # decay of the averaged weights that are evaluated and exported; 0: off
    val_every: int = 0  # steps between validations; 0: once per epoch
    val_samples: int = 0  # validate on the first so many samples; 0: on all
    best_by: str = "oIoU"  # the score that chooses best.safetensors: oIoU or mIoU, which is gIoU where sentences may
    # have no target
    save_every: int = 0  # steps between checkpoints that --resume can go on from; 0: at every validation
    keep: int = 2  # so many of the newest checkpoints are kept, beside the best
    max_nonfinite_steps: int = 10  # end the run after so many steps in a row with a non-finite loss or gradient
    step_timeout: int = 0  # seconds for a step of a rank before the run ends; 0: ten of the longest so far, at least 20
    heartbeat_timeout: int = 20  # seconds that a rank may be without a heartbeat
    compile_timeout: int = 0  # the same while it compiles, which holds heartbeats back; 0: 120 on CPU, 1200 elsewhere
    remote_grace: int = 60  # seconds more of these three for ranks of other machines: NFS shows their files late
    barrier_timeout: int = 1800  # seconds that ranks wait for one that saves or validates
    log_every: int = 10  # steps between lines of log.jsonl

    def rules(self) -> Iterator[Rule]:
        yield self.batch_size >= 1, "train.batch_size must be at least 1"
        yield (self.accumulate >= 1 and self.batch_size % self.accumulate == 0,
               f"train.accumulate={self.accumulate} must divide train.batch_size={self.batch_size}")
        yield one_of("train.amp", self.amp, AMP_LEVELS)
        yield one_of("train.amp_dtype", self.amp_dtype, ("float16", "bfloat16"))
        yield self.epochs >= 1 and self.steps >= 0, "train.epochs must be at least 1 and train.steps at least 0"
        yield self.minutes >= 0, "train.minutes must not be negative"
        yield 0 <= self.seed < 2**32, "train.seed must lie between 0 and 2^32 - 1"
        yield (min(self.weight_decay, self.clip_norm, self.val_every, self.val_samples) >= 0,
               "train.weight_decay, clip_norm, val_every and val_samples must not be negative")
        yield self.log_every >= 1, "train.log_every must be at least 1"
        yield 0 <= self.ema < 1, "train.ema is a decay, 0 (off) to below 1"
        yield one_of("train.best_by", self.best_by, ("oIoU", "mIoU"))
        yield one_of("train.weight_decay_on", self.weight_decay_on, ("matrices", "lavt", "all"))
        yield from self._learning_rate_rules()
        yield from self._guard_rules()

    def _learning_rate_rules(self) -> Iterator[Rule]:
        yield one_of("train.schedule", self.schedule, ("poly", "cosine", "linear"))
        yield one_of("train.lr_decay_unit", self.lr_decay_unit, ("step", "epoch"))
        yield self.lr > 0, "train.lr must be positive"
        yield 0 <= self.final_lr <= self.lr, "train.final_lr must lie between 0 and train.lr"
        yield self.lr_decay_epochs >= 0, "train.lr_decay_epochs must not be negative"
        yield (self.minutes == 0 or (self.lr_decay_epochs == 0 and self.lr_decay_unit == "step"),
               "train.lr_decay_epochs and lr_decay_unit=epoch count epochs, but under train.minutes the learning rate "
               "follows the time; set train.minutes=0, or leave them out")
        yield self.warmup_steps >= 0, "train.warmup_steps must not be negative"
        yield (self.warmup_steps == 0 or self.lr_decay_unit == "step",
               "train.warmup_steps needs train.lr_decay_unit=step")
        yield (min(self.backbone_lr_mult, self.text_lr_mult, self.head_lr_mult) > 0,
               "train.backbone_lr_mult, text_lr_mult and head_lr_mult must be positive; train.freeze keeps parameters "
               "unchanged")
        yield (self.position_bias_lr_mult > 0 and self.muon_lr_mult >= 0,
               "train.position_bias_lr_mult must be positive and train.muon_lr_mult not negative")

    def _guard_rules(self) -> Iterator[Rule]:
        yield (self.keep >= 1 and self.max_nonfinite_steps >= 1,
               "train.keep and train.max_nonfinite_steps must be at least 1")
        yield (min(self.save_every, self.step_timeout, self.compile_timeout, self.remote_grace) >= 0,
               "train.save_every, step_timeout, compile_timeout and remote_grace must not be negative")
        yield (self.heartbeat_timeout >= 5,
               "train.heartbeat_timeout must be at least 5: a rank gives a heartbeat every second")
        yield self.barrier_timeout >= 1, "train.barrier_timeout must be at least 1"


@dataclass(frozen=True)
class EvalConfig:
    batch_size: int = 8  # sentences per batch; changes no score
    threshold: float = 0.5  # probability above which a pixel belongs to the mask
    target_threshold: float = 0.5  # probability above which a target counts as present, with model.no_target
    min_pixels: int = 0  # a mask of fewer pixels counts as empty: no target

    def rules(self) -> Iterator[Rule]:
        yield self.batch_size >= 1, "eval.batch_size must be at least 1"
        yield 0 < self.threshold < 1, "eval.threshold must be between 0 and 1"
        yield 0 < self.target_threshold < 1, "eval.target_threshold must be between 0 and 1"
        yield self.min_pixels >= 0, "eval.min_pixels must not be negative"


@dataclass(frozen=True)
class Config:
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def rules(self) -> Iterator[Rule]:
        """Every section's, and what concerns two of them."""
        for section in (self.data, self.model, self.loss, self.train, self.eval):
            yield from section.rules()
        yield (self.data.max_tokens <= self.model.text.max_positions,
               "data.max_tokens is larger than model.text.max_positions")
        for weight, head in (("deep_supervision", "stage_heads"), ("proposal_mask", "proposal_head")):
            yield (getattr(self.loss, weight) == 0 or getattr(self.model, head),
                   f"loss.{weight} needs the network's heads for it; set model.{head}=true, or loss.{weight}=0")
