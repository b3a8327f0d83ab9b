"""``check-data``: is a data folder complete, readable and the one that the literature counts?

Counts every split beside the published numbers, opens every image that a ref uses, and looks for what spoils training
in silence: empty masks, images of another size than their masks or with an EXIF orientation, empty or truncated
sentences, refs of one id, images shared between training and another split, also across several data sets.
"""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from tqdm import tqdm

from mindspore_coupalign.config import DataConfig, load_config
from mindspore_coupalign.data.datasets import HEADS, PUBLISHED, count_table
from mindspore_coupalign.data.images import MissingImage, WrongSize
from mindspore_coupalign.data.leakage import image_paths, shared
from mindspore_coupalign.data.refer import OVERLAPS, ReferData
from mindspore_coupalign.data.sets import label_of, open_data, set_config
from mindspore_coupalign.data.tokenizer import SHIPPED, SentenceTokenizer, local_folder
from mindspore_coupalign.errors import UserError

_DEFAULT_TOKENIZER = "bert-base-uncased"
_LISTED = 10  # problems under one heading that are spelt out
_TURNED = "images with an EXIF orientation, which is not applied: do their masks lie on the pixels as stored?"


@dataclass
class Report:
    """What was found; the lists hold one text per problem."""

    published: bool  # whether there are published counts
    differs: bool = False  # from the published counts
    broken: dict[str, list[str]] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)

    def warn(self, title: str, problems: list[str]) -> None:
        if problems:
            self.warnings[title] = problems


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", help="folder that holds DATASET/refs(SPLIT_BY).p and the images")
    parser.add_argument("--dataset", nargs="+", default=[], metavar="NAME",
                        help="refcoco, refcoco+, refcocog, refclef, refshapes or another; several are also compared")
    parser.add_argument("--split-by", nargs="+", default=[], metavar="NAME",
                        help="unc, umd, google, berkeley, shapes: the X of refs(X).p, one for each data set")
    parser.add_argument("--images", default="", help="image folder, if not in the usual place below root")
    parser.add_argument("--config", metavar="FILE",
                        help="in place of these: a configuration that names the data, data.sets included")
    parser.add_argument("--skip-images", nargs="+", default=[], metavar="NAME",
                        help="images to leave out, as data.skip_images does")
    parser.add_argument("--tokenizer", default="", help="folder or name of the tokenizer that counts word pieces "
                        f"(default: {_DEFAULT_TOKENIZER} if it is on this machine)")
    parser.add_argument("--max-tokens", type=int, default=20, help="length at which sentences are cut (default 20)")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="threads that open images")
    parser.add_argument("--strict", action="store_true", help="fail where the counts differ from the published ones")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of --config, for example data.root=/data")


