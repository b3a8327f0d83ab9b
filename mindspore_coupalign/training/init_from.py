"""``train --init-from``: a new run that starts from a checkpoint's weights and tokenizer, with an optimizer of its own.

Position-bias tables of another window or input size are resampled as Swin's authors do. Everything else must fit, name
by name and shape by shape, but for what the user leaves out by the beginning of its name.
"""

import argparse
from pathlib import Path

from mindspore_coupalign import build
from mindspore_coupalign.config import Config
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.weights.checkpoint import Checkpoint, load_checkpoint, load_parameters
from mindspore_coupalign.weights.load import resample_table

VISION, TEXT, EMBEDDING = "encoder.vision.", "encoder.text.", "encoder.text.embed.word_embeddings"
# settings that no parameter's shape shows and without which the weights would compute something else: field -> part
UNSEEN = {"model.image.activation": VISION, "model.image.heads": VISION, "model.image.negative_slope": VISION,
          "model.image.absolute_position": VISION, "model.text.heads": TEXT, "model.text.activation": TEXT,
          "model.wpa_stages": "encoder.wpa.", "model.wpa_heads": "encoder.wpa.", "model.query_heads": "generator.",
          "model.query_stage": "generator."}
WORTH_SAYING = ("data.mean", "data.std", "data.flip", "data.max_tokens", "data.sentence_field", "model.image.window",
                "model.image.freeze_batch_norm", "model.upsample")
_SHOWN = 4  # names per line


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--init-from", metavar="FILE",
                        help="start a new run from the weights and tokenizer of another run's best.safetensors, with "
                             "any recipe: another learning rate, input size, data set")
    parser.add_argument("--init-from-skip", nargs="+", default=[], metavar="PREFIX",
                        help="parameters whose names start so (encoder.vision, decoder, …) start fresh all the same")


def from_arguments(args: argparse.Namespace):
    """(InitialWeights or None, the overrides that stood behind ``--init-from-skip``).

    Raises:
        UserError: options that exclude each other, or no checkpoint.
    """
    skip = tuple(name for name in args.init_from_skip if "=" not in name)
    if args.init_from and args.resume:
        raise UserError("--resume goes on with a run, --init-from starts a new one from its weights; give one of them")
    if skip and not args.init_from:
        raise UserError("--init-from-skip belongs to --init-from FILE")
    overrides = [name for name in args.init_from_skip if "=" in name]  # argparse gives it all that follows
    return InitialWeights(args.init_from, skip) if args.init_from else None, overrides


