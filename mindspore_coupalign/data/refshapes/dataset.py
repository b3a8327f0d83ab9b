"""RefShapes, the embedded data set: drawn scenes with sentences, written in REFER's own layout.

    <output>/refshapes/refs(shapes).p      list of refs; each sentence also has ``kind``, its category, and ``fits``
    <output>/refshapes/instances.json      COCO annotations; each also has ``color`` and ``radius`` (px)
    <output>/refshapes/references.json     what was made, and the baselines (below)
    <output>/images/refshapes/*.png        64×64 RGB

Splits train, val and testA follow one distribution: 3 to 6 shapes, and no sentence names one of the six (colour, kind)
pairs of `HELD_OUT` (such shapes are drawn, and may be the target when the sentence gives no colour). testB leaves it:
in its even scenes every sentence names a held-out pair, of the target or of the anchor; its odd scenes hold 7 or 8
shapes and name no such pair. Every scene has two refs, with two or three sentences each in train and one or two in the
other splits; the sentences of a ref are of different categories (sentences.py).

A scene depends on (seed, split, index) alone, hence not on the number of workers.

references.json: per split the oIoU in percent (sum of intersections over sum of unions, all sentences) of three
baselines, guesses with perfect masks. ``all_objects``: every object; ``noun_phrase``: all that fit the noun phrase
(``fits``); ``random_object``: one object drawn evenly, as expected intersections over expected unions.
"""

import json
import multiprocessing
import os
import pickle
import signal
import tempfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from mindspore_coupalign.data.refshapes.scenes import KINDS, SIZE, draw_scene, paint
from mindspore_coupalign.data.refshapes.sentences import ANY, SENTENCE_KINDS, claims, word
from mindspore_coupalign.errors import UserError

VERSION = 1  # of the generator; another version draws other scenes
SPLITS = {"train": 12000, "val": 400, "testA": 400, "testB": 400}  # default number of scenes
HELD_OUT = (("red", "circle"), ("green", "square"), ("blue", "triangle"), ("yellow", "star"), ("purple", "cross"),
            ("white", "circle"))

_CHUNK = 50  # scenes per task of a worker
_COUNTS = (3,) + 3 * (4,) + 7 * (5,) + 9 * (6,)  # shapes in a scene, each number as often as it stands here
_CROWDED = (7, 8)
_NAMING_KINDS = ("attribute", "relation", "combination")  # the categories of sentences that can name a pair
_ANY_SHARE = 0.12  # of drawn scenes in which a sentence may say "object": makes it about a tenth of the spatial ones
# How readily a ref's further sentences are of each category: evens out that some are true less often than others.
_FURTHER = {"attribute": 2.8, "side": 0.8, "ordinal": 0.6, "corner": 0.5, "size": 3.0, "relation": 2.5,
            "combination": 1.4}


def make_shapes(output: str | Path, seed: int = 0, *, train: int = SPLITS["train"], val: int = SPLITS["val"],
                testA: int = SPLITS["testA"], testB: int = SPLITS["testB"], workers: int = 1,
                force: bool = False) -> bool:
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
    label = {"name": "RefShapes", "version": VERSION, "seed": seed, "scenes": scenes}
    try:
        if _occupied(output, label, force):
            return False
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}-partial-", dir=output.parent) as work:
            fresh = Path(work) / "fresh"
            _write(fresh, label, workers)
            if output.exists():
                output.rename(Path(work) / "replaced")
            fresh.rename(output)
    except OSError as exc:
        reason = exc.strerror or exc
        raise UserError(f"{output}: RefShapes cannot be written here ({reason}); name another --output") from exc
    return True


def _occupied(output, label, force):
    """True when ``output`` holds the RefShapes of this label; False when it may be written; else UserError."""
    if not output.exists():
        return False
    if not output.is_dir():
        raise UserError(f"{output}: is a file; --output names a folder")
    inside = {path.name for path in output.iterdir()}
    if not inside:
        return False
    try:
        found = json.loads((output / "refshapes" / "references.json").read_text())
        found = {key: found[key] for key in label}
        ours = found["name"] == label["name"] and inside <= {"refshapes", "images"}
        ours = ours and [path.name for path in (output / "images").iterdir()] == ["refshapes"]
    except (OSError, ValueError, LookupError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"{output}: holds files that are not RefShapes; name an empty or a new folder with --output")
    if force:
        return False
    if found != label:
        differ = ", ".join(f"{key} {found[key]}" for key in label if found[key] != label[key])
        raise UserError(f"{output}: holds another RefShapes ({differ}); --force replaces it")
    return True


