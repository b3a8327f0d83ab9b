"""Exported graphs: a checkpoint becomes a MINDIR that MindSpore runs without this project's model code, and back.

Inputs of the graph: image (1, 3, H, W) float32, ids (1, T) int32, word_mask (1, T) int32; output: logits
(1, 1, H, W) float32. ``<file>.json`` beside it, the sidecar, holds what prediction needs besides: the input size, the
normalisation, the threshold and the tokenizer. The file appears under its name only after it was loaded again and
compared.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from mindspore_coupalign import build
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.models.precision import Precision
from mindspore_coupalign.portable import without_paths
from mindspore_coupalign.weights.checkpoint import Checkpoint

FORMAT = "coupalign-mindir-1"
# Largest difference by precision, relative to the logits' largest absolute value. The graph and the network compute in
# the same precision: the difference is 0 on CPU, elsewhere fusions may round otherwise. In half precision that is two
# roundings (2^-11 and 2^-8), less than what half precision itself costs (1e-3 to 3e-3 in float16, the tests' network).
TOLERANCES = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}
_TRIALS = 3
_LARGEST = 2**30  # bytes of weights; beyond it ms.export splits the model into a folder of files


class NotEqual(Exception):
    """The exported graph does not compute what the network computes."""


def sidecar_path(mindir: Path) -> Path:
    return mindir.with_name(mindir.name + ".json")


def export_mindir(checkpoint: Checkpoint, output: Path, amp: str | None = None) -> tuple[list[float], Precision]:
    """Write the MINDIR and its sidecar.

    Returns:
        The largest difference from the network, per trial, relative to the scale, and the precision of both.

    Raises:
        UserError: the output cannot be written, or the model is too large for one file.
        NotEqual: the graph, loaded again, gives other logits.
    """
    model, tokenizer = build.restore_model(checkpoint, amp=amp)
    weights = sum(p.nbytes for p in model.get_parameters())
    if weights > _LARGEST:
        raise UserError(f"{checkpoint.path}: {weights / 2**30:.1f} GiB of weights, but MindSpore splits models over "
                        "1 GiB into several files, which this command does not write; export a smaller model")
    data = checkpoint.config.data
    inputs = [_random_inputs(data, tokenizer, seed) for seed in range(_TRIALS)]
    try:
        # a folder of its own below the output's: same file system, and whatever export leaves goes with it
        with _scratch(output.parent) as folder:
            file = folder / "model.mindir"
            with _plain_path(folder) as plain:
                ms.export(model, *inputs[0], file_name=f"{plain}/{file.name}", file_format="MINDIR")
            if sorted(os.listdir(folder)) != [file.name]:
                raise UserError(f"{output}: MindSpore wrote {', '.join(sorted(os.listdir(folder)))} instead of one "
                                "file; export a smaller model")
            os.chmod(file, 0o644)  # MindSpore leaves it without write permission
            differences = _compare(model, nn.GraphCell(ms.load(str(file))), inputs)
            sidecar = folder / "sidecar.json"
            sidecar.write_text(json.dumps({
                "format": FORMAT, "sha256": _sha256(file), "input_size": data.image_size, "mean": data.mean,
                "std": data.std, "threshold": checkpoint.config.eval.threshold, "max_tokens": data.max_tokens,
                "tokenizer": tokenizer.to_json(), "step": checkpoint.progress.get("step"),
                **model.precision._asdict(), "differences": differences,
                "config": without_paths(checkpoint.config)}, indent=1) + "\n", encoding="utf-8")
            os.replace(file, output)
            os.replace(sidecar, sidecar_path(output))
    except OSError as exc:
        raise UserError(f"{output}: cannot be written ({exc.strerror or exc}); choose another --output") from exc
    return differences, model.precision


@contextlib.contextmanager
def _plain_path(folder: Path):
    """Another path of the folder, for ``ms.export`` refuses every name but ASCII's letters, digits and @_-.:/"""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


class _scratch:
    """A temporary folder inside ``parent`` that is gone afterwards, read-only files and all."""

    def __init__(self, parent: Path):
        self.parent = parent

    def __enter__(self) -> Path:
        self.folder = Path(tempfile.mkdtemp(prefix=".export-", dir=self.parent))
        return self.folder

    def __exit__(self, *_):
        shutil.rmtree(self.folder, ignore_errors=True)