def run(args: argparse.Namespace) -> int:
    """Print the report. 0: usable; 1: broken files, or counts that differ under --strict."""
    for name, least in (("max_tokens", 3), ("workers", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, found {getattr(args, name)}")
    code = 0
    opened: list = []
    for names in _sets(args):
        if opened:
            print()
        opened.append((names, open_data(names)))
        code = max(code, _check(args, *opened[-1]))
    if len(opened) > 1:
        print("\n" + "\n".join(across(opened)))
    return code


def _sets(args: argparse.Namespace) -> list[DataConfig]:
    """The data sets that the options name, each once, as ``data`` sections."""
    for option in ("dataset", "split_by", "skip_images"):  # argparse gives an option of several values all that follows
        args.overrides += [name for name in getattr(args, option) if "=" in name]
        setattr(args, option, [name for name in getattr(args, option) if "=" not in name])
    if args.config:
        if args.root or args.dataset or args.split_by or args.images or args.skip_images:
            raise UserError("check-data: --config names the data; change its keys as data.root=FOLDER, without --root, "
                            "--dataset, --split-by, --images and --skip-images")
        names = load_config(args.config, args.overrides).data
        args.max_tokens = names.max_tokens
        if not args.tokenizer and local_folder(names.tokenizer).is_dir():  # the hub is not asked for a name
            args.tokenizer = names.tokenizer
        sets = [replace(names, sets=()), *(set_config(names, entry) for entry in names.sets)]
        return list({(entry.root, entry.dataset, entry.split_by): entry for entry in sets}.values())
    if args.overrides:
        raise UserError(f"check-data: {args.overrides[0]} changes a configuration; give --config FILE")
    if not (args.root and args.dataset and args.split_by):
        raise UserError("check-data: give --root, --dataset and --split-by, or --config FILE")
    if len(args.split_by) != len(args.dataset):
        raise UserError(f"check-data: {len(args.dataset)} data sets and {len(args.split_by)} values of --split-by; "
                        "give one for each")
    return [DataConfig(root=args.root, dataset=dataset, split_by=split_by, images=args.images,
                       skip_images=tuple(args.skip_images))
            for dataset, split_by in zip(args.dataset, args.split_by, strict=True)]


def _check(args: argparse.Namespace, names: DataConfig, data: ReferData) -> int:
    """The report on one data set."""
    tokenizer, counted_by = _tokenizer(args, names.dataset)
    published = PUBLISHED.get((names.dataset, names.split_by), {})
    report = Report(published=bool(published))
    print(f"annotations  {data.source}\nimages       {data.image_dir}")
    print("".join(f"             {line}\n" for line in data.notes))
    _counts(data, published, report)
    print()
    _images(data, args.workers, report)
    _masks(data, report)
    _sentences(data, tokenizer, counted_by, args.max_tokens, report)
    _leaks(data, report)
    for found in (report.broken, report.warnings):
        for title, problems in found.items():
            print(f"\n{title}: {len(problems):,}")
            print("\n".join(f"  {text}" for text in problems[:_LISTED]))
            if len(problems) > _LISTED:
                print(f"  and {len(problems) - _LISTED:,} more")
    return _result(report, args.strict)


def across(opened: list[tuple[DataConfig, ReferData]]) -> list[str]:
    """Lines about images that one set's training split shares with other splits of any other set."""
    lines = []
    for names, data in opened:
        if not data.splits_meant(names.train_split):
            continue
        train = image_paths(data, names.train_split)
        for other_names, other in opened:
            for split in other.split_names if other is not data else ():
                if split in other.splits_meant(other_names.train_split):
                    continue
                if count := int(shared(train, image_paths(other, split)).sum()):
                    lines.append(f"  {label_of(names, names.train_split)} has {count:,} image{'s' * (count != 1)} of "
                                 f"{label_of(other_names, split)}")
    if not lines:
        return ["across sets  no training split has an image of another set's validation or test split"]
    return ["Images that a training split shares with a validation or test split of another set; a training on "
            "data.sets keeps them out:", *lines]


def _counts(data: ReferData, published: dict, report: Report) -> None:
    counts, notes = {}, {}
    for code, split in enumerate(data.split_names):
        refs = np.flatnonzero(data.ref_split == code)
        counts[split] = (len(refs), int(np.isin(data.sentence_ref, refs).sum()), len(np.unique(data.ref_image[refs])))
    for split, known in published.items():
        found = zip(HEADS, counts.get(split, (0, 0, 0)), known, strict=True)
        if wrong := [head for head, n, m in found if m is not None and n != m]:
            notes[split] = f"differs: {', '.join(wrong)}"
    report.differs = bool(notes)
    print(count_table(counts, published, notes))
    for name in ("test", "testA", "testB", "testC"):
        if (meant := data.splits_meant(name)) not in ((), (name,)):
            print(f"Split {name} stands for {' and '.join(meant)} here.")


def _images(data: ReferData, workers: int, report: Report) -> None:
    def look(i: int) -> tuple[str, str] | None:
        try:
            _, orientation = data.read_image_file(i)
        except MissingImage as exc:
            return "missing images", str(exc)
        except WrongSize as exc:
            return "images of another size than instances.json says", str(exc)
        except UserError as exc:
            return "unreadable images", str(exc)
        return None if orientation == 1 else (_TURNED, f"{data.image_dir / str(data.image_files[i])}: {orientation}")

    count = len(data.image_files)
    with ThreadPoolExecutor(workers) as pool:
        # disable=None: a bar only where stderr is a terminal
        results = list(tqdm(pool.map(look, range(count)), total=count, desc="images", unit="", disable=None))
    problems = sorted(result for result in results if result)
    for title, text in problems:
        (report.warnings if title == _TURNED else report.broken).setdefault(title, []).append(text)
    good = count - sum(map(len, report.broken.values()))
    print(f"images       {good:,} of {count:,} are there, readable and of the right size")


def _masks(data: ReferData, report: Report) -> None:
    areas, single = (np.array([data.mask_area(r, overlap) for r in range(len(data.ref_ids))]) for overlap in OVERLAPS)
    share = areas / data.image_sizes[data.ref_image].astype(np.int64).prod(axis=1)
    ids, counts = np.unique(data.ref_ids, return_counts=True)
    for title, found in (
            ("empty masks", (share == 0) & data.has_target),
            ("masks that cover the whole image", share == 1),
            ("masks that data.overlap=single leaves empty", (areas > 0) & (single == 0)),
            ("masks of which a polygon with fewer than three points was left out", data.ref_left_out),
            ("refs that share their ref_id", np.isin(data.ref_ids, ids[counts > 1])),
            ("refs without a sentence", np.diff(data.ref_sentences) == 0)):
        report.warn(title, [_ref(data, r) for r in np.flatnonzero(found)])
    print(f"objects      {data.annotations:,} annotations in instances.json, {data.unnamed:,} of which no ref names")
    objects = np.diff(data.ref_objects)
    if (objects != 1).any():
        print(f"             {(objects > 1).sum():,} refs mean several objects (up to {objects.max()}), "
              f"{(objects == 0).sum():,} mean none: see model.no_target")
    share = share[data.has_target] if data.has_target.any() else share
    print(f"masks        median {np.median(share):.1%} of the image; {data.ref_outside.sum():,} of {len(share):,} have "
          "a polygon that reaches outside the image (clipped)")


def _sentences(data: ReferData, tokenizer, counted_by: str, max_tokens: int, report: Report) -> None:
    texts = [data.sentence(s) for s in range(len(data.sentence_ref))]
    report.warn("empty sentences", [f"sentence {data.sentence_ids[s]} of {_ref(data, data.sentence_ref[s])}"
                                    for s, text in enumerate(texts) if not text.strip()])
    if not texts:
        return
    lengths = tokenizer.lengths(texts) if tokenizer else np.array([len(text.split()) + 2 for text in texts])
    cut = int((lengths > max_tokens).sum())
    high = np.percentile(lengths, 99)
    print(f"sentences    {lengths.mean():.1f} tokens on average, median {np.median(lengths):.0f}, 99th percentile "
          f"{high:.0f}, longest {lengths.max()}; {cut:,} of {len(texts):,} are cut at {max_tokens}")
    print(f"             ({counted_by})")
    if tokenizer:
        unknown = int((tokenizer(texts)[0] == tokenizer.unknown_id).any(axis=1).sum())
        print(f"             {unknown:,} have a word that this vocabulary cannot spell")
    if data.kind_names:
        kinds = (f"{name} {(data.sentence_kind == code).sum():,}" for code, name in enumerate(data.kind_names))
        print(f"categories   {', '.join(kinds)}")


def _leaks(data: ReferData, report: Report) -> None:
    if "train" not in data.split_names:
        return
    train = data.ref_image[data.refs_of("train")]
    for split in data.split_names:
        both = np.intersect1d(train, data.ref_image[data.refs_of(split)]) if split != "train" else ()
        report.warn(f"images that train shares with {split}", [str(data.image_files[i]) for i in both])


def _result(report: Report, strict: bool) -> int:
    warnings = sum(map(len, report.warnings.values()))
    tail = f" {warnings:,} warning{'s' * (warnings != 1)} above." if warnings else ""
    if report.broken:
        found = ", ".join(f"{len(problems):,} {title}" for title, problems in report.broken.items())
        print(f"\nResult: broken: {found}; correct these before training.{tail}")
        return 1
    if report.differs:
        print("\nResult: every file is readable, but the counts differ from the published ones, so scores on this "
              f"folder do not compare with published scores.{tail}")
        return int(strict)
    counts = "no count differs from a published one" if report.published else "there are no published counts to compare"
    print(f"\nResult: every file is readable, and {counts}.{tail}")
    return 0


def _ref(data: ReferData, r: int) -> str:
    objects = data.objects_of(r)
    names = f"annotation {', '.join(map(str, objects))}" if objects else "no target"
    return f"ref {data.ref_ids[r]} ({names}, split {data.split_names[data.ref_split[r]]})"


def _tokenizer(args: argparse.Namespace, dataset: str) -> tuple[SentenceTokenizer | None, str]:
    """The tokenizer, or None, and how lengths are counted with it."""
    name = args.tokenizer or (dataset if dataset in SHIPPED else _DEFAULT_TOKENIZER)
    try:
        tokenizer = SentenceTokenizer.from_name(name, args.max_tokens, download=bool(args.tokenizer))
    except UserError:
        if args.tokenizer:
            raise
        return None, (f"counted as words + 2, for {name} is not on this machine: name a folder with --tokenizer for "
                      "exact numbers")
    return tokenizer, f"word pieces of {name} with [CLS] and [SEP]"
