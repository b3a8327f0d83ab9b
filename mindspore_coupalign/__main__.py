"""The command line: ``python -m mindspore_coupalign COMMAND`` (``coupalign COMMAND`` when installed).

Each command is a module with ``add_arguments(parser)`` and ``run(args)``, imported only when it is called, so that
``--help`` is fast. Exit codes: 0 success, 1 a check failed or a bug, 2 bad input, 130 interrupted by Ctrl-C (143 by
SIGTERM, 129 by SIGHUP; 0 for ``web``, which ends that way).
"""

import argparse
import contextlib
import importlib
import io
import os
import sys
import traceback

from mindspore_coupalign import __version__
from mindspore_coupalign.cli.examples import epilog
from mindspore_coupalign.distributed import watchdog as watch
from mindspore_coupalign.distributed.process import is_scheduler
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.interrupts import listen
from mindspore_coupalign.outputs import silence

COMMANDS = {
    "doctor": "report what this machine has and lacks; add the report to every issue",
    "check-device": "compare what a GPU or NPU computes with the CPU",
    "make-shapes": "generate the synthetic data set RefShapes in REFER's layout",
    "check-data": "check a data folder and compare its counts with the published ones",
    "import-data": "convert other dataset formats, or your own images, to REFER's layout",
    "export-data": "write a data set as JSON lines or COCO, for labelling elsewhere",
    "describe": "list a configuration's parts with parameters and GMACs",
    "convert-weights": "convert the pretrained weights of other projects",
    "train": "train a model",
    "plot-run": "plot the curves of runs in one image",
    "evaluate": "score a checkpoint on whole splits: oIoU, mIoU, P@X",
    "predict": "segment the objects that sentences refer to in images",
    "web": "a web demo: try a model on your own images in the browser",
    "show": "draw a split's best, worst and random predictions next to the ground truth",
    "export": "write a checkpoint as MINDIR or ONNX and verify that its outputs are the same",
}


def main(argv: list | None = None) -> int:
    try:
        return run(argv)
    except UserError as exc:
        return refuse(str(exc))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `coupalign … | head`
        silence(sys.stdout)
        return 0
    except OSError as exc:
        if exc.filename is None:
            raise
        return refuse(f"{exc.filename}: {exc.strerror}; check the path and its permissions")


def run(argv: list | None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # file names and sentences may not be encodable
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)  # a signal ends without a flush
    parser = argparse.ArgumentParser(
        prog="coupalign", description="Referring image segmentation with CoupAlign on MindSpore.",
        epilog="`coupalign COMMAND --help` describes a command and shows an example.")
    parser.add_argument("--version", action="version", version=f"mindspore_coupalign {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((a for a in argv if not a.startswith("-")), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".",
                                      formatter_class=argparse.RawDescriptionHelpFormatter, epilog=epilog(name))
        if name == chosen:
            implementation = importlib.import_module(f"mindspore_coupalign.cli.{name.replace('-', '_')}")
            implementation.add_arguments(command)
            command.set_defaults(run=implementation.run)
    args, rest = parser.parse_known_args(argv)
    if hasattr(args, "overrides"):  # argparse accepts key=value in one place only
        settings = [a for a in rest if "=" in a and not a.startswith("-")]
        args.overrides, rest = [*args.overrides, *settings], [a for a in rest if a not in settings]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    refuse_empty(args, commands.choices[args.command])
    return args.run(args) or 0


def refuse_empty(args: argparse.Namespace, parser: argparse.ArgumentParser):
    """Raises UserError for an option with an empty value, for example by an unset shell variable."""
    for name, value in vars(args).items():
        is_empty = value == "" and parser.get_default(name) != ""
        if is_empty or name == "image" and isinstance(value, list) and "" in value:
            raise UserError(f"--{name.replace('_', '-')}: is empty; give a value, or omit the option")


def refuse(message: str) -> int:
    if not watch.tell(message, 2):
        print(f"error: {message}", file=sys.stderr)
    return 2


def run_rank():
    """``main`` as one of several ranks. It never returns: MindSpore's teardown crashes if another rank has exited
    before."""
    watch.begin()
    listen()
    code = 1
    try:
        code = main()
    except SystemExit as exc:  # argparse has printed why, or its help
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        if code:
            watch.tell("the command line was not understood; see its log", code)
    except BaseException as exc:
        traceback.print_exc()
        watch.tell(f"{type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}", code)
    finally:
        with contextlib.suppress(OSError):  # a full disk
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def console() -> int:
    """``main`` as a process of its own, with the project's handling of signals."""
    listen()
    return main()


if __name__ == "__main__":
    if (ranks := watch.folder()) is None:
        sys.exit(console())
    if is_scheduler():
        from mindspore_coupalign.distributed.launcher import serve_as_scheduler
        sys.exit(serve_as_scheduler(ranks))
    run_rank()