def _write(folder, label, workers):
    images = folder / "images" / "refshapes"
    images.mkdir(parents=True)
    (folder / "refshapes").mkdir()
    tasks = [(split, range(start, min(start + _CHUNK, count)))
             for split, count in label["scenes"].items() for start in range(0, count, _CHUNK)]
    make = partial(_make_scenes, images, label["seed"])
    with tqdm(total=sum(label["scenes"].values()), unit="scene", desc="RefShapes", disable=None) as bar:
        records = []
        for done in _map(make, tasks, workers):
            records += done
            bar.update(len(done))
    refs, instances = _number(records)
    # Through JSON: pickle notes which strings are one object, and that would depend on the workers.
    refs = json.loads(json.dumps(refs))
    with open(folder / "refshapes" / "refs(shapes).p", "wb") as file:
        pickle.dump(refs, file, protocol=2)
    (folder / "refshapes" / "instances.json").write_text(json.dumps(instances, separators=(",", ":")))
    references = {**label, "splits": {split: _references([r for r in records if r["split"] == split])
                                      for split in label["scenes"]}}
    (folder / "refshapes" / "references.json").write_text(json.dumps(references, indent=1))


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


def _make_scenes(images, seed, task):
    """Draw the scenes of one (split, indices), write their pictures and return their records."""
    cv2.setNumThreads(1)
    split, indices = task
    records = []
    for index in indices:
        rng = np.random.default_rng(np.random.SeedSequence((seed, list(SPLITS).index(split), index)))
        shapes, refs = _compose(rng, split, index)
        name = f"{split}_{index:06d}.png"
        _, png = cv2.imencode(".png", paint(rng, shapes)[..., ::-1])
        (images / name).write_bytes(png.tobytes())
        records.append({"split": split, "file_name": name, "objects": [_object(shape) for shape in shapes],
                        "refs": refs})
    return records


def _compose(rng, split, index):
    """Draw scenes until one bears the refs that the split asks for; the shapes and [(target, sentences)]."""
    novel = split == "testB" and index % 2 == 0
    crowded = split == "testB" and not novel
    kinds = _NAMING_KINDS if novel else SENTENCE_KINDS
    counts = _CROWDED if crowded else _COUNTS
    leading = [kinds[i] for i in rng.integers(len(kinds), size=2)]
    while True:
        named = HELD_OUT[rng.integers(len(HELD_OUT))] if novel else None
        shapes = draw_scene(rng, counts[rng.integers(len(counts))], named)
        nouns = KINDS if rng.random() >= _ANY_SHARE else (*KINDS, ANY)
        open_claims = [claim for claim in claims(shapes, nouns) if bool(claim.pairs() & set(HELD_OUT)) == novel]
        refs = {}
        for kind in leading:
            chosen = _choose_ref(rng, split, kind, [c for c in open_claims if c.target not in refs])
            if chosen:
                refs[chosen[0].target] = [{"sent": word(c, rng), "kind": c.kind, "fits": c.fits} for c in chosen]
        if len(refs) == len(leading):
            return shapes, list(refs.items())


def _choose_ref(rng, split, leading, open_claims):
    """The claims of one ref: one of category ``leading``, then of others about the same target; None if not enough."""
    first = _pick(rng, open_claims, leading)
    if first is None:
        return None
    about = [claim for claim in open_claims if claim.target == first.target]
    least = 2 if split == "train" else 1
    chosen = [first]
    for _ in range(least - 1 + int(rng.integers(2))):
        left = sorted({c.kind for c in about} - {c.kind for c in chosen})
        if left:
            weights = np.array([_FURTHER[kind] for kind in left])
            chosen.append(_pick(rng, about, left[rng.choice(len(left), p=weights / weights.sum())]))
    return chosen if len(chosen) >= least else None


