"""``import-data``: other forms of referring-segmentation data, one's own included -> REFER's layout.

Reads every record, refuses what it cannot place by name, and writes ``OUTPUT/DATASET/refs(SPLIT_BY).json`` and
``instances.json``, or nothing. docs/data.md describes the forms.
"""

import argparse
import re
import shlex
from pathlib import Path

from mindspore_coupalign.data.datasets import PUBLISHED, count_table
from mindspore_coupalign.data.importers import FORMATS
from mindspore_coupalign.data.importers.images import Pictures
from mindspore_coupalign.data.importers.import_job import LISTED, ImportJob, check_store, publish, staging, write_layout
from mindspore_coupalign.data.tokenizer import build_vocabulary
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.outputs import make_folder, write_file

_NAMED = (  # what a source's path says of the data set, the longest names first
    (r"grefcoco", "grefcoco", "unc"), (r"refcoco(\+|plus|p(?![a-z]))", "refcoco+", "unc"),
    (r"refcocog.*google", "refcocog", "google"), (r"refcocog", "refcocog", "umd"), (r"refcoco", "refcoco", "unc"),
    (r"refclef|referit", "refclef", "berkeley"), (r"phrasecut", "phrasecut", "vg"), (r"rrsis-?d", "rrsisd", "unc"),
)
_USUAL = {"grefcoco": ("grefcoco", "unc"), "phrasecut": ("phrasecut", "vg"), "rrsis-d": ("rrsisd", "unc")}
_PIXELS_INSIDE = ("hf-eval", "polyformer")
_BY_HAND = ("jsonl", "labelme", "coco")  # every image is opened; without --images they lie in the source's folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "\n".join(["formats:", *(f"  {name:<11} {what}" for name, (_, what) in FORMATS.items()), "",
                               *filter(None, [parser.epilog])])
    parser.add_argument("source", type=Path, metavar="SOURCE", help="file or folder to read")
    parser.add_argument("--format", required=True, choices=FORMATS, metavar="NAME", help="one of those listed below")
    parser.add_argument("--images", type=Path, help="folder of the images, which stay there (not needed where they "
                        "lie inside or beside the source)")
    parser.add_argument("--output", type=Path, required=True, help="root: OUTPUT/DATASET/ must not exist yet")
    parser.add_argument("--dataset", default="", help="name of the data set (default: what the source's path tells)")
    parser.add_argument("--split-by", default="", help="the X of refs(X).json (default: unc, umd, ..., or own)")
    parser.add_argument("--split", default="", help="split of records that name none (default: the file's name, else "
                        "train)")
    parser.add_argument("--objects", choices=("keep", "unite"), default="unite", help="sentences that mean several "
                        "objects or none: unite (default) makes one mask of several and leaves out those that mean "
                        "none; keep writes both as gRefCOCO does")
    parser.add_argument("--instances", type=Path, help="COCO's instances file, for forms that leave out the masks")
    parser.add_argument("--masks", type=Path, help="folder of the mask images, if not the usual one")
    parser.add_argument("--vocabulary", action="store_true", help="also write OUTPUT/DATASET/vocabulary, a tokenizer "
                        "of the data set's own words, for small networks trained from scratch")
    parser.add_argument("--skip-bad", type=int, default=0, metavar="N", help="leave out up to N records that cannot be "
                        "placed (default 0: refuse)")


