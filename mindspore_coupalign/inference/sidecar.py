"""The sidecar, ``<graph>.json``: what a program needs besides an exported graph (MINDIR or ONNX) to predict as this
project does. Needs neither MindSpore nor onnxruntime.

It lists the graph's files with their SHA-256, inputs and outputs in the graph's order with names, shapes and types,
how an image becomes the input and the logits become a mask, the tokenizer with its padding, and the threshold. "B" in
a shape is a batch of any size. It names no folder of the machine that wrote it.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

from mindspore_coupalign.config import Config
from mindspore_coupalign.config.paths import without_paths
from mindspore_coupalign.errors import UserError

FORMAT = "coupalign-graph-2"
SEEN = "seen_images"  # KEY of data/leakage.py, which would import what only training needs
FIRST_FORMAT = "coupalign-mindir-1"  # a batch of one, float32 pixels; no lists of inputs and outputs
_FIELDS = {"sha256": str, "input_size": int, "mean": list, "std": list, "threshold": float, "max_tokens": int,
           "tokenizer": str}
_AGAIN = "; export the checkpoint again"
_COMPLETED: dict = {"exists_threshold": 0.5, "min_pixels": 0}  # what files of earlier versions lack
RESIZE = {
    "image": "The image (h, w), RGB, 8 bits, is resized to S x S, S = input_size, without keeping its aspect ratio, "
             "in half-pixel coordinates, in two steps: first to (min(h, S), min(w, S)), if that is another size, by "
             "averaging areas (OpenCV's INTER_AREA); then to (S, S), if that is another size, bilinearly without "
             "antialiasing (OpenCV's INTER_LINEAR). Each step is rounded to 8 bits.",
    "logits": "The logits (S, S), float32, are resized to the image's (h, w) bilinearly, in half-pixel coordinates, "
              "without antialiasing (OpenCV's INTER_LINEAR). A pixel is in the mask where they exceed "
              "log(threshold / (1 - threshold)); its probability is 1 / (1 + exp(-logit)). A mask of fewer than "
              "min_pixels pixels is emptied.",
}
HAS_TARGET = ("a logit; where it does not exceed log(exists_threshold / (1 - exists_threshold)), the sentence has no "
              "target in this image, and its mask is emptied")
TARGET_OUTPUTS = ("has_target", "exists")  # names of the second output; earlier versions wrote the last
NORMALISED = "channel c is (value / 255 - mean[c]) / std[c] of the resized image, R G B"
PLAIN = "the resized image's values, R G B; the graph normalises them"


def sidecar_path(graph: Path) -> Path:
    return graph.with_name(graph.name + ".json")


def describe(kind: str, config: Config, tokenizer, *, batch: int | None = None, uint8: bool = False) -> dict:
    """What a sidecar says of a graph before it is written; ``write`` adds the files.

    Args:
        kind: "mindir" or "onnx".
        tokenizer: the network's SentenceTokenizer.
        batch: of the graph's inputs; None: any.
        uint8: the image is (B, H, W, 3) uint8 and the graph normalises it.
    """
    data, b = config.data, batch or "B"
    size, tokens = data.image_size, data.max_tokens
    image = {"name": "image", "shape": [b, size, size, 3] if uint8 else [b, 3, size, size],
             "type": "uint8" if uint8 else "float32", "values": PLAIN if uint8 else NORMALISED}
    outputs = [{"name": "logits", "shape": [b, 1, size, size], "type": "float32", "values": "see resize"}]
    if config.model.no_target:
        outputs.append({"name": "has_target", "shape": [b], "type": "float32", "values": HAS_TARGET})
    return {
        "format": FORMAT, "kind": kind,
        "inputs": [image,
                   {"name": "ids", "shape": [b, tokens], "type": "int32", "values": "word pieces, see padding"},
                   {"name": "word_mask", "shape": [b, tokens], "type": "int32", "values": "1 = piece, 0 = padding"}],
        "outputs": outputs,
        "batch": batch, "input_size": size, "mean": list(data.mean), "std": list(data.std), "resize": RESIZE,
        "threshold": config.eval.threshold, "exists_threshold": config.eval.target_threshold,
        "min_pixels": config.eval.min_pixels, "max_tokens": tokens,
        "padding": {"id": tokenizer.pad_id, "side": "right", "length": tokens,
                    "truncation": "of a longer sentence the first max_tokens - 1 pieces and the last one, [SEP]"},
        "tokenizer": tokenizer.to_json(), "config": without_paths(config)}


def write(path: Path, graph: Path, facts: dict, weights: Sequence[Path] = ()):
    """Write the sidecar of a finished graph.

    Args:
        path: where to; ``sidecar_path`` of the graph's final name.
        graph: the file; ``weights``, its files of weights, lie in folders beside it.
    """
    beside = {file.relative_to(graph.parent).as_posix(): sha256(file) for file in weights}
    path.write_text(json.dumps(facts | {"sha256": sha256(graph), "weights": beside}, indent=1) + "\n",
                    encoding="utf-8")


def read(graph: Path, kind: str) -> dict:
    """A sidecar's facts, those of the first format completed to today's, checked against the graph's files.

    Args:
        kind: of the graph, "mindir" or "onnx".

    Raises:
        UserError: graph or sidecar is missing or damaged, or they do not belong together.
    """
    facts, path = _parse(graph, kind), sidecar_path(graph)
    for name, expected in ((graph.name, facts["sha256"]), *facts["weights"].items()):
        file = graph.parent / name
        try:
            found = sha256(file)
        except OSError as exc:
            raise UserError(f"{file}: cannot be read ({exc.strerror}); `coupalign export` writes it") from exc
        if found != expected:
            raise UserError(f"{file}: not the file that {path.name} describes (its sha256 differs); export the "
                            "checkpoint again")
    return facts


def origin(progress: dict) -> dict:
    """What a graph's file keeps of the checkpoint's progress: the step, and the images that it was trained on."""
    return {"step": progress.get("step")} | ({SEEN: progress[SEEN]} if SEEN in progress else {})


def takes_uint8(facts: dict) -> bool:
    return facts["inputs"][0]["type"] == "uint8"


def _parse(graph: Path, kind: str) -> dict:
    path = sidecar_path(graph)
    facts = _load(graph, path, kind)
    if not isinstance(facts, dict) or facts.get("format") not in (FORMAT, FIRST_FORMAT):
        raise UserError(f"{path}: field 'format' is not {FORMAT!r}; export the checkpoint again with this version")
    for name, wanted in _FIELDS.items():
        if type(facts.get(name)) is not wanted and not (wanted is float and type(facts.get(name)) is int):
            raise UserError(f"{path}: field {name!r} is missing or mistyped{_AGAIN}")
    facts = _COMPLETED | facts
    _check_values(path, facts)
    if facts["format"] == FIRST_FORMAT:
        facts |= {"kind": "mindir", "batch": 1, "weights": {}, "inputs": [{"name": "image", "type": "float32"}]}
    else:
        _check_graph(path, facts)
    if facts["kind"] != kind:
        raise UserError(f"{path}: {graph.name} is a graph of kind {facts['kind']}, not {kind}; give it as "
                        f"--{facts['kind']}, or as --model")
    return facts


def _load(graph: Path, path: Path, kind: str):
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as exc:
        if not graph.exists():
            raise UserError(f"{graph}: no such file; `coupalign export` writes it") from exc
        raise UserError(f"{path}: no such file; it holds the tokenizer and belongs beside the .{kind}") from exc
    except OSError as exc:
        raise UserError(f"{path}: cannot be read ({exc.strerror})") from exc
    except ValueError as exc:
        raise UserError(f"{path}: not valid JSON ({str(exc)[:80]}){_AGAIN}") from exc


def _check_values(path: Path, facts: dict):
    """Check the ranges of the numbers that both formats have."""
    for name in ("threshold", "exists_threshold"):
        if type(facts[name]) not in (int, float) or not 0 < facts[name] < 1:
            raise UserError(f"{path}: field {name!r} must lie between 0 and 1, found {facts[name]!r}")
    for name, least in (("min_pixels", 0), ("input_size", 1), ("max_tokens", 3)):
        if type(facts[name]) is not int or facts[name] < least:
            raise UserError(f"{path}: field {name!r} must be an integer of at least {least}, found "
                            f"{facts[name]!r}{_AGAIN}")
    for name, bound in (("mean", -math.inf), ("std", 0.0)):
        values = facts[name]
        if len(values) != 3 or not all(type(v) in (int, float) and bound < v < math.inf for v in values):
            which = "positive" if bound == 0 else "finite"
            raise UserError(f"{path}: field {name!r} must be three {which} numbers, R G B, found {values}")


def _check_graph(path: Path, facts: dict):
    """Check what the first format lacks."""
    if facts.get("kind") not in ("mindir", "onnx"):
        raise UserError(f"{path}: field 'kind' must be mindir or onnx, found {facts.get('kind')!r}{_AGAIN}")
    batch, size, tokens = facts.get("batch", 0), facts["input_size"], facts["max_tokens"]
    if batch is not None and not (type(batch) is int and batch >= 1):
        raise UserError(f"{path}: field 'batch' must be null or a positive number, found {batch!r}{_AGAIN}")
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in _list(facts.get("inputs"))]
    if names != ["image", "ids", "word_mask"] or facts["inputs"][0].get("type") not in ("float32", "uint8"):
        raise UserError(f"{path}: field 'inputs' must list image (float32 or uint8), ids and word_mask{_AGAIN}")
    b = batch or "B"
    image = [b, size, size, 3] if takes_uint8(facts) else [b, 3, size, size]
    for entry, expected in zip(facts["inputs"], (image, [b, tokens], [b, tokens]), strict=True):
        if entry.get("shape") != expected:
            raise UserError(f"{path}: input {entry['name']} has shape {entry.get('shape')}, but by batch, input_size, "
                            f"max_tokens and its type it is {expected}{_AGAIN}")
    outputs = [entry.get("name") if isinstance(entry, dict) else None for entry in _list(facts.get("outputs"))]
    if outputs[:1] != ["logits"] or len(outputs) > 2 or not set(outputs[1:]) <= set(TARGET_OUTPUTS):
        raise UserError(f"{path}: field 'outputs' must list logits, and has_target where the graph has it{_AGAIN}")
    weights = facts.get("weights")
    if not isinstance(weights, dict) or not all(
            isinstance(value, str) and not Path(name).is_absolute() and ".." not in Path(name).parts
            for name, value in weights.items()):
        raise UserError(f"{path}: field 'weights' must name files beside the graph{_AGAIN}")


def _list(value) -> list:
    return value if isinstance(value, list) else []


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
