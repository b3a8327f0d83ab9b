"""Other projects' parameter names -> ours, as ordered rules. The first rule that fits a whole name decides.

A rule is (pattern, replacement); a replacement of None skips the array: a buffer that is derived here, or a head that
belongs to another task. An array that no rule fits is an error of the caller's. After the rules, the weights, biases
and statistics of norm layers get MindSpore's names (``NORM``).
"""

import re
from dataclasses import dataclass

import numpy as np

from mindspore_coupalign.errors import UserError

_SWIN_BUFFERS = (r".*(relative_position_index|attn_mask|relative_coords_table)", None)
_PLAIN = r"(weight|bias)"
_HEADS = (r"(decode_head|auxiliary_head|neck|rpn_head|roi_head|bbox_head|mask_head)\..+", None)

SWIN = (  # the official repository's, LAVT's and timm's below 0.9; newer ones of timm after ``_timm_swin``
    _SWIN_BUFFERS,
    (rf"patch_embed\.(proj|norm)\.{_PLAIN}", r"embed.\1.\2"),
    (r"layers\.(\d+)\.(blocks\.\d+\..+)", r"stages.\1.\2"),
    (r"layers\.(\d+)\.downsample\.(.+)", r"downsamples.\1.\2"),
    (rf"norm(\d)\.{_PLAIN}", r"outputs.\1.\2"),  # segmentation networks normalise each stage, as ours do
    (r"(norm|head)\..+", None),
    _HEADS,
)
_MM_BLOCK = r"stages\.(\d+)\.(blocks\.\d+)"
SWIN_MM = (  # OpenMMLab's: mmsegmentation, mmdetection, mmpretrain
    _SWIN_BUFFERS,
    (rf"patch_embed\.projection\.{_PLAIN}", r"embed.proj.\1"),
    (rf"patch_embed\.norm\.{_PLAIN}", r"embed.norm.\1"),
    (rf"{_MM_BLOCK}\.(norm\d)\.{_PLAIN}", r"stages.\1.\2.\3.\4"),
    (rf"{_MM_BLOCK}\.attn\.w_msa\.(.+)", r"stages.\1.\2.attn.\3"),
    (rf"{_MM_BLOCK}\.ffn\.layers\.0\.0\.{_PLAIN}", r"stages.\1.\2.mlp.fc1.\3"),
    (rf"{_MM_BLOCK}\.ffn\.layers\.1\.{_PLAIN}", r"stages.\1.\2.mlp.fc2.\3"),
    (r"stages\.(\d+)\.downsample\.(.+)", r"downsamples.\1.\2"),
    (rf"norm(\d)\.{_PLAIN}", r"outputs.\1.\2"),
    (r"head\..+", None),
    _HEADS,
)
SWIN_TRANSFORMERS = (  # what model.safetensors holds, and the names of version 5's modules
    _SWIN_BUFFERS,
    (rf"embeddings\.patch_embeddings\.projection\.{_PLAIN}", r"embed.proj.\1"),
    (rf"embeddings\.norm\.{_PLAIN}", r"embed.norm.\1"),
    (rf"encoder\.(layers\.\d+\.blocks\.\d+)\.layernorm_before\.{_PLAIN}", r"\1.norm1.\2"),
    (rf"encoder\.(layers\.\d+\.blocks\.\d+)\.layernorm_after\.{_PLAIN}", r"\1.norm2.\2"),
    (rf"encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.(?:self\.)?(q|k|v)(?:uery|ey|alue|_proj)\.{_PLAIN}",
     r"\1.attn.\2.\3"),
    (r"encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.(?:self|relative_position_bias)\.(relative_position_bias_table)",
     r"\1.attn.\2"),
    (rf"encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.(?:output\.dense|o_proj)\.{_PLAIN}", r"\1.attn.proj.\2"),
    (rf"encoder\.(layers\.\d+\.blocks\.\d+)\.(?:intermediate\.dense|mlp\.fc1)\.{_PLAIN}", r"\1.mlp.fc1.\2"),
    (rf"encoder\.(layers\.\d+\.blocks\.\d+)\.(?:output\.dense|mlp\.fc2)\.{_PLAIN}", r"\1.mlp.fc2.\2"),
    (r"encoder\.layers\.(\d+)\.downsample\.(.+)", r"downsamples.\1.\2"),
    *((rf"hidden_states_norms\.stage{i + 1}\.{_PLAIN}", rf"outputs.{i}.\1") for i in range(4)),
    (r"(layernorm|classifier|pooler)\..+", None),
)
RESNET = (  # torchvision's and timm's
    (r".*num_batches_tracked", None),
    (r"conv1\.weight", r"embed.blocks.0.conv.weight"),
    (r"bn1\.(.+)", r"embed.blocks.0.norm.\1"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.weight", r"layers.\1.blocks.\2.conv\3.conv.weight"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(.+)", r"layers.\1.blocks.\2.conv\3.norm.\4"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.weight", r"layers.\1.blocks.\2.shortcut.conv.weight"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(.+)", r"layers.\1.blocks.\2.shortcut.norm.\3"),
    (r"fc\..+", None),
    _HEADS,
)
RESNET_TRANSFORMERS = (
    (r".*num_batches_tracked", None),
    (r"embedder\.embedder\.convolution\.weight", r"embed.blocks.0.conv.weight"),
    (r"embedder\.embedder\.normalization\.(.+)", r"embed.blocks.0.norm.\1"),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.convolution\.weight",
     r"stages.\1.blocks.\2.shortcut.conv.weight"),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.normalization\.(.+)", r"stages.\1.blocks.\2.shortcut.norm.\3"),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.convolution\.weight", r"counted.\1.blocks.\2.\3.conv.weight"),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.normalization\.(.+)", r"counted.\1.blocks.\2.\3.norm.\4"),
    (r"classifier\..+", None),
)
DARKNET = (  # timm's; its first stage is part of our stem
    (r".*num_batches_tracked", None),
    (r"stem\.conv1\.(conv|bn)\.(.+)", r"embed.blocks.0.\1.\2"),
    (r"stages\.0\.conv_down\.(.+)", r"embed.blocks.1.\1"),
    (r"stages\.0\.blocks\.0\.(.+)", r"embed.blocks.2.\1"),
    (r"stages\.1\.conv_down\.(.+)", r"embed.blocks.3.\1"),
    (r"stages\.(\d)\.conv_down\.(.+)", r"down.\1.blocks.0.\2"),
    (r"stages\.(\d)\.(blocks\.\d+\..+)", r"layers.\1.\2"),
    (r"head\..+", None),
)
BERT = (
    (r"embeddings\.(position_ids|token_type_ids)", None),
    (r"embeddings\.(word|position|token_type)_embeddings\.weight", r"embed.\1_embeddings"),
    (r"embeddings\.LayerNorm\.(.+)", r"embed.norm.\1"),
    (rf"encoder\.layer\.(\d+)\.attention\.self\.(q|k|v)(?:uery|ey|alue)\.{_PLAIN}", r"layers.\1.attention.\2.\3"),
    (rf"encoder\.layer\.(\d+)\.attention\.output\.dense\.{_PLAIN}", r"layers.\1.attention.proj.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.(.+)", r"layers.\1.norm1.\2"),
    (rf"encoder\.layer\.(\d+)\.intermediate\.dense\.{_PLAIN}", r"layers.\1.mlp.fc1.\2"),
    (rf"encoder\.layer\.(\d+)\.output\.dense\.{_PLAIN}", r"layers.\1.mlp.fc2.\2"),
    (r"encoder\.layer\.(\d+)\.output\.LayerNorm\.(.+)", r"layers.\1.norm2.\2"),
    (r"(pooler|cls|classifier|qa_outputs)\..+", None),
)
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


