"""RefShapes, the embedded data set: drawn scenes with sentences, written in REFER's own layout.

    <output>/refshapes/refs(shapes).p      list of refs; each sentence also has ``kind``, its category, and ``fits``
    <output>/refshapes/instances.json      COCO annotations; each also has ``color`` and ``radius`` (px)
    <output>/refshapes/references.json     what was made, and the scores of guesses (below)
    <output>/images/refshapes/*.png        64×64 RGB

``fits`` are the ids of the annotations that fit the noun phrase. The generalised variant is called refshapes_general;
its refs have gRefCOCO's fields: ``ann_id`` and ``category_id`` are lists, [-1] where nothing is meant, and
``no_target`` says so.

A scene depends on (variant, seed, split, index) alone. What the splits hold: refs.py.

The references are scores of guesses with perfect masks, in percent, which a network has to beat. Per split, as oIoU
(sum of intersections over sum of unions, all sentences): ``all_objects``, every object;
``noun_phrase``, all that fit the noun phrase (``fits``); ``random_object``, one object drawn evenly, as expected
intersections over expected unions.

Where sentences mean several objects or none, also ``noun_phrase_scores``: what ReLA's measures give for the noun
phrase. cIoU is the oIoU; gIoU the mean IoU of the sentences, where one without target counts 1 if nothing is predicted
and 0 otherwise; N_acc the share of empty predictions among the sentences without target; T_acc the share of others
among those with one (100, since the targets are among ``fits``). null where there are no such sentences.
"""

import json
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from mindspore_coupalign.data.refshapes.general import GENERAL_KINDS
from mindspore_coupalign.data.refshapes.refs import compose_general, compose_plain
from mindspore_coupalign.data.refshapes.scenes import KINDS, SIZE, paint
from mindspore_coupalign.data.refshapes.sentences import SENTENCE_KINDS
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.outputs import scratch

SPLITS = {"train": 12000, "val": 400, "testA": 400, "testB": 400}  # default number of scenes

_CHUNK = 50  # scenes per task of a worker


class Variant(NamedTuple):
    """One of the data sets that are drawn here."""

    folder: str  # the data set's name: of the folders below the output
    name: str
    version: int  # of the generator; another version draws other scenes
    entropy: tuple  # appended to a scene's seed
    kinds: tuple  # of sentences
    general: bool  # a ref may mean several shapes, or none
    compose: Callable  # (rng, split, index) -> shapes, [(indices of the shapes meant, sentences)]


PLAIN = Variant("refshapes", "RefShapes", 1, (), SENTENCE_KINDS, False, compose_plain)
GENERAL = Variant("refshapes_general", "RefShapes, generalised", 1, (1,), GENERAL_KINDS, True, compose_general)


def make_shapes(output: str | Path, seed: int = 0, *, train: int = SPLITS["train"], val: int = SPLITS["val"],
                testA: int = SPLITS["testA"], testB: int = SPLITS["testB"], workers: int = 1,
                force: bool = False, generalised: bool = False) -> bool:
    """Write RefShapes into ``output``; False when exactly this RefShapes is there already.

    ``train``, ``val``, ``testA``, ``testB`` count scenes. Everything is written beside ``output`` and renamed at the
    end; only a run that is killed outright (SIGKILL) leaves its hidden ``.<output>-partial-*`` folder behind. More than
    one worker starts fresh processes (spawn): a script that calls this needs a ``__name__ == "__main__"`` guard.

    Raises:
        UserError: an impossible number, an ``output`` that holds anything else, or that cannot be written.
    """
    scenes = {"train": train, "val": val, "testA": testA, "testB": testB}
    for name, value, least in (("seed", seed, 0), ("workers", workers, 1), *((s, n, 1) for s, n in scenes.items())):
        if value < least:
            raise UserError(f"make-shapes: --{name} must be {least} or more, found {value}")
    output = Path(os.path.realpath(output))
    variant = GENERAL if generalised else PLAIN
    label = {"name": variant.name, "version": variant.version, "seed": seed, "scenes": scenes}
    try:
        if _occupied(output, label, force):
            return False
        output.parent.mkdir(parents=True, exist_ok=True)
        with scratch(f".{output.name}-partial-", output.parent) as work:
            fresh = work / "fresh"
            _write(fresh, variant, label, workers)
            if output.exists():
                output.rename(work / "replaced")
            fresh.rename(output)
    except OSError as exc:
        reason = exc.strerror or exc
        raise UserError(f"{output}: RefShapes cannot be written here ({reason}); name another --output") from exc
    return True


def _occupied(output, label, force):
    """True when ``output`` holds the RefShapes of this label; False when it may be written; else UserError."""
    inside = {path.name for path in output.iterdir()} if output.exists() else set()
    if not inside:
        return False
    found = _stated(output, inside, label)
    if found is None:
        raise UserError(f"{output}: holds files that are not RefShapes; name an empty or a new folder with --output")
    if force:
        return False
    if found != label:
        differ = ", ".join(f"{key} {found[key]}" for key in label if found[key] != label[key])
        raise UserError(f"{output}: holds another RefShapes ({differ}); --force replaces it")
    return True


