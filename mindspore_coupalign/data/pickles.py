"""Reading REFER's ``refs(*).p``: pickles from the internet that must not be able to run anything.

A pickle runs code by naming a function or class (a "global") and calling it. The reader here refuses every global, so
only what pickle can build by itself remains: lists, tuples, dicts, sets, text, bytes, numbers, booleans and None.
"""

import codecs
import contextlib
import pickle
import resource
from pathlib import Path

from mindspore_coupalign.errors import UserError

MAX_BYTES = 1 << 30  # refs(*).p of the public data sets are below 100 MB
_SIGNATURES = (
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    (b"\x1f\x8b", "gzip-compressed: unpack it first"),
)


def _latin1_bytes(error: UnicodeError) -> tuple:
    """Codec error handler: bytes that are not UTF-8 are read as Latin-1, one character each."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("coupalign-latin-1", _latin1_bytes)


@contextlib.contextmanager
def _bounded_memory(more: int):
    """No more than so many bytes on top of what the process has: one damaged number in a pickle can ask for all there
    are, as the place of a value in its memo. (The unpickler in Python would not, but takes ten seconds for RefCOCO.)"""
    used = Path("/proc/self/statm")
    if not used.exists():  # not Linux
        yield
        return
    pages = int(used.read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + more
    bounds = [bound for bound in (soft, hard, limit) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        raise _Refused(f"refuses to load '{module}.{name}'")

    def persistent_load(self, pid):
        raise _Refused("refuses to follow a persistent id")


class _Refused(Exception):
    pass


def load_plain_pickle(path: str | Path):
    """Read a pickle of plain values; nothing in the file can run.

    Python 2 wrote the public files: its byte strings are read as UTF-8, and bytes that are not UTF-8 as Latin-1.

    Returns:
        whatever the file holds: nested lists, tuples, dicts, sets, text, bytes, numbers, booleans, None.

    Raises:
        UserError: missing, empty, truncated or damaged file, a file above 1 GiB, or a pickle that names anything but
            plain values.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{path}: {size / 2**30:.1f} GiB is too large for a list of refs; is this the right file?")
        with path.open("rb") as file:
            start = file.read(64)
            file.seek(0)
            with _bounded_memory((1 << 29) + 100 * size):
                return _PlainUnpickler(file, encoding="utf-8", errors="coupalign-latin-1").load()
    except FileNotFoundError as exc:
        raise UserError(f"{path}: no such file{_neighbours(path)}") from exc
    except OSError as exc:
        raise UserError(f"{path}: cannot be read ({exc.strerror or exc}); expected a pickle file") from exc
    except _Refused as exc:
        raise UserError(f"{path}: {exc}: only plain lists, dicts, text and numbers are read; "
                        "do not use this file, get it from its original source") from exc
    except Exception as exc:  # a damaged pickle raises nearly anything, and all of it means the same to the user
        if isinstance(exc, UserError):
            raise
        raise UserError(f"{path}: not a complete pickle file{_diagnosis(start, size)}") from exc


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist either"
    found = sorted(p.name for p in path.parent.glob("refs(*).p"))
    return f"; found beside it: {', '.join(found)}" if found else f"; {path.parent} holds no refs(*).p at all"


def _diagnosis(start: bytes, size: int) -> str:
    if not size:
        return " (it is empty); download it again"
    if start.lstrip()[:1] == b"<":
        return " but a web page (a dead download link?); get the file from another source"
    for signature, text in _SIGNATURES:
        if start.startswith(signature):
            return f" but {text}"
    return f" (truncated or damaged, {size} bytes); download it again"
