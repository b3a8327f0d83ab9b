"""``train --init-from``: a new run that starts from a checkpoint's weights and tokenizer, with an optimizer of its own.

Position-bias tables of another window or input size are resampled as Swin's authors do. Everything else must fit, name
by name and shape by shape, but for what the user leaves out by the beginning of its name.
"""

import argparse
import dataclasses
from pathlib import Path

from mindspore_coupalign import build
from mindspore_coupalign.config import Config
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.weights.checkpoint import Checkpoint, current_name, load_checkpoint, load_parameters
from mindspore_coupalign.weights.load import resample_table

BACKBONE, TEXT, EMBEDDING = "encoder.backbone.", "encoder.text.", "encoder.text.embed.word_embeddings"
PARTS = {"backbone": BACKBONE, "fusion": "encoder.fusion.", "decoder": "pixel_decoder.", "head": "head."}
# settings beside the parts' that no parameter's shape shows, without which the weights compute something else
COMPARED = {"model.text.heads": TEXT, "model.text.activation": TEXT, "model.query_heads": "mask_generator.",
            "model.query_stage": "mask_generator."}
REPORTED = ("data.mean", "data.std", "data.flip", "data.max_tokens", "data.sentence_field")
_SHOWN = 4  # names per line


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--init-from", metavar="FILE",
                        help="start a new run from the weights and tokenizer of another run's best.safetensors, with "
                             "any recipe: another learning rate, input size, data set")
    parser.add_argument("--init-from-skip", nargs="+", default=[], metavar="PREFIX",
                        help="parameters whose names start so (encoder.backbone, pixel_decoder, …) start fresh")


def from_arguments(args: argparse.Namespace):
    """(InitialWeights or None, the overrides that stood behind ``--init-from-skip``).

    Raises:
        UserError: options that exclude each other, or no checkpoint.
    """
    skip = tuple(name for name in args.init_from_skip if "=" not in name)
    if args.init_from and args.resume:
        raise UserError("--resume continues a run, --init-from starts a new one from its weights; give one of them")
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
        self.source, self.skip = str(path), tuple(map(current_name, skip))
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
        checkpoint = self.checkpoint
        arrays = checkpoint.section("model") | checkpoint.section("ema")  # what is frozen has no average
        parameters = {p.name: p for p in model.get_parameters()}
        self._check_skips(parameters.keys() | arrays.keys())
        self._check_settings(config)
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
        compared = {name: place for name, place in COMPARED.items()
                    if config.model.sentence_mask or not name.startswith("model.query_")}
        other = {f"{name} was {_field(before, name)}, now {_field(config, name)}": place
                 for name, place in compared.items() if _field(before, name) != _field(config, name)}
        for part, place in PARTS.items():
            other |= {f"{name} was {old}, now {new}": place
                      for name, old, new, free in _differences(before, config, part) if not free}
        other = {line: place for line, place in other.items() if not self.skips(place)}
        if other:
            places = sorted({place.rstrip(".") for place in other.values()})
            raise UserError(f"{self.source}: its weights would compute something else: {'; '.join(other)}; set it "
                            f"back, or let the part start fresh with --init-from-skip {' '.join(places)}")

    def _check_skips(self, names):
        for prefix in self.skip:
            if not any(name.startswith(prefix) for name in names):
                raise UserError(f"--init-from-skip {prefix}: no parameter's name starts so; names start with "
                                "encoder.backbone, encoder.text, encoder.fusion, pixel_decoder, mask_generator, head")

    def _refuse(self, misfits: list):
        parts = sorted({".".join(line.split()[0].split(".")[:2 if line.startswith("encoder.") else 1])
                        for line in misfits})
        raise UserError(f"{self.source}: {len(misfits)} parameters do not fit: {_some(misfits)}; choose the "
                        f"checkpoint's network, or let them start fresh with --init-from-skip {' '.join(parts)}")

    def _load_pretrained(self, model, config: Config):
        """Encoders that are left out as a whole may start from files of their own, as in any other run."""
        for part, field, load in ((BACKBONE, "backbone_weights", build.load_pretrained_backbone),
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
        reported = [(name, _field(before.config, name), _field(config, name)) for name in REPORTED]
        reported += [entry[:3] for part in PARTS for entry in _differences(before.config, config, part)]
        self.lines += [f"  {name}: was {old}, now {new}" for name, old, new in reported if old != new]


def _differences(before: Config, config: Config, part: str) -> list[tuple]:
    """(field, value before, value now, whether the weights allow it) for each of a part's settings that differ."""
    old, new = getattr(before.model, part), getattr(config.model, part)
    if old.name != new.name:
        return [(f"model.{part}.name", old.name, new.name, False)]
    return [(name := f"model.{part}.{f.name}", _field(before, name), _field(config, name), f.name in new.may_differ)
            for f in dataclasses.fields(new) if getattr(old, f.name) != getattr(new, f.name)]


def _field(config: Config, name: str):
    value = config
    for part in name.split("."):
        value = getattr(value, part)
    return list(value) if isinstance(value, tuple) else value


def _some(names: list) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
