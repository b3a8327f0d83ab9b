"""Command ``plot-run``: loss, learning rate, loss scale and oIoU of runs in one figure, from their log.jsonl."""

import argparse
import json
from pathlib import Path

from mindspore_coupalign.errors import UserError

PANELS = (("loss", "training loss"), ("oIoU", "validation oIoU"), ("lr", "learning rate"), ("scale", "loss scale"))
SUFFIXES = (".png", ".svg", ".pdf")


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("runs", nargs="+", metavar="DIR", help="folders of runs, or their log.jsonl")
    parser.add_argument("--output", required=True, metavar="FILE", help="the figure: .png, .svg or .pdf")


def run(args: argparse.Namespace) -> int:
    if Path(args.output).suffix not in SUFFIXES:
        raise UserError(f"{args.output}: must end in {', '.join(SUFFIXES)}")
    curves = {str(folder): read_curves(Path(folder)) for folder in args.runs}
    draw(curves, Path(args.output))
    print(f"wrote {args.output}")
    return 0


def read_curves(path: Path) -> dict:
    """Panel key -> (steps, values) of a run; a last line that a kill truncated is ignored.

    Raises:
        UserError: there is no log, or it is not one that ``train`` wrote.
    """
    file = path / "log.jsonl" if path.is_dir() else path
    curves: dict[str, tuple[list, list]] = {key: ([], []) for key, _ in PANELS}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise UserError(f"{file}: no log of a run ({type(exc).__name__}); give a folder that train wrote") from exc
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            values = {**entry, "oIoU": entry["val"]["image"]["oIoU"]} if "val" in entry else entry
            step = entry["step"]
        except (ValueError, KeyError, TypeError) as exc:
            if number == len(lines):
                break
            raise UserError(f"{file}: line {number} is not one that train wrote; restore the file") from exc
        for key, (steps, points) in curves.items():
            if isinstance(values.get(key), int | float):
                steps.append(step)
                points.append(values[key])
    return curves


def draw(curves: dict, output: Path):
    """One panel per quantity that any run has, one line per run.

    Raises:
        UserError: nothing to draw, or the file cannot be written.
    """
    import matplotlib
    matplotlib.use("agg")  # no display on servers
    from matplotlib import pyplot

    panels = [(key, title) for key, title in PANELS if any(run[key][0] for run in curves.values())]
    if not panels:
        raise UserError(f"{', '.join(curves)}: nothing logged yet")
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.4), squeeze=False,
                                   layout="constrained")
    for axis, (key, title) in zip(axes[0], panels, strict=True):
        for name, run in curves.items():
            axis.plot(*run[key], label=name, marker="o" if len(run[key][0]) < 30 else None, markersize=3, linewidth=1.2)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if key == "scale":
            axis.set_yscale("log", base=2)
    axes[0][0].legend(fontsize="small")
    try:
        figure.savefig(output, dpi=120)
    except (OSError, ValueError) as exc:
        raise UserError(f"{output}: cannot be written ({exc}); choose another --output") from exc
    finally:
        pyplot.close(figure)