def run(args: argparse.Namespace) -> int:
    """Import and print the report."""
    _check(args)
    dataset, split_by = _names(args)
    root = args.output
    by_hand = args.format in _BY_HAND
    beside = args.source if args.source.is_dir() else args.source.parent
    folder = args.images or (None if args.format in _PIXELS_INSIDE else beside)
    with staging(root, dataset) as stage:
        if folder is None:
            check_store(root, dataset)
        pictures = Pictures(folder, stage / "images", deeper=not by_hand)
        job = ImportJob(args.source, pictures, dataset, split_by, args.split, args.objects, args.instances, args.masks,
                     verify=by_hand)
        FORMATS[args.format][0](job)
        _refuse_bad(job, args.skip_bad)
        write_layout(job, stage)
        if args.vocabulary:
            write_file(make_folder(stage / "annotations/vocabulary") / "vocab.txt", _vocabulary(job).encode("utf-8"))
        place = publish(job, stage)
    print(f"read         {args.source} as {args.format}")
    print(f"written      {root / dataset}/refs({split_by}).json and instances.json")
    if args.vocabulary:
        print(f"vocabulary   {root / dataset}/vocabulary")
    print(f"images       {place}\n")
    print(_counts(job))
    for text, count in job.notes.items():
        print(f"note: {text}{f': {count:,}' if count else ''}")
    turned = [name for name in job.sizes if job.pictures.orientation.get(name, 1) != 1]
    if turned:
        print(f"note: images with an EXIF orientation, which is not applied: {len(turned):,} (first: {turned[0]}); "
              "masks must lie on the pixels as stored")
    if job.bad:
        print(f"note: records left out: {job.bad:,}")
    if any(len(ref.targets) != 1 for ref in job.refs):
        print("\nSentences of several objects, or none, were kept in gRefCOCO's form.")
    names = shlex.join(["--root", str(root), "--dataset", dataset, "--split-by", split_by])
    print(f"\nNext: python -m mindspore_coupalign check-data {names}")
    return 0


def _check(args: argparse.Namespace):
    for name, value, good in (("images", args.images, Path.is_dir), ("masks", args.masks, Path.is_dir),
                              ("instances", args.instances, Path.is_file)):
        if value is not None and not good(value):
            raise UserError(f"{value}: no such {'file' if name == 'instances' else 'folder'}; check --{name}")
    for name in ("dataset", "split_by"):
        if not re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9_+.-]*|", getattr(args, name)):
            raise UserError(f"--{name.replace('_', '-')} must be a name of letters, digits and _ + - . only, found "
                            f"{getattr(args, name)!r}")
    if args.skip_bad < 0:
        raise UserError(f"--skip-bad must be 0 or more, found {args.skip_bad}")
    if args.images is None and args.format not in (*_PIXELS_INSIDE, *_BY_HAND):
        raise UserError(f"--format {args.format} needs --images: the folder of the images")


def _names(args: argparse.Namespace) -> tuple[str, str]:
    """The data set and the way to split it: as asked for, as usual for the format, or as the source's path tells."""
    path = "/".join(args.source.resolve().parts[-3:])
    if args.dataset:
        path = args.dataset
    told = next(((dataset, by) for pattern, dataset, by in _NAMED if re.search(pattern, path, re.IGNORECASE)), None)
    plain = re.sub(r"[^A-Za-z0-9_+-]+", "_", args.source.resolve().stem).strip("_") or "imported"
    told = None if args.format in _BY_HAND else _USUAL.get(args.format) or told
    dataset, split_by = told or (plain, "own")
    return args.dataset or dataset, args.split_by or split_by


def _refuse_bad(job: ImportJob, allowed: int):
    if job.bad and (job.bad > allowed or not job.refs):
        for text in job.problems[1:]:
            print(f"also: {text}")
        if job.bad > LISTED:
            print(f"and {job.bad - LISTED:,} more")
        others = "" if job.bad == 1 else f" ({job.bad - 1:,} more record{'s' * (job.bad > 2)} cannot be placed either)"
        raise UserError(f"{job.problems[0]}{others}; nothing was written" + (
            f"; fix the source, or leave them out with --skip-bad {job.bad}" if job.refs else ""))
    for text in job.problems if job.bad else ():
        print(f"left out: {text}")
    if not job.refs:
        cause = "--objects keep takes sentences that mean no object" if job.notes else "is --format right?"
        raise UserError(f"{job.source}: holds no record with an object; nothing was written; {cause}")


def _vocabulary(job: ImportJob) -> str:
    """Of the train split, or of all where there is none."""
    refs = [ref for ref in job.refs if ref.split == "train"] or job.refs
    return build_vocabulary([sentence.sent for ref in refs for sentence in ref.sentences])


def _counts(job: ImportJob) -> str:
    """Refs, sentences and images per split beside the published counts."""
    counts = {}
    for split in dict.fromkeys(ref.split for ref in job.refs):
        refs = [ref for ref in job.refs if ref.split == split]
        counts[split] = len(refs), sum(len(ref.sentences) for ref in refs), len({ref.image for ref in refs})
    return count_table(counts, PUBLISHED.get((job.dataset, job.split_by), {}))
