"""The contract between the network and its parts, and the registry that finds a part by the name in a configuration.

A part is a cell with a dataclass of settings, registered for one of ``KINDS``:

    @dataclass(frozen=True)
    class MyFusionSettings(FusionSettings):
        name: str = "mine"
        heads: int = 4

    @register("fusion", MyFusionSettings)
    class MyFusion(nn.Cell):
        def __init__(self, settings, *, stage, pixel_dim, word_dim): ...

``model.fusion.name: mine`` then chooses it, and ``model.fusion.heads`` sets its field. What each kind is given and has
to return: docs/extending.md. Parts from outside the package are imported from the modules that the environment variable
``COUPALIGN_PARTS`` names; nothing in a configuration or a checkpoint is ever imported or executed.

This module imports no MindSpore; looking a part up does.
"""

import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from mindspore_coupalign.errors import UserError

KINDS = {"backbone": "backbones", "fusion": "fusion", "decoder": "decoders", "head": "heads", "loss": "losses"}
VARIABLE = "COUPALIGN_PARTS"
Rule = tuple[bool, str]  # (is it fulfilled, what to say if not)

_registry: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}


def one_of(name: str, value, choices) -> Rule:
    return value in choices, f"{name} must be one of {', '.join(map(str, choices))}, found {value!r}"


@dataclass(frozen=True)
class Settings:
    """What a configuration says of a part. Subclasses add fields; a comment behind a field describes it to users."""

    name: str = ""  # which part of its kind
    may_differ: ClassVar[tuple[str, ...]] = ()  # fields that --init-from need not find equal: array shapes show them,
    # or the weights stay right under another value

    def rules(self, prefix: str) -> Iterator[Rule]:
        """What the fields must fulfil, each rule relying on those before; ``prefix`` is the section's name."""
        yield from ()


@dataclass(frozen=True)
class BackboneSettings(Settings):
    embed_dim: int = 128  # channels of stage 1; each stage doubles them
    depths: tuple[int, ...] = (2, 2, 18, 2)  # blocks of each stage
    may_differ: ClassVar[tuple[str, ...]] = ("embed_dim", "depths")

    @property
    def channels(self) -> list[int]:
        """Of the four stages."""
        return [self.embed_dim * 2**i for i in range(4)]

    def weights_settings(self) -> dict:
        """Settings that pretrained weights depend on and no array's shape shows; ``convert-weights`` records them."""
        return {}

    def published_config(self) -> dict:
        """What a Hugging Face ``config.json`` beside the weights must say, key -> value; ``model_type`` among them."""
        return {}

    def rules(self, prefix: str) -> Iterator[Rule]:
        yield self.embed_dim >= 1, f"{prefix}.embed_dim must be at least 1"
        yield (len(self.depths) == 4 and min(self.depths) >= 1,
               f"{prefix}.depths needs four positive numbers, one per stage")


@dataclass(frozen=True)
class FusionSettings(Settings):
    stages: tuple[int, ...] = (1, 2, 3, 4)  # the visual stages after which words and pixels are fused

    def rules(self, prefix: str) -> Iterator[Rule]:
        yield (set(self.stages) <= {1, 2, 3, 4} and len(set(self.stages)) == len(self.stages),
               f"{prefix}.stages is a list of different stages from 1 to 4")

    def rules_for(self, prefix: str, channels: list[int], word_dim: int) -> Iterator[Rule]:
        """What the fields must fulfil beside a backbone's channels and the text encoder's width."""
        yield from ()


@dataclass(frozen=True)
class DecoderSettings(Settings):
    dim: int = 256  # channels of the pixel embedding and the mask embeddings
    may_differ: ClassVar[tuple[str, ...]] = ("dim",)

    def rules(self, prefix: str) -> Iterator[Rule]:
        yield self.dim >= 1, f"{prefix}.dim must be at least 1"


@dataclass(frozen=True)
class HeadSettings(Settings):
    pass


@dataclass(frozen=True)
class LossSettings(Settings):
    weight: float = 1.0  # of the term in the sum

    def rules(self, prefix: str) -> Iterator[Rule]:
        yield self.weight > 0, f"{prefix}.weight must be positive; leave the loss out instead"


def register(kind: str, settings: type[Settings]):
    """Class decorator: the cell is the part of ``kind`` that ``settings``' name chooses, and has them as ``settings``.

    Raises:
        ValueError: no such kind, settings that cannot be read from a configuration, or a name that is empty or taken.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind}: no kind of part; kinds are {', '.join(KINDS)}")
    _check_settings(settings)
    name = settings().name

    def enter(cell: type) -> type:
        taken = _registry[kind].get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cell.__module__, cell.__qualname__):
            raise ValueError(f"{kind} {name!r}: {taken.__module__} has a part of that name")
        cell.Settings = settings
        _registry[kind][name] = cell
        return cell

    return enter


def _check_settings(settings: type):
    """That a configuration can hold the fields: numbers, texts, true or false, and tuples of one of these."""
    title, hints = settings.__name__, get_type_hints(settings)
    if "__dataclass_fields__" not in vars(settings):
        raise ValueError(f"{title} is no dataclass; write @dataclass(frozen=True) above it")
    if not settings().name:
        raise ValueError(f"{title} needs a name: str = \"…\", by which a configuration chooses the part")
    for field in fields(settings):
        kind, value = hints[field.name], getattr(settings(), field.name)
        plain = get_args(kind)[:1] if get_origin(kind) is tuple else (kind,)
        number = (int, float) if kind is float else get_origin(kind) or kind
        if plain[0] not in (int, float, str, bool) or not isinstance(value, number):
            raise ValueError(f"{title}.{field.name}: a setting is an int, float, str, bool or a tuple of one of these, "
                             f"with a default of that type; found {field.type!r} = {value!r}")


def known(kind: str) -> dict[str, Any]:
    """The parts of a kind by name: the package's, then those of the modules in COUPALIGN_PARTS.

    Raises:
        UserError: a module of COUPALIGN_PARTS cannot be imported.
    """
    importlib.import_module(f"{__package__}.{KINDS[kind]}")
    for module in filter(None, (name.strip() for name in os.environ.get(VARIABLE, "").split(","))):
        try:
            importlib.import_module(module)
        except (ImportError, SyntaxError, ValueError) as exc:
            raise UserError(f"{VARIABLE}={module}: cannot be imported ({exc}); it must be the name of a module on "
                            "PYTHONPATH, without .py, that registers parts") from exc
    return _registry[kind]


def is_own(cell: type) -> bool:
    """Whether a part comes from outside this package."""
    return cell.__module__.partition(".")[0] != __package__.partition(".")[0]


def find(kind: str, name: str, key: str = "") -> Any:
    """The part's cell class; its ``Settings`` is the dataclass of its settings.

    Args:
        key: the configuration's section, for the message.

    Raises:
        UserError: there is none of that name.
    """
    parts = known(kind)
    if name not in parts:
        raise UserError(f"{key or kind}.name must be one of {', '.join(parts)}, found {name!r}; a part of your own is "
                        f"known where {VARIABLE} names its module")
    return parts[name]


def default_settings(kind: str, name: str) -> Settings:
    return find(kind, name).Settings()
