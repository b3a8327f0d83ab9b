"""Files and folders that the user names with --output."""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from mindspore_coupalign.errors import UserError
from mindspore_coupalign.interrupts import half_made


def silence(stream):
    """Discard what is written to a stream whose reader is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def check_writable(path: Path):
    """Check an output file before the work is done.

    Raises:
        UserError: the file's folder is missing or not writable.
    """
    if not path.parent.is_dir():
        raise UserError(f"{path}: its folder {path.parent} does not exist; create it or choose another --output")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{path}: not writable; choose another --output")


def check_absent(paths: Iterable[Path]):
    """Raises UserError if one of the files exists: nothing is overwritten without --overwrite."""
    existing = [path for path in paths if os.path.lexists(path)]
    if existing:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise UserError(f"{existing[0]}: exists already{more}; add --overwrite to replace, or choose another --output")


def write_file(path: str | Path, content: bytes):
    """Write atomically. Raises UserError when the file cannot be written."""
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with removed_by_signals(temporary):
            temporary.write_bytes(content)
            os.replace(temporary, path)
    except OSError as exc:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({exc.strerror}); choose another --output") from exc


def make_folder(path: str | Path, remedy: str = "choose another --output") -> Path:
    """The output folder, made if it is missing.

    Raises:
        UserError: it cannot be made or written.
    """
    if not os.fspath(path):
        raise UserError(f"the output folder's name is empty; {remedy}")
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UserError(f"{path}: not a folder that can be made ({exc.strerror}); {remedy}") from exc
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{path}: not writable; {remedy}")
    return path


@contextlib.contextmanager
def removed_by_signals(path: Path) -> Iterator[Path]:
    """A file or folder that a signal which ends the process meanwhile removes."""
    half_made.add(path)
    try:
        yield path
    finally:
        half_made.discard(path)


@contextlib.contextmanager
def scratch(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A temporary folder in ``parent`` (default: the system's), removed at the end of the block and by signals."""
    folder = Path(parent or tempfile.gettempdir()).resolve() / f"{prefix}{uuid.uuid4().hex[:12]}"
    with removed_by_signals(folder):
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