class InitialWeights:
    """The weights of a checkpoint for a new run.

    Args:
        path: best.safetensors or last.safetensors of a run; of the latter the averaged weights where it has them.
        skip: beginnings of the names of parameters that start fresh.

    Raises:
        UserError: no checkpoint of this project.
    """

    def __init__(self, path: str | Path, skip: tuple = ()):
        self.checkpoint: Checkpoint = load_checkpoint(path)
        self.source, self.skip = str(path), tuple(skip)
        self.lines: list[str] = []  # what was done, for the user
        self.facts: dict = {}  # the same for the log

    def skips(self, name: str) -> bool:
        return name.startswith(self.skip) if self.skip else False

    def tokenizer(self, config: Config) -> SentenceTokenizer:
        """The checkpoint's; the configuration's where the word embeddings start fresh.

        Raises:
            UserError: the configuration names a tokenizer with another vocabulary.
        """
        name, limit = config.data.tokenizer, config.data.max_tokens
        if self.skips(EMBEDDING):
            return SentenceTokenizer.from_name(name, limit)
        own = SentenceTokenizer.from_json(self.checkpoint.tokenizer, limit, self.source)
        try:
            named = SentenceTokenizer.from_name(name, limit, download=False)
        except UserError:
            self.lines.append(f"data.tokenizer={name} is not on this machine: the checkpoint's own tokenizer is used")
            return own
        if named.to_json() != own.to_json():
            raise UserError(f"data.tokenizer={name}: not the tokenizer of {self.source}, whose word embeddings belong "
                            f"to its own {own.vocab_size} word pieces; name that one, or let the embeddings start "
                            f"fresh with --init-from-skip {EMBEDDING}")
        return own

    def load(self, model, config: Config):
        """Fill the network; ``lines`` and ``facts`` then say with what.

        Raises:
            UserError: something does not fit, with the names and how to leave them out.
        """
        self._check_settings(config)
        checkpoint = self.checkpoint
        arrays = checkpoint.section("model") | checkpoint.section("ema")  # what is frozen has no average
        parameters = {p.name: p for p in model.get_parameters()}
        self._check_skips(parameters.keys() | arrays.keys())
        wanted = {name: p for name, p in parameters.items() if not self.skips(name)}
        left = sorted(name for name in arrays if self.skips(name))
        arrays = {name: array for name, array in arrays.items() if not self.skips(name)}
        resampled, misfits = [], [f"{name} (not in the checkpoint)" for name in wanted if name not in arrays]
        misfits += [f"{name} (the configuration's network has none)" for name in arrays if name not in wanted]
        for name in wanted.keys() & arrays.keys():
            shape = tuple(wanted[name].shape)
            if name.endswith("relative_position_bias_table") and arrays[name].shape != shape:
                arrays[name] = resample_table(arrays[name], shape)
                resampled.append(name)
            if arrays[name].shape != shape:
                misfits.append(f"{name} (shape {arrays[name].shape}, the configuration's network expects {shape})")
        if misfits:
            self._refuse(sorted(misfits))
        fresh = sorted(parameters.keys() - wanted.keys())
        self._load_pretrained(model, config)
        load_parameters(wanted.values(), arrays, self.source)
        self._say(len(arrays), sorted(resampled), fresh, left, config)

    def _check_settings(self, config: Config):
        before = self.checkpoint.config
        if before.model.name != config.model.name:
            raise UserError(f"{self.source}: holds a network of model.name={before.model.name}, the configuration's is "
                            f"{config.model.name}; set model.name={before.model.name}")
        other = [f"{name} was {_field(before, name)}, now {_field(config, name)}" for name, part in UNSEEN.items()
                 if _counts(name, config) and _field(before, name) != _field(config, name) and not self.skips(part)]
        if other:
            raise UserError(f"{self.source}: its weights would compute something else: {'; '.join(other)}; set it "
                            "back, or leave the part out with --init-from-skip")

    def _check_skips(self, names):
        for prefix in self.skip:
            if not any(name.startswith(prefix) for name in names):
                raise UserError(f"--init-from-skip {prefix}: no parameter's name starts so; names start with "
                                "encoder.vision, encoder.text, encoder.wpa, decoder, generator and the like")

    def _refuse(self, misfits: list):
        parts = sorted({".".join(line.split()[0].split(".")[:2 if line.startswith("encoder.") else 1])
                        for line in misfits})
        raise UserError(f"{self.source}: {len(misfits)} parameters do not fit: {_some(misfits)}; choose the "
                        f"checkpoint's network, or let them start fresh with --init-from-skip {' '.join(parts)}")

    def _load_pretrained(self, model, config: Config):
        """Encoders that are left out as a whole may start from files of their own, as in any other run."""
        for part, field, load in ((VISION, "image_weights", build.load_pretrained_image),
                                  (TEXT, "text_weights", build.load_pretrained_text)):
            path = getattr(config.model, field)
            if self.skips(part):
                self.lines += [loaded.table() for loaded in load(model, config)]
            elif path:
                self.lines.append(f"model.{field}={path} is not read: these weights come from {self.source}")

    def _say(self, loaded: int, resampled: list, fresh: list, left: list, config: Config):
        before = self.checkpoint
        self.facts = {"file": Path(self.source).name, "step": before.progress.get("step"), "loaded": loaded,
                      "averaged": bool(before.section("ema")), "resampled": resampled, "fresh": fresh, "left_out": left}
        kind = "averaged weights" if self.facts["averaged"] else "weights"
        self.lines.insert(0, f"starts from the {kind} of {self.source} (step {self.facts['step']}): {loaded} arrays "
                             f"loaded, {len(resampled)} of them resampled; optimizer, schedule and steps start fresh")
        for title, names in (("resampled", resampled), ("fresh", fresh), ("left out of the file", left)):
            if names:
                self.lines.append(f"  {title}: {_some(names)}")
        self.lines += [f"  {name}: was {_field(before.config, name)}, now {_field(config, name)}"
                       for name in WORTH_SAYING if _field(before.config, name) != _field(config, name)]


def _counts(name: str, config: Config) -> bool:
    """Whether the configuration's network has a part that reads the setting."""
    if name == "model.image.negative_slope":
        return config.model.image.name == "darknet"
    if name.startswith("model.image."):
        return config.model.image.name == "swin"
    if name.startswith("model.query_"):
        return config.model.has_proposals
    return name.startswith("model.text.") or config.model.name == "coupalign"


def _field(config: Config, name: str):
    value = config
    for part in name.split("."):
        value = getattr(value, part)
    return list(value) if isinstance(value, tuple) else value


def _some(names: list) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
