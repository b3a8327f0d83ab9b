"""How referring segmentation is scored: one table of this project's and other projects' conventions.

A protocol says what the network reads, where and how its logits become a mask, what the ground truth is, and how
intersections I and unions U are counted. Only these conventions are adopted: the network, its input (resized without
keeping the aspect ratio, not letterboxed), its tokenizer and its limit of word pieces (data.max_tokens) stay this
project's. The rules were read in the code that ``origin`` names; docs/protocols.md is made from this table.
Shapes: logits (H, W) at the network's input size; masks (h, w) at the image's own size or (H, W).
"""

import dataclasses
import difflib
import functools
from dataclasses import dataclass

import cv2
import numpy as np

from mindspore_coupalign.config import Config
from mindspore_coupalign.data.transforms import ImageTransform, resize_aligned
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.evaluation.metrics import THRESHOLDS, summarize, target_scores
from mindspore_coupalign.inference.network import logit

SENTENCE, INTERLEAVED, JOINED, AVERAGED = (
    "one sentence", "all sentences, interleaved", "all sentences, joined", "each sentence, logits averaged")
KEEPS, DROPS = "keeps [SEP]", "drops [SEP]"
BILINEAR, ALIGNED, BICUBIC = "bilinear", "bilinear, corners aligned", "bicubic, of probabilities"
IMAGE, INPUT = "image", "input"
SIZES = (IMAGE, INPUT)
SIZE_NAMES = {IMAGE: "image's own size", INPUT: "network's input"}
NO_TARGET = "1 without a target, else 0"
EMPTY = {"1": 1.0, "0": 0.0, "nan": np.nan}  # I/U where U = 0, but for NO_TARGET
LEGEND = ("oIoU is also called cIoU, overall or cumulative IoU; mIoU is also called gIoU (by LISA, ReLA and EVF-SAM), "
          "mean IoU, or IoU alone (by CRIS)")


@dataclass(frozen=True)
class Protocol:
    name: str
    origin: str  # whose numbers it makes comparable, with the code that was read
    unit: str  # what is scored once: sentence, or ref (an object with all its sentences)
    prompt: str  # what the network reads for a unit
    text: str  # sent or raw; empty: data.sentence_field
    cut: str  # what happens to [SEP] where a sentence is cut at data.max_tokens
    sizes: tuple[str, ...]  # where masks are compared
    resize: str  # of the prediction to the image's own size; the ground truth goes to the network's input by nearest
    threshold: float | None  # a pixel is in the mask where its probability exceeds it; None: eval.threshold
    overlap: str  # union or single (ReferData.mask); empty: data.overlap
    empty: str  # I/U where both masks are empty
    mean: str  # what mIoU is the mean over; refs: first over the sentences of each ref
    comparison: str  # of I/U with X in P@X
    thresholds: tuple[float, ...]  # the X that the project prints
    reports: tuple[str, ...] = ("oIoU", "mIoU")  # what it prints beside P@X
    names: tuple[tuple[str, str], ...] = ()  # (ours, its) where it calls them otherwise
    lower: bool = False  # sentences are stripped and put in lower case
    epsilon: float = 0.0  # added to U
    running: bool = False  # P@X compares the sum of I/U over the ref's sentences up to this one


# torch.arange(0.5, 1, 0.1) in single precision: 0.7 and 0.9 lie a hair below their names, 0.6 and 0.8 above.
_SINGLE_PRECISION = tuple(float(np.float32(x)) for x in THRESHOLDS)
_AUTHOR = "LAVT-pytorch of CoupAlign's first author, main.py (zichengsaber/LAVT-pytorch, fcc43f6)"

PROTOCOLS = {protocol.name: protocol for protocol in (
    Protocol("sentence", "this project", "sentence", SENTENCE, "", KEEPS, (IMAGE, INPUT), BILINEAR, None, "", "1",
             "sentences", ">=", THRESHOLDS),
    Protocol("ref-concatenated", f"{_AUTHOR}, eval_mode cat", "ref", INTERLEAVED, "raw", DROPS, (IMAGE,), ALIGNED, 0.5,
             "single", "nan", "refs", "", ()),
    Protocol("ref-joined", f"{_AUTHOR}, eval_mode cat as its README means it", "ref", JOINED, "raw", KEEPS, (IMAGE,),
             ALIGNED, 0.5, "single", "nan", "refs", "", ()),
    Protocol("ref-averaged", f"{_AUTHOR}, eval_mode avg", "ref", AVERAGED, "raw", DROPS, (IMAGE,), ALIGNED, 0.5,
             "single", "nan", "refs", "", ()),
    Protocol("lavt", "LAVT, test.py (yz93/LAVT-RIS, 066bcf2); RMSIN's test.py is the same", "sentence", SENTENCE, "raw",
             DROPS, (INPUT,), BILINEAR, 0.5, "single", "0", "sentences", ">=", THRESHOLDS,
             names=(("oIoU", "overall IoU"), ("mIoU", "Mean IoU"))),
    Protocol("cris", "CRIS, engine/engine.py, inference (DerrickWang005/CRIS.pytorch, 5a23df6)", "sentence", SENTENCE,
             "sent", KEEPS, (IMAGE,), BICUBIC, 0.35, "union", "0", "sentences", ">", _SINGLE_PRECISION, ("mIoU",),
             names=(("mIoU", "IoU"),), epsilon=1e-6),
    Protocol("evf-sam", "EVF-SAM, eval.py (hustvl/EVF-SAM, 18212ad), which is LISA's", "sentence", SENTENCE, "sent",
             KEEPS, (IMAGE,), BILINEAR, 0.5, "single", "1", "sentences", "", (),
             names=(("oIoU", "cIoU"), ("mIoU", "gIoU")), lower=True),
    Protocol("rela", "ReLA, gres_model/evaluation/refer_evaluation.py (henghuiding/ReLA, a389648)", "sentence",
             SENTENCE, "raw", DROPS, (INPUT,), BILINEAR, 0.5, "union", NO_TARGET, "sentences", ">=", (0.7, 0.8, 0.9),
             names=(("oIoU", "cIoU"), ("mIoU", "gIoU"))),
    Protocol("refsegformer", "RefSegformer, utils/validation.py, eval_mode all (97dd7f9), sentences that fit only",
             "sentence", SENTENCE, "raw", DROPS, (IMAGE,), ALIGNED, 0.5, "single", "nan", "refs", ">=", THRESHOLDS,
             running=True),
)}