def _stated(output, inside, label):
    """What the RefShapes in ``output`` says of itself, as ``label`` has it; None when it holds anything else."""
    for variant in (PLAIN, GENERAL):
        try:
            found = json.loads((output / variant.folder / "references.json").read_text())
            found = {key: found[key] for key in label}
            ours = found["name"] == variant.name and inside <= {variant.folder, "images"}
            if ours and [path.name for path in (output / "images").iterdir()] == [variant.folder]:
                return found
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return None


def _write(folder, variant, label, workers):
    images, annotations = folder / "images" / variant.folder, folder / variant.folder
    images.mkdir(parents=True)
    annotations.mkdir()
    tasks = [(split, range(start, min(start + _CHUNK, count)))
             for split, count in label["scenes"].items() for start in range(0, count, _CHUNK)]
    make = partial(_make_scenes, images, variant, label["seed"])
    with tqdm(total=sum(label["scenes"].values()), unit="scene", desc=variant.name, disable=None) as bar:
        records = []
        for done in _map(make, tasks, workers):
            records += done
            bar.update(len(done))
    refs, instances = _number(records, variant)
    # Through JSON: pickle notes which strings are one object, and that would depend on the workers.
    (annotations / "refs(shapes).p").write_bytes(pickle.dumps(json.loads(json.dumps(refs)), protocol=2))
    (annotations / "instances.json").write_text(json.dumps(instances, separators=(",", ":")))
    stated = {**label, "splits": {split: references([r for r in records if r["split"] == split], variant.kinds,
                                                    variant.general) for split in label["scenes"]}}
    (annotations / "references.json").write_text(json.dumps(stated, indent=1))


def _map(make, tasks, workers):
    """make(task) for each task, in order; with several workers each takes every n-th task in its own process."""
    workers = min(workers, len(tasks))
    if workers == 1:
        yield from map(make, tasks)
        return
    # Spawned: a fork of a process with running threads (MindSpore's) may hang. Bare pipes rather than a pool: when
    # this process is killed, the next send fails and the worker ends, where a pool's workers would wait for ever.
    context = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    try:
        for first in range(workers):
            receiver, sender = context.Pipe(duplex=False)
            processes.append(context.Process(target=_work, args=(make, tasks[first::workers], sender), daemon=True))
            processes[-1].start()
            sender.close()
            pipes.append(receiver)
        for i in range(len(tasks)):
            done = pipes[i % workers].recv()
            if isinstance(done, OSError):
                raise done
            yield done
    except EOFError:
        raise RuntimeError("a worker of make-shapes died; its traceback is above, or it was killed") from None
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _work(make, tasks, pipe):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent ends its workers
    for task in tasks:
        try:
            pipe.send(make(task))
        except BrokenPipeError:
            return
        except OSError as exc:
            pipe.send(exc)


def _make_scenes(images, variant, seed, task):
    """Draw the scenes of one (split, indices), write their images and return their records."""
    cv2.setNumThreads(1)
    split, indices = task
    records = []
    for index in indices:
        rng = np.random.default_rng(np.random.SeedSequence((seed, list(SPLITS).index(split), index, *variant.entropy)))
        shapes, refs = variant.compose(rng, split, index)
        name = f"{split}_{index:06d}.png"
        _, png = cv2.imencode(".png", paint(rng, shapes)[..., ::-1])
        (images / name).write_bytes(png.tobytes())
        records.append({"split": split, "file_name": name, "objects": [_object(shape) for shape in shapes],
                        "refs": refs})
    return records


def _object(shape):
    polygon = shape.polygon.ravel().tolist()
    (left, top), (right, bottom) = shape.polygon.min(0), shape.polygon.max(0)
    box = [round(float(v), 2) for v in (left, top, right - left, bottom - top)]
    pixels = sum(int(coco_mask.area(rle)) for rle in coco_mask.frPyObjects([polygon], SIZE, SIZE))
    annotation = {"category_id": KINDS.index(shape.kind) + 1, "segmentation": [polygon], "area": round(shape.area, 2),
                  "bbox": box, "iscrowd": 0, "color": shape.colour, "radius": shape.radius}
    return {"annotation": annotation, "pixels": pixels}


