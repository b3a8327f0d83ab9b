"""Other projects' parameter names -> ours, by the ordered rules of a ``Source`` (models/backbones/published.py)."""

import re
from dataclasses import dataclass

import numpy as np

from mindspore_coupalign.errors import UserError
from mindspore_coupalign.models.backbones.published import PLAIN, Source

_BERT = (
    (r"embeddings\.(position_ids|token_type_ids)", None),
    (r"embeddings\.(word|position|token_type)_embeddings\.weight", r"embed.\1_embeddings"),
    (r"embeddings\.LayerNorm\.(.+)", r"embed.norm.\1"),
    (rf"encoder\.layer\.(\d+)\.attention\.self\.(q|k|v)(?:uery|ey|alue)\.{PLAIN}", r"layers.\1.attention.\2.\3"),
    (rf"encoder\.layer\.(\d+)\.attention\.output\.dense\.{PLAIN}", r"layers.\1.attention.proj.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.(.+)", r"layers.\1.norm1.\2"),
    (rf"encoder\.layer\.(\d+)\.intermediate\.dense\.{PLAIN}", r"layers.\1.mlp.fc1.\2"),
    (rf"encoder\.layer\.(\d+)\.output\.dense\.{PLAIN}", r"layers.\1.mlp.fc2.\2"),
    (r"encoder\.layer\.(\d+)\.output\.LayerNorm\.(.+)", r"layers.\1.norm2.\2"),
    (r"(pooler|cls|classifier|qa_outputs)\..+", None),
)
BERT = (Source("BERT, transformers names", "embeddings.word_embeddings.weight", _BERT),)
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # of PyTorch, at any depth


@dataclass(frozen=True)
class Renamed:
    """``arrays`` by our names; ``skipped`` and ``unknown`` are names of the file's."""

    source: Source
    arrays: dict
    skipped: list
    unknown: list


def rename(architecture: str, sources: tuple[Source, ...], arrays: dict, path: str, groups: tuple = ()) -> Renamed:
    """A file's arrays under our names: rules applied, fused qkv split, BERT's layers counted by group.

    The encoder may lie anywhere in a larger network (``backbone.``, ``model.swin.``, ``module.…``): what does not lie
    beside it is another part, such as a segmentation head, and is skipped.

    Args:
        architecture: for messages.
        groups: BERT's layers beside each visual stage.

    Raises:
        UserError: the file holds no such architecture, or two networks.
    """
    bare = {_without_wrappers(name): array for name, array in arrays.items()}
    marks = {(prefix, source) for name in bare for source in sources
             if (prefix := _before(name, source.mark)) is not None}
    if len(bare) < len(arrays) or len(marks) > 1:
        where = ", ".join(sorted({repr(prefix) for prefix, _ in marks}))
        raise UserError(f"{path}: holds two networks, under different prefixes ({where}); give a file with one of them")
    if not marks:
        known = " or ".join(s.mark for s in sources)
        raise UserError(f"{path}: holds no {architecture} weights (no {known}); its first names are "
                        f"{', '.join(sorted(bare)[:3])}")
    ((prefix, source),) = marks
    skipped = [name for name in bare if not name.startswith(prefix)]
    arrays = {name[len(prefix):]: array for name, array in bare.items() if name.startswith(prefix)}
    if source.prepare is not None:
        arrays, left_out = source.prepare(arrays)
        skipped += left_out
    own: dict[str, np.ndarray] = {}
    unknown = []
    for name, array in arrays.items():
        new = _by_rules(name, source.rules)
        if new is None:
            skipped.append(name)
        elif not new:
            unknown.append(name)
        else:
            new = _grouped(new, groups)
            own |= _split_qkv(new, array, path) if ".qkv." in new else {_norm_name(new): array}
    return Renamed(source, own, sorted(skipped), sorted(unknown))


def _without_wrappers(name: str) -> str:
    """Without what PyTorch's wrappers put between the parts of a name."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _before(name: str, mark: str) -> str | None:
    """What stands before the mark at a name's end: empty, or the path to the backbone with its dot."""
    prefix = name.removesuffix(mark)
    return prefix if prefix != name and (not prefix or prefix.endswith(".")) else None


def _by_rules(name: str, rules: tuple) -> str | None:
    """The new name; None for skipped, empty for unknown."""
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return None if replacement is None else match.expand(replacement)
    return ""


def _grouped(name: str, groups: tuple) -> str:
    """BERT's ``layers.<n>.…`` -> ``groups.<g>.layers.<n in the group>.…``."""
    kind, *rest = name.split(".")
    if kind != "layers":
        return name
    if not groups:
        return ".".join(["stages", *rest])
    layer, ends = int(rest[0]), np.cumsum(groups)
    group = int(np.searchsorted(ends, layer, side="right"))
    if group == len(groups):
        return name  # a layer too many: reported as unexpected
    return ".".join(["groups", str(group), "layers", str(layer - int(ends[group]) + groups[group]), *rest[1:]])


def _norm_name(name: str) -> str:
    """``…norm1.weight`` -> ``…norm1.gamma`` and so on; old files of BERT have gamma and beta already."""
    *path, kind = name.split(".")
    if path and re.fullmatch(r"(norm\d?|bn)", path[-1]) or path[:1] == ["outputs"]:
        return ".".join([*path[:-1], "norm" if path[-1] == "bn" else path[-1], NORM.get(kind, kind)])
    return name


def _split_qkv(name: str, array: np.ndarray, path: str) -> dict:
    if array.ndim == 0 or len(array) % 3:
        raise UserError(f"{path}: {name} does not split into three; these weights are of another network")
    return {name.replace(".qkv.", f".{part}."): piece for part, piece in zip("qkv", np.split(array, 3), strict=True)}
