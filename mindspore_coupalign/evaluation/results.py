"""What ``evaluate`` prints and writes: the table, its legend, the data set's baselines, and the file of ``--details``,
whose fields docs/protocols.md lists."""

import json
import math

from mindspore_coupalign.config import Config
from mindspore_coupalign.data.refer import ReferData
from mindspore_coupalign.distributed.collectives import gather
from mindspore_coupalign.distributed.process import Runtime
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.evaluation import protocols
from mindspore_coupalign.evaluation.metrics import THRESHOLDS
from mindspore_coupalign.evaluation.prompts import Plan
from mindspore_coupalign.evaluation.protocols import IMAGE, SIZE_NAMES, SIZES

REFERENCES = ("all_objects", "random_object", "noun_phrase")  # oIoU of perfect masks (data/refshapes)
PHRASE = "noun_phrase_scores"  # all scores of the last one, in generalised RefShapes


def read_references(data: ReferData, splits: list) -> dict:
    """The data set's baselines, from references.json beside its annotations (RefShapes has one), by split."""
    path = data.source.parent / "references.json"
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))["splits"]
        baselines: dict[str, dict] = {}
        for name in filter(stated.__contains__, splits):
            baselines[name] = {key: float(stated[name][key]) for key in REFERENCES}
            if PHRASE in stated[name]:
                scores = stated[name][PHRASE].items()
                baselines[name][PHRASE] = {key: float(value) for key, value in scores if value is not None}
        return baselines
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as exc:
        raise UserError(f"{path}: damaged ({exc}); create the data set again, or remove the file") from exc


def announce(label: str, results: dict, chosen: list, config: Config, references: dict):
    """Print the table and what is needed to read it."""
    print(format_table(label, results))
    print(protocols.LEGEND)
    for protocol in chosen:
        if protocol.name != "sentence":
            print(protocols.describe(protocol))
    for name, result in results.items():
        cut = result["cut"]
        if cut["sentences"]:
            print(f"{name}: {cut['sentences']} of {result['sentences']} sentences were cut at "
                  f"data.max_tokens={config.data.max_tokens} (the longest has {cut['longest']} word pieces)")
    for name, values in references.items():
        print(f"{name}: baselines with perfect masks: oIoU {values['all_objects']} for all objects, "
              f"{values['random_object']} for a random one, {values['noun_phrase']} for all that fit the noun phrase")
        if PHRASE in values:
            scores = ", ".join(f"{key} {value:.2f}" for key, value in values[PHRASE].items())
            print(f"{name}: all that fit the noun phrase, or nothing where nothing does: {scores}")


def format_table(label: str, results: dict) -> str:
    """The paper's columns, with N_acc and T_acc where sentences have no target; one row per split, protocol and size;
    a dash for what a protocol does not report."""
    names = ["oIoU", "mIoU", *(f"P@{x}" for x in THRESHOLDS)]
    if any("N_acc" in result.get(IMAGE, {}) or any("N_acc" in scores for scores in result["protocols"].values())
           for result in results.values()):
        names += ["N_acc", "T_acc"]
    others = any(result.get("protocols") for result in results.values())
    lines = [f"{label:<23} {'protocol':<18}{'units' if others else 'sentences':>9}  "
             + "".join(f"{n:>8}" for n in names)]

    def row(first: str, protocol: str, scores: dict):
        cells = "".join(f"{scores[n]:8.2f}" if n in scores else f"{'-':>8}" for n in names)
        lines.append(f"{first:<23} {protocol:<18}{scores['samples']:>9}  {cells}")

    for split, result in results.items():
        for size in SIZES:
            if size in result:
                row(split, SIZE_NAMES[size], result[size])
        for kind, scores in result.get("by_kind", {}).items():
            row(f"  {kind}", SIZE_NAMES[IMAGE], scores)
        for name, scores in result.get("protocols", {}).items():
            row(split, name, scores)
    return "\n".join(lines)


def detail_lines(data: ReferData, split: str, plan: Plan, kept: list, field: str, max_tokens: int) -> list[str]:
    """One rank's lines, in the order of ``kept``, each preceded by its sample's place in the split."""
    place = {unit.sentence: k for k, unit in enumerate(plan.units["sentence"])}
    return [f"{place[row.sample]} " + json.dumps(_detail(data, split, row, field, int(plan.lengths[place[row.sample]]),
                                                         max_tokens), ensure_ascii=False)
            for row in kept]


def _detail(data: ReferData, split: str, row, field: str, pieces: int, max_tokens: int) -> dict:
    r = int(data.sentence_ref[row.sample])
    objects = data.objects_of(r)
    return {"split": split, "ref_id": data.ref_ids[r].item(),
            "ann_id": objects[0] if len(objects) == 1 else objects or None,
            "sentence_id": data.sentence_ids[row.sample].item(), "text": data.sentence(row.sample, field),
            "image": str(data.image_files[data.ref_image[r]]), "intersection": row.inter, "union": row.union,
            "pieces": pieces, "cut": max(0, pieces - max_tokens), "has_target": row.has_target,
            "rle": {"size": data.image_sizes[data.ref_image[r]].tolist(), "counts": row.counts.decode()}}


def gather_details(own: list[str], runtime: Runtime) -> list[str]:
    """All ranks' lines of a split in the order of its sentences, without their places."""
    every = [line for part in gather("\n".join(own).encode(), runtime) for line in part.decode().split("\n") if line]
    pairs = sorted((int(place), line) for place, _, line in (line.partition(" ") for line in every))
    return [line for _, line in pairs]


def without_nan(value):
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