def _number(records, variant):
    """Give images, annotations, refs and sentences their ids, 1 and up in the order of the records."""
    refs: list[dict] = []
    images: list[dict] = []
    annotations: list[dict] = []
    sentences = 0
    for image_id, record in enumerate(records, 1):
        images.append({"id": image_id, "file_name": record["file_name"], "height": SIZE, "width": SIZE})
        before = len(annotations)
        for thing in record["objects"]:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **thing["annotation"]})
        for targets, said in record["refs"]:
            ids = list(range(sentences + 1, sentences + 1 + len(said)))
            sentences += len(said)
            meant = [annotations[before + target] for target in targets]
            ann_ids, category_ids = ([a[key] for a in meant] for key in ("id", "category_id"))
            refs.append({
                "ref_id": len(refs) + 1, "ann_id": ann_ids or [-1], "image_id": image_id,
                "category_id": category_ids or [-1], "split": record["split"], "file_name": record["file_name"],
                "sent_ids": ids,
                "sentences": [{"sent_id": i, "sent": s["sent"], "raw": s["sent"], "tokens": s["sent"].split(),
                               "kind": s["kind"], "fits": [before + fit + 1 for fit in s["fits"]]}
                              for i, s in zip(ids, said, strict=True)]})
            if variant.general:
                refs[-1]["no_target"] = not meant
            else:
                (refs[-1]["ann_id"],), (refs[-1]["category_id"],) = ann_ids, category_ids
    categories = [{"id": i, "name": kind, "supercategory": "shape"} for i, kind in enumerate(KINDS, 1)]
    return refs, {"info": {"description": f"{variant.name}, generator version {variant.version}"}, "images": images,
                  "annotations": annotations, "categories": categories}


def references(records: list, kinds: tuple, general: bool) -> dict:
    """Counts and scores of one split's records; masks share no pixel, so unions are sums of areas.

    Args:
        kinds: the categories of sentences, in the order to list them.
        general: also with ReLA's measures.
    """
    said = [(record["objects"], targets, s) for record in records for targets, group in record["refs"] for s in group]
    hit = np.array([_pixels(things, targets) for things, targets, _ in said], float)
    everything = np.array([_pixels(things, range(len(things))) for things, _, _ in said], float)
    fits = np.array([_pixels(things, s["fits"]) for things, _, s in said], float)
    count = np.array([len(things) for things, _, _ in said])
    kind_of = np.array([s["kind"] for _, _, s in said])
    found = {
        "scenes": len(records), "refs": sum(len(record["refs"]) for record in records), "sentences": len(said),
        "all_objects": _percent(hit, everything),
        "random_object": _percent(hit / count, hit + (everything - hit) / count),
        "noun_phrase": _percent(hit, fits)}
    if general:
        found["noun_phrase_scores"] = _general_scores(hit, fits)
    found["kinds"] = {}
    for kind in kinds:
        mine = kind_of == kind
        if mine.any():
            found["kinds"][kind] = {"sentences": int(mine.sum()), "noun_phrase": _percent(hit[mine], fits[mine])}
            if general:
                found["kinds"][kind]["gIoU"] = _general_scores(hit[mine], fits[mine])["gIoU"]
    return found


def table(splits: dict) -> str:
    """references.json's splits as a table: a category's score is the noun phrase's oIoU, or its gIoU where given."""
    rows = [("", *splits)]
    rows += [(name, *(splits[s][name] for s in splits)) for name in ("scenes", "refs", "sentences")]
    rows += [(f"oIoU of {name}", *(f"{splits[s][name]:.1f}" for s in splits))
             for name in ("all_objects", "random_object", "noun_phrase")]
    first = next(iter(splits.values()))
    score, general = ("gIoU", True) if "noun_phrase_scores" in first else ("noun_phrase", False)
    if general:
        rows += [(f"{name} of noun_phrase", *(_cell(splits[s]["noun_phrase_scores"][name]) for s in splits))
                 for name in ("gIoU", "cIoU", "N_acc", "T_acc")]
    for kind in dict.fromkeys(kind for split in splits.values() for kind in split["kinds"]):
        cells = [splits[s]["kinds"].get(kind) for s in splits]
        rows.append((f"{kind}: sentences, {score}",
                     *(f"{cell['sentences']}, {cell[score]:.1f}" if cell else "-" for cell in cells)))
    return "\n".join(f"{row[0]:34}" + "".join(f"{cell!s:>14}" for cell in row[1:]) for row in rows)


def _general_scores(hit, fits):
    meant = hit > 0
    iou = np.where(meant, hit / np.maximum(fits, 1), fits == 0)
    return {"gIoU": _mean(iou), "cIoU": _percent(hit, fits), "N_acc": _mean(fits[~meant] == 0),
            "T_acc": _mean(fits[meant] > 0)}


def _pixels(things, indices):
    return sum(things[i]["pixels"] for i in indices)


def _percent(intersection, union):
    """100 where both are empty: nothing was to be found and nothing was guessed."""
    return round(100 * float(intersection.sum() / union.sum()), 2) if union.sum() else 100.0


def _mean(values):
    return round(100 * float(np.mean(values)), 2) if len(values) else None


def _cell(value):
    return "-" if value is None else f"{value:.1f}"
