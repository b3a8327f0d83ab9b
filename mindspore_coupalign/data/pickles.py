"""Reading REFER's ``refs(*).p``: pickles from the internet that must not be able to run anything.

A pickle runs code by naming a function or class (a "global") and calling it. The reader here refuses every global but
NumPy's numbers and arrays, which it builds by itself (numpy_pickles.py). So only plain values remain: lists, tuples,
dicts, text, bytes, numbers, booleans and None.
"""

import codecs
import contextlib
import io
import pickle
import re
import resource
from pathlib import Path

from mindspore_coupalign.data.file_kinds import kind_of_file
from mindspore_coupalign.data.numpy_pickles import Malformed, StandIns
from mindspore_coupalign.errors import UserError

MAX_BYTES = 1 << 30  # refs(*).p of the public data sets are below 100 MB
_DATA_PACKAGES = ("pandas", "numpy", "torch", "pyarrow", "polars", "collections", "pathlib")
_WINDOWS_LINES = re.compile(rb"[(\]}][^\n]{0,8}\r\n")  # a pickle of protocol 0, which is lines of text, begins so


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
    def __init__(self, file, size: int):
        super().__init__(file, encoding="utf-8", errors="coupalign-latin-1")
        self.numpy = StandIns(size)

    def find_class(self, module: str, name: str):
        found = self.numpy.of(module, name)
        if found is None:
            raise _Refused(f"refuses to load '{module}.{name}'", module)
        return found

    def persistent_load(self, pid):
        raise _Refused("refuses to follow a persistent id", "")


class _Refused(Exception):
    def __init__(self, text: str, module: str):
        super().__init__(text)
        package = module.partition(".")[0]
        self.remedy = (f"write what {package} holds as plain values, for example pickle.dump(frame.to_dict('records'), "
                       "file), or get the file from its original source" if package in _DATA_PACKAGES else
                       "do not use this file, get it from its original source")


def _with_unix_lines(file) -> io.BytesIO:
    """A protocol-0 pickle whose every line end was turned to CR LF on its way; those in its texts are escapes."""
    content = file.read()
    changed = content.count(b"\n") == content.count(b"\r\n")
    return io.BytesIO(content.replace(b"\r\n", b"\n") if changed else content)


def load_plain_pickle(path: str | Path):
    """Read a pickle of plain values; nothing in the file can run.

    Python 2 wrote the public files: its byte strings are read as UTF-8, and bytes that are not UTF-8 as Latin-1.
    NumPy's numbers and texts become Python's, its arrays lists. Lines of protocol 0 may end in CR LF.

    Returns:
        whatever the file holds: nested lists, tuples, dicts, text, bytes, numbers, booleans, None.

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
                lines = _with_unix_lines(file) if _WINDOWS_LINES.match(start) else file
                return _PlainUnpickler(lines, size).load()
    except FileNotFoundError as exc:
        raise UserError(f"{path}: no such file{_neighbours(path)}") from exc
    except OSError as exc:
        raise UserError(f"{path}: cannot be read ({exc.strerror or exc}); expected a pickle file") from exc
    except _Refused as exc:
        raise UserError(f"{path}: {exc}: only plain lists, dicts, text and numbers are read; {exc.remedy}") from exc
    except Malformed as exc:
        raise UserError(f"{path}: {exc} where one of NumPy's numbers or arrays should be; write plain lists, dicts, "
                        "text and numbers, or get the file from its original source") from exc
    except Exception as exc:  # a damaged pickle raises nearly anything, and all of it means the same to the user
        if isinstance(exc, UserError):
            raise
        raise UserError(f"{path}: not a complete pickle file{_diagnosis(path, start, size)}") from exc


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist either"
    found = sorted(p.name for p in path.parent.glob("refs(*).p"))
    return f"; found beside it: {', '.join(found)}" if found else f"; {path.parent} holds no refs(*).p at all"


def _diagnosis(path: Path, start: bytes, size: int) -> str:
    kind = kind_of_file(start)
    if kind:
        return f" but {kind}"
    content = path.read_bytes()
    if content.count(b"\n") == content.count(b"\r\n") > 10:  # in binary data no line end would be like that
        return (" (every line end in it is CR LF: it was changed on its way, for example by FTP in text mode or by "
                "git's autocrlf); get it again, as a binary file")
    return f" (truncated or damaged, {size} bytes); download it again"
