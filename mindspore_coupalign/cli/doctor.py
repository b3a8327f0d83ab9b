"""Command ``doctor``: a report on this machine that every issue should contain.

Nothing here imports MindSpore or another package: what may crash is tried in a child process with a time limit
(doctor/probe.py). doctor/machine.py checks Python, packages and hardware; doctor/targets.py finds out why MindSpore
cannot use a GPU or NPU.
"""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from mindspore_coupalign import __version__
from mindspore_coupalign.doctor import machine, targets
from mindspore_coupalign.doctor.machine import BAD, NOTE, Item
from mindspore_coupalign.errors import one_line


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--config", metavar="FILE", help="check this configuration's data, tokenizer and weights")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.root=/data/refer")
    parser.add_argument("--checkpoint", metavar="FILE", help="check this checkpoint")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--timeout", type=int, default=300, metavar="SECONDS",
                        help="time limit of each check (default 300); a card newer than MindSpore's machine code "
                        "needs many minutes at its first start")


def run(args: argparse.Namespace) -> int:
    """Exit code 0 where nothing is BAD, else 1."""
    items = []
    for item in collect(args):
        items.append(item)
        if not args.json:
            print(line(item), flush=True)
    last = next_command(items, args)
    if args.json:
        print(json.dumps({"version": __version__, "items": [
            {key: shorten(value) for key, value in asdict(item).items()} for item in items], "next": shorten(last)},
            indent=2))
    else:
        print(f"\nnext: {shorten(last)}")
    return int(any(item.status == BAD for item in items))


def collect(args: argparse.Namespace) -> Iterator[Item]:
    """All items, in the order of the report; a check that fails itself is one, too."""
    parts = [("python", machine.python), ("package", machine.package), ("packages", machine.packages),
             ("processor", machine.processor), ("memory", machine.memory), ("disk", machine.disk),
             ("environment", machine.environment), ("CPU", lambda: targets.cpu(args.timeout)),
             ("GPU", lambda: targets.gpu(args.timeout)), ("Ascend", lambda: targets.ascend(args.timeout)),
             ("inputs", lambda: targets.inputs(args.config, args.overrides, args.checkpoint, args.timeout))]
    for name, part in parts:
        try:
            yield from part()
        except Exception as exc:  # a report with a hole is better than none
            yield Item(name, BAD, f"cannot be checked ({type(exc).__name__}: {one_line(exc, 200)})")


def line(item: Item) -> str:
    text = f"{item.status:<5}{item.name:<13}{item.text}" + (f"; try: {item.remedy}" if item.remedy else "")
    return shorten(text.replace("\n", " "))


def shorten(text: str) -> str:
    """Without the name of the user's home folder."""
    for home in sorted({str(Path.home()), os.path.realpath(Path.home())}, key=len)[::-1]:
        if len(home) > 1:
            text = text.replace(home + "/", "~/")
    return text


def next_command(items: list[Item], args: argparse.Namespace) -> str:
    """The remedy of the first item that is bad, else of the first note with one, else the next step of the work."""
    if bad := [item for item in items if item.status == BAD]:
        return bad[0].remedy or f"fix '{bad[0].name}' above; if it is unclear how, open an issue with this report"
    for item in items:
        if item.status == NOTE and item.remedy:
            return item.remedy
    clone = Path(__file__).resolve().parents[2] / "scripts" / "quickstart.sh"
    command = "python -m mindspore_coupalign"
    if args.config:
        return " ".join([f"{command} train --config {args.config}", *args.overrides, "--dry-run"])
    if args.checkpoint:
        return f'{command} predict --checkpoint {args.checkpoint} --image photo.jpg --text "man in blue" --output out'
    return f"bash {os.path.relpath(clone)}" if clone.exists() else f"{command} make-shapes --output data/refshapes"