@dataclass(frozen=True)
class Source:
    """One way to name an architecture's parameters."""

    title: str
    mark: str  # a name that only this source has
    rules: tuple


SOURCES = {
    "swin": (Source("Swin, official or timm names", "patch_embed.proj.weight", SWIN),
             Source("Swin, OpenMMLab's names", "patch_embed.projection.weight", SWIN_MM),
             Source("Swin, transformers names", "embeddings.patch_embeddings.projection.weight", SWIN_TRANSFORMERS)),
    "resnet": (Source("ResNet, torchvision or timm names", "layer1.0.conv3.weight", RESNET),
               Source("ResNet, transformers names", "embedder.embedder.convolution.weight", RESNET_TRANSFORMERS)),
    "darknet": (Source("Darknet-53, timm names", "stages.0.conv_down.conv.weight", DARKNET),),
    "bert": (Source("BERT, transformers names", "embeddings.word_embeddings.weight", BERT),),
}
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # of PyTorch, at any depth


@dataclass(frozen=True)
class Renamed:
    """``arrays`` by our names; ``skipped`` and ``unknown`` are names of the file's."""

    title: str
    arrays: dict
    skipped: list
    unknown: list


def rename(architecture: str, arrays: dict, path: str, groups: tuple = ()) -> Renamed:
    """A file's arrays under our names: rules applied, fused qkv split, BERT's layers counted by group.

    The backbone may lie anywhere in a larger network (``backbone.``, ``model.swin.``, ``module.…``): what does not lie
    beside it is another part, such as a segmentation head, and is skipped.

    Args:
        architecture: swin, resnet, darknet or bert.
        groups: BERT's layers beside each visual stage.

    Raises:
        UserError: the file holds no such architecture, or two networks.
    """
    bare = {_without_wrappers(name): array for name, array in arrays.items()}
    marks = {(prefix, source) for name in bare for source in SOURCES[architecture]
             if (prefix := _before(name, source.mark)) is not None}
    if len(bare) < len(arrays) or len(marks) > 1:
        where = ", ".join(sorted({repr(prefix) for prefix, _ in marks}))
        raise UserError(f"{path}: holds two networks, under different prefixes ({where}); give a file with one of them")
    if not marks:
        known = " or ".join(s.mark for s in SOURCES[architecture])
        raise UserError(f"{path}: holds no {architecture} weights (no {known}); its first names are "
                        f"{', '.join(sorted(bare)[:3])}")
    ((prefix, source),) = marks
    arrays = {name[len(prefix):]: array for name, array in bare.items() if name.startswith(prefix)}
    if source.rules is SWIN_MM:
        arrays = _official_merging(arrays)
    classifiers = ("norm3.weight", "norm3.bias") if source.rules is SWIN_MM and "norm0.weight" not in arrays else ()
    own: dict[str, np.ndarray] = {}
    unknown = []
    skipped = [name for name in bare if not name.startswith(prefix)]
    shift = _index_shift(architecture, arrays)
    for name, array in arrays.items():
        new = None if name in classifiers else _by_rules(name, source.rules)
        if new is None:
            skipped.append(name)
        elif not new:
            unknown.append(name)
        else:
            new = _place(new, shift, groups)
            own |= _split_qkv(new, array, path) if ".qkv." in new else {_norm_name(new): array}
    return Renamed(source.title, own, sorted(skipped), sorted(unknown))


