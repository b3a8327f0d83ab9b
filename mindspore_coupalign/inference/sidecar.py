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
    values = (PLAIN if uint8 else NORMALISED, "word pieces, see padding", "1 = piece, 0 = padding")
    outputs = [{"name": "logits", "shape": [b, 1, size, size], "type": "float32", "values": "see resize"}]
    if config.model.no_target:
        outputs.append({"name": "has_target", "shape": [b], "type": "float32", "values": HAS_TARGET})
    return {
        "format": FORMAT, "kind": kind,
        "inputs": [entry | {"values": text}
                   for entry, text in zip(_inputs(batch, size, tokens, uint8), values, strict=True)],
        "outputs": outputs,
        "batch": batch, "input_size": size, "mean": list(data.mean), "std": list(data.std), "resize": RESIZE,
        "threshold": config.eval.threshold, "exists_threshold": config.eval.target_threshold,
        "min_pixels": config.eval.min_pixels, "max_tokens": tokens,
        "padding": {"id": tokenizer.pad_id, "side": "right", "length": tokens,
                    "truncation": "of a longer sentence the first max_tokens - 1 pieces and the last one, [SEP]"},
        "tokenizer": tokenizer.to_json(), "config": without_paths(config)}


def _inputs(batch: int | None, size: int, tokens: int, uint8: bool) -> list[dict]:
    b = batch or "B"
    image = {"shape": [b, size, size, 3], "type": "uint8"} if uint8 else {"shape": [b, 3, size, size],
                                                                          "type": "float32"}
    words = {"shape": [b, tokens], "type": "int32"}
    return [{"name": "image", **image}, {"name": "ids", **words}, {"name": "word_mask", **words}]


def write(graph: Path, facts: dict, weights: Sequence[Path] = ()):
    """Write the sidecar of a finished graph; ``weights``, its files of weights, lie in folders beside it."""
    beside = {file.relative_to(graph.parent).as_posix(): sha256(file) for file in weights}
    sidecar_path(graph).write_text(json.dumps(facts | {"sha256": sha256(graph), "weights": beside}, indent=1) + "\n",
                                   encoding="utf-8")


def check_utf8(graph: Path, remedy: str):
    try:
        str(graph.absolute()).encode()
    except UnicodeEncodeError as exc:
        raise UserError(f"{graph}: MindSpore and onnxruntime take no file whose path is not UTF-8; {remedy}") from exc


def read(graph: Path, kind: str) -> dict:
    """A sidecar's facts, those of the first format completed to today's, checked against the graph's files.

    Args:
        kind: of the graph, "mindir" or "onnx".

    Raises:
        UserError: graph or sidecar is missing or damaged, or they do not belong together.
    """
    check_utf8(graph, "rename it")
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
    facts = _COMPLETED | facts
    if facts["format"] == FIRST_FORMAT:
        facts |= {"kind": "mindir", "batch": 1, "weights": {}, "inputs": [{"name": "image", "type": "float32"}]}
    _check_values(path, facts)
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
    """Check the ranges of both formats, and what the first lacks."""
    def number(value, low: float, high: float = math.inf) -> bool:
        return type(value) in (int, float) and low < value < high

    def colour(name: str, low: float) -> bool:
        return isinstance(facts.get(name), list) and len(facts[name]) == 3 and all(number(v, low) for v in facts[name])

    def check(name: str, is_right: bool, what: str):
        if not is_right:
            raise UserError(f"{path}: field {name!r} must be {what}, found {str(facts.get(name))[:80]!r}{_AGAIN}")

    for name in ("sha256", "tokenizer"):
        check(name, isinstance(facts.get(name), str), "a text")
    for name in ("threshold", "exists_threshold"):
        check(name, number(facts.get(name), 0, 1), "a number between 0 and 1")
    for name, least in (("min_pixels", 0), ("input_size", 1), ("max_tokens", 3)):
        check(name, type(facts.get(name)) is int and facts[name] >= least, f"an integer of at least {least}")
    check("mean", colour("mean", -math.inf), "three finite numbers, R G B")
    check("std", colour("std", 0.0), "three positive numbers, R G B")
    check("kind", facts.get("kind") in ("mindir", "onnx"), "mindir or onnx")
    batch, weights, sizes = facts.get("batch", 0), facts.get("weights"), (facts["input_size"], facts["max_tokens"])
    check("batch", batch is None or type(batch) is int and batch > 0, "null or a positive number")
    check("weights", isinstance(weights, dict) and not any(
        Path(name).is_absolute() or ".." in Path(name).parts for name in weights), "files beside the graph")
    if facts["format"] == FIRST_FORMAT:
        return
    try:
        inputs = [{key: entry[key] for key in ("name", "shape", "type")} for entry in facts["inputs"]]
        outputs = [entry["name"] for entry in facts["outputs"]]
    except (KeyError, TypeError):
        inputs, outputs = [], []
    check("inputs", inputs in [_inputs(batch, *sizes, uint8) for uint8 in (False, True)],
          "image, ids and word_mask, with the shapes of batch, input_size and max_tokens")
    check("outputs", outputs[:1] == ["logits"] and outputs[1:] in ([], *([name] for name in TARGET_OUTPUTS)),
          "logits, and has_target where the graph has it")


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