def _pick(rng, open_claims, kind):
    """One claim of the category: first the type of cue, evenly, then the claim; None when none is open."""
    of_kind = [claim for claim in open_claims if claim.kind == kind]
    if not of_kind:
        return None
    cues = sorted({claim.cue[0] for claim in of_kind})
    cue = cues[rng.integers(len(cues))]
    of_cue = [claim for claim in of_kind if claim.cue[0] == cue]
    return of_cue[rng.integers(len(of_cue))]


def _object(shape):
    polygon = shape.polygon.ravel().tolist()
    (left, top), (right, bottom) = shape.polygon.min(0), shape.polygon.max(0)
    box = [round(float(v), 2) for v in (left, top, right - left, bottom - top)]
    pixels = sum(int(coco_mask.area(rle)) for rle in coco_mask.frPyObjects([polygon], SIZE, SIZE))
    annotation = {"category_id": KINDS.index(shape.kind) + 1, "segmentation": [polygon], "area": round(shape.area, 2),
                  "bbox": box, "iscrowd": 0, "color": shape.colour, "radius": shape.radius}
    return {"annotation": annotation, "pixels": pixels}


def _number(records):
    """Give images, annotations, refs and sentences their ids, 1 and up in the order of the records."""
    refs, images, annotations, sentences = [], [], [], 0
    for image_id, record in enumerate(records, 1):
        images.append({"id": image_id, "file_name": record["file_name"], "height": SIZE, "width": SIZE})
        before = len(annotations)
        for thing in record["objects"]:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **thing["annotation"]})
        for target, said in record["refs"]:
            ids = list(range(sentences + 1, sentences + 1 + len(said)))
            sentences += len(said)
            annotation = annotations[before + target]
            refs.append({
                "ref_id": len(refs) + 1, "ann_id": annotation["id"], "image_id": image_id,
                "category_id": annotation["category_id"], "split": record["split"], "file_name": record["file_name"],
                "sent_ids": ids,
                "sentences": [{"sent_id": i, "sent": s["sent"], "raw": s["sent"], "tokens": s["sent"].split(),
                               "kind": s["kind"], "fits": [before + fit + 1 for fit in s["fits"]]}
                              for i, s in zip(ids, said, strict=True)]})
    categories = [{"id": i, "name": kind, "supercategory": "shape"} for i, kind in enumerate(KINDS, 1)]
    return refs, {"info": {"description": f"RefShapes, generator version {VERSION}"}, "images": images,
                  "annotations": annotations, "categories": categories}


def _references(records):
    """Scores of the three guesses on one split; masks share no pixel, so unions are sums of areas."""
    said = [(record["objects"], target, s) for record in records for target, group in record["refs"] for s in group]
    hit = np.array([things[target]["pixels"] for things, target, _ in said], float)
    everything = np.array([sum(thing["pixels"] for thing in things) for things, _, _ in said], float)
    fits = np.array([sum(things[i]["pixels"] for i in s["fits"]) for things, _, s in said], float)
    count = np.array([len(things) for things, _, _ in said])
    kinds = np.array([s["kind"] for _, _, s in said])

    def percent(intersection, union):
        return round(100 * float(intersection.sum() / union.sum()), 2)

    return {
        "scenes": len(records), "refs": sum(len(record["refs"]) for record in records), "sentences": len(said),
        "all_objects": percent(hit, everything),
        "random_object": percent(hit / count, hit + (everything - hit) / count),
        "noun_phrase": percent(hit, fits),
        "kinds": {kind: {"sentences": int((kinds == kind).sum()),
                         "noun_phrase": percent(hit[kinds == kind], fits[kinds == kind])}
                  for kind in SENTENCE_KINDS if (kinds == kind).any()},
    }


def table(splits):
    rows = [("", *splits)]
    rows += [(name, *(splits[s][name] for s in splits)) for name in ("scenes", "refs", "sentences")]
    rows += [(f"oIoU of {name}", *(f"{splits[s][name]:.1f}" for s in splits))
             for name in ("all_objects", "random_object", "noun_phrase")]
    for kind in SENTENCE_KINDS:
        cells = [splits[s]["kinds"].get(kind) for s in splits]
        rows.append((f"{kind}: sentences, noun_phrase",
                     *(f"{cell['sentences']}, {cell['noun_phrase']:.1f}" if cell else "-" for cell in cells)))
    return "\n".join(f"{row[0]:34}" + "".join(f"{cell!s:>14}" for cell in row[1:]) for row in rows)