def _without_wrappers(name: str) -> str:
    """Without what PyTorch's wrappers put between the parts of a name."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _before(name: str, mark: str) -> str | None:
    """What stands before the mark at a name's end: empty, or the path to the backbone with its dot."""
    prefix = name.removesuffix(mark)
    return prefix if prefix != name and (not prefix or prefix.endswith(".")) else None


def _official_merging(arrays: dict) -> dict:
    """OpenMMLab merges patches by nn.Unfold, whose channels go (channel, row, column); the official code, and ours, put
    the four neighbours one after the other: (0,0), (1,0), (0,1), (1,1) as (row, column).

    Source: mmseg/models/utils/embed.py (PatchMerging) and tools/model_converters/swin2mmseg.py, which does the reverse.
    """
    def turned(array: np.ndarray) -> np.ndarray:
        if array.ndim not in (1, 2) or array.shape[-1] % 4:
            return array  # of another network: its shape will be reported
        by_place = array.reshape(*array.shape[:-1], -1, 4)[..., [0, 2, 1, 3]]
        return np.ascontiguousarray(by_place.swapaxes(-1, -2)).reshape(array.shape)

    return {name: turned(array) if re.match(r"stages\.\d+\.downsample\.", name) else array
            for name, array in arrays.items()}


def _by_rules(name: str, rules: tuple) -> str | None:
    """The new name; None for skipped, empty for unknown."""
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return None if replacement is None else match.expand(replacement)
    return ""


def _index_shift(architecture: str, arrays: dict) -> dict:
    """What is to be subtracted from the stage numbers of ``downsamples``, ``layers`` and ``down``."""
    if architecture == "swin":  # timm 0.9 and later keep the downsampling at the start of the stage that it leads to
        return {"downsamples": int("layers.3.downsample.norm.weight" in arrays)}
    return {"resnet": {"layers": 1}, "darknet": {"layers": 1, "down": 2}}.get(architecture, {})


def _place(name: str, shift: dict, groups: tuple) -> str:
    """Names with the file's counting -> names with ours."""
    kind, *rest = name.split(".")
    if kind == "layers" and groups:
        layer = int(rest[0])
        ends = np.cumsum(groups)
        group = int(np.searchsorted(ends, layer, side="right"))
        if group == len(groups):
            return name  # a layer too many: reported as unexpected
        return ".".join(["groups", str(group), "layers", str(layer - int(ends[group]) + groups[group]), *rest[1:]])
    if kind == "counted":  # transformers' ResNet counts a block's convolutions from 0
        stage, blocks, block, conv, *rest = rest
        return ".".join(["stages", stage, blocks, block, f"conv{int(conv) + 1}", *rest])
    if kind in ("layers", "down", "downsamples"):
        ours = {"layers": "stages", "down": "downsamples"}.get(kind, kind)
        return ".".join([ours, str(int(rest[0]) - shift.get(kind, 0)), *rest[1:]])
    return name


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