def choose(names: list) -> list[Protocol]:
    """The protocols of these names, without duplicates; ``all`` stands for every one.
    Raises UserError: an unknown name."""
    if "all" in names:
        return list(PROTOCOLS.values())
    for name in names:
        if name not in PROTOCOLS:
            near = difflib.get_close_matches(name, PROTOCOLS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"--protocol {name}: no such protocol; {hint}there are {', '.join(PROTOCOLS)}, or all")
    return [PROTOCOLS[name] for name in dict.fromkeys(names)]


def resolve(protocol: Protocol, config: Config) -> Protocol:
    """The protocol, with the fields that it leaves open taken from the configuration."""
    return dataclasses.replace(
        protocol, text=protocol.text or config.data.sentence_field, overlap=protocol.overlap or config.data.overlap,
        threshold=config.eval.threshold if protocol.threshold is None else protocol.threshold)


def conventions(protocol: Protocol, config: Config) -> dict:
    """Every convention by its name, for the results file."""
    resolved = dataclasses.asdict(resolve(protocol, config))
    resolved["thresholds"] = [round(x, 1) for x in protocol.thresholds]
    return resolved | {"names": dict(protocol.names), "max_tokens": config.data.max_tokens}


def predicted_mask(protocol: Protocol, logits: np.ndarray, transform: ImageTransform, shape: tuple[int, int],
                   size: str) -> np.ndarray:
    """The mask that a (resolved) protocol sees in logits (H, W): bool, of ``shape`` = (h, w), or (H, W) for INPUT."""
    threshold = protocol.threshold
    if threshold is None:
        raise ValueError(f"protocol {protocol.name} has no threshold of its own: resolve it first")
    if size == INPUT:
        return logits > logit(threshold)
    if protocol.resize == BICUBIC:
        probability = 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
        return cv2.resize(probability, shape[::-1], interpolation=cv2.INTER_CUBIC) > threshold
    resized = resize_aligned(logits, shape) if protocol.resize == ALIGNED else transform.inverse(logits, shape)
    return resized > logit(threshold)


def count(protocol: Protocol, inter: np.ndarray, union: np.ndarray, refs: np.ndarray,
          has_target: np.ndarray, predicted_target: np.ndarray) -> dict:
    """What a protocol reports of n units, in percent.

    Args:
        inter, union: (n,) pixels.
        refs: (n,) ref of each unit; units of a ref are neighbours.
        has_target, predicted_target: (n,) bool. Under ReLA's rule I and U are of the mask before the network's
            target-presence head may empty it.
    """
    if protocol.empty == NO_TARGET:
        inter = np.where(predicted_target, inter, 0)
        union = np.where(predicted_target | has_target, union, 0)
    score = functools.partial(
        summarize, inter, union, thresholds=protocol.thresholds, strict=protocol.comparison == ">",
        epsilon=protocol.epsilon, running=protocol.running, group=refs if protocol.mean == "refs" else None)
    if protocol.empty == NO_TARGET:
        scores = score(empty=np.where(has_target | predicted_target, 0.0, 1.0), counted=has_target)
        scores |= target_scores(has_target, predicted_target)
    else:
        scores = score(empty=EMPTY[protocol.empty])
    kept = ("samples", *protocol.reports, "N_acc", "T_acc")
    return {key: value for key, value in scores.items() if key in kept or key.startswith("P@")}


def describe(protocol: Protocol) -> str:
    """One line for people."""
    parts = [f"every {protocol.unit} ({protocol.prompt})" if protocol.unit == "ref" else "every sentence",
             f"text {protocol.text or 'as configured'}{', lower case' if protocol.lower else ''}",
             f"{protocol.cut} where cut", " and ".join(SIZE_NAMES[size] for size in protocol.sizes),
             f"p > {protocol.threshold if protocol.threshold is not None else 'eval.threshold'}",
             f"pixels under two parts {'count' if protocol.overlap != 'single' else 'do not count'}",
             f"two empty masks give {protocol.empty}"]
    if protocol.unit == "sentence" and protocol.mean == "refs":
        parts.append("mIoU over refs")
    parts += [f"{ours} is its {its}" for ours, its in protocol.names]
    return f"{protocol.name}: " + "; ".join(parts)