def _random_inputs(data, tokenizer, seed: int) -> tuple:
    """Noise for an image, and a sentence of random word pieces, every time of another length, with padding."""
    random = np.random.default_rng(seed)
    image = random.standard_normal((1, 3, data.image_size, data.image_size), np.float32)
    ids, word_mask = tokenizer([""])
    words = int(random.integers(1, data.max_tokens - 1))
    ids[0, 1 + words] = ids[0, 1]  # [SEP]
    ids[0, 1 : 1 + words] = random.integers(0, tokenizer.vocab_size, words)
    word_mask[0, : words + 2] = 1
    return ms.Tensor(image), ms.Tensor(ids), ms.Tensor(word_mask)


def _compare(model, graph, inputs: list) -> list[float]:
    differences, tolerance = [], TOLERANCES[model.precision.amp_dtype]
    for trial in inputs:
        ours, theirs = model(*trial).asnumpy(), graph(*trial).asnumpy()
        differences.append(float(np.abs(ours - theirs).max() / np.abs(ours).max()))
        if not differences[-1] <= tolerance:  # also when it is not a number
            raise NotEqual(f"the exported graph differs from the checkpoint by {differences[-1]:.1e} of the logits' "
                           f"scale (allowed: {tolerance:.0e})")
    return differences


def load_mindir(path: str | Path) -> tuple[nn.GraphCell, dict]:
    """The graph, ready to call, and its sidecar.

    Raises:
        UserError: the MINDIR or its sidecar is missing, damaged, or they do not belong together.
    """
    path = Path(path)
    check_utf8(path, "rename it")
    facts = _read_sidecar(path)
    try:
        found = _sha256(path)
    except OSError as exc:
        raise UserError(f"{path}: cannot be read ({exc.strerror}); `coupalign export` writes it") from exc
    if found != facts["sha256"]:
        raise UserError(f"{path}: not the file that {sidecar_path(path).name} describes (its sha256 differs); "
                        "export the checkpoint again")
    try:
        return nn.GraphCell(ms.load(str(path))), facts
    except (RuntimeError, ValueError) as exc:
        raise UserError(f"{path}: MindSpore {ms.__version__} cannot load it ({' '.join(str(exc).split())[:120]}); "
                        "export the checkpoint again with this version") from exc


def check_utf8(path: Path, remedy: str):
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as exc:
        raise UserError(f"{path}: MindSpore reads and writes no file whose path is not UTF-8; {remedy}") from exc


_FIELDS = {"sha256": str, "input_size": int, "mean": list, "std": list, "threshold": float, "max_tokens": int,
           "tokenizer": str}


def _read_sidecar(mindir: Path) -> dict:
    path = sidecar_path(mindir)
    try:
        facts = json.loads(path.read_bytes())
    except FileNotFoundError as exc:
        if not mindir.exists():
            raise UserError(f"{mindir}: no such file; `coupalign export` writes it") from exc
        raise UserError(f"{path}: no such file; it holds the tokenizer and belongs beside the .mindir") from exc
    except OSError as exc:
        raise UserError(f"{path}: cannot be read ({exc.strerror})") from exc
    except ValueError as exc:
        raise UserError(f"{path}: not valid JSON ({str(exc)[:80]}); export the checkpoint again") from exc
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise UserError(f"{path}: field 'format' is not {FORMAT!r}; export the checkpoint again with this version")
    for name, kind in _FIELDS.items():
        if not isinstance(facts.get(name), kind):
            raise UserError(f"{path}: field {name!r} is missing or mistyped; export the checkpoint again")
    if not 0 < facts["threshold"] < 1:
        raise UserError(f"{path}: field 'threshold' must lie between 0 and 1, found {facts['threshold']}")
    for name, least in (("mean", -math.inf), ("std", 0.0)):
        values = facts[name]
        if len(values) != 3 or not all(type(v) in (int, float) and least < v < math.inf for v in values):
            raise UserError(f"{path}: field {name!r} must be three numbers above {least}, found {values}")
    return facts


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
