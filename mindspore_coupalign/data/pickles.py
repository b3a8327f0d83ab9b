"""Unpickling files from the internet without running anything in them.

A pickle runs code by naming a function or class (a "global") and calling it. Every reader here has an allow-list:
``AllowList.allowed`` maps (module, name) to a stand-in, and everything else is refused. ``load_plain_pickle`` reads
REFER's ``refs(*).p``: lists, tuples, dicts, text, bytes, numbers, booleans, None, and NumPy's numbers and arrays as the
plain values they hold; weights/torch_files.py reads tensors.

A pickle rebuilds NumPy's values by calling ``numpy.dtype``, ``scalar``, ``_reconstruct`` or ``_frombuffer`` and handing
over a state. The stand-ins check every argument, accept plain numbers and text only, and never allocate more than the
file holds. A file cannot change them: they take no state but an element type's and an array's.
"""

import codecs
import contextlib
import io
import math
import pickle
import re
import resource
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mindspore_coupalign.errors import UserError, kind_of_file

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
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(used.read_text().split()[0]) * resource.getpagesize() + more
    bounds = [bound for bound in (soft, hard, limit) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Refused(Exception):
    """What a file may not load; ``module`` is where a refused class or function is from."""

    def __init__(self, text: str, module: str = ""):
        super().__init__(text)
        self.module = module


class AllowList:
    """To be mixed into an unpickler: a file may load only what ``allowed`` has, (module, name) -> stand-in."""

    allowed: Mapping[tuple[str, str], object]

    def find_class(self, module: str, name: str):
        if (module, name) not in self.allowed:
            raise Refused(repr(f"{module}.{name}"[:100]), module)
        return self.allowed[module, name]

    def persistent_load(self, pid):
        raise Refused("a persistent id")


class _PlainUnpickler(AllowList, pickle.Unpickler):
    def __init__(self, file, size: int):
        super().__init__(file, encoding="utf-8", errors="coupalign-latin-1")
        self.allowed = _NumpyValues(size).allowed


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
    except Refused as exc:
        package = exc.module.partition(".")[0]
        remedy = "do not use this file" if package not in _DATA_PACKAGES else (
            f"write what {package} holds as plain values, for example pickle.dump(frame.to_dict('records'), file)")
        raise UserError(f"{path}: refuses to load {exc}: only plain lists, dicts, text and numbers are read; {remedy}, "
                        "or get it from its original source") from exc
    except Malformed as exc:
        raise UserError(f"{path}: {exc} where one of NumPy's numbers or arrays should be; write plain lists, dicts, "
                        "text and numbers, or get the file from its original source") from exc
    except UserError:
        raise
    except Exception as exc:  # a damaged pickle raises nearly anything, and all of it means the same to the user
        raise UserError(f"{path}: not a complete pickle file{_diagnosis(path, start, size)}") from exc


def _neighbours(path: Path) -> str:
    found = sorted(p.name for p in path.parent.glob("refs(*).p"))
    return f"; found beside it: {', '.join(found) or 'no refs(*).p at all'}"


def _diagnosis(path: Path, start: bytes, size: int) -> str:
    kind = kind_of_file(start)
    if kind:
        return f" but {kind}"
    content = path.read_bytes()
    if content.count(b"\n") == content.count(b"\r\n") > 10:  # in binary data no line end would be like that
        return (" (every line end in it is CR LF: it was changed on its way, for example by FTP in text mode or by "
                "git's autocrlf); get it again, as a binary file")
    return f" (truncated or damaged, {size} bytes); download it again"


_PLAIN = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|[SU]\d{1,6}|O8?)")
_MOST_AXES = 4
_NUMPY_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric",
                  "numpy._core.numeric")


class Malformed(Exception):
    """What the file hands over is not what NumPy writes."""


class Call:
    """A function that a pickle may name and call."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable):
        self._make = make

    def __call__(self, *arguments):
        return self._make(*arguments)

    def __setstate__(self, state):
        raise Malformed("a state for a function")


class _Type:
    """An element type; its state carries the byte order."""

    __slots__ = ("dtype",)

    def __init__(self, name=None, *_):
        if type(name) is not str or not _PLAIN.fullmatch(name):
            raise Malformed("an element type that is neither numbers nor text")
        self.dtype = np.dtype(name)

    def __setstate__(self, state):
        plain = type(state) is tuple and len(state) >= 5 and state[1] in ("<", ">", "|", "=")
        if not plain or any(part is not None for part in state[2:5]):
            raise Malformed("an element type with fields")
        self.dtype = self.dtype.newbyteorder(state[1])


class Array(list):
    """An array as (nested) lists."""

    __slots__ = ("_elements",)
    _elements: Callable[..., list]

    def __setstate__(self, state):
        if type(state) is not tuple or len(state) != 5:
            raise Malformed("an array's state")
        _, shape, dtype, is_fortran, data = state
        self[:] = self._elements(data, dtype, shape, "F" if is_fortran else "C")


class _NumpyValues:
    """The stand-ins of one file of ``size`` bytes, which bounds what its arrays may hold together."""

    def __init__(self, size: int):
        self.left = size  # bytes; a file holds each of its arrays once
        calls: dict[str, Callable] = {
            "dtype": _Type, "scalar": self._scalar, "_reconstruct": self._array, "ndarray": self._array,
            "_frombuffer": self._from_buffer}
        self.allowed = {(module, name): Call(make) for module in _NUMPY_MODULES for name, make in calls.items()}
        # How Python 3 writes empty bytes for protocols 0 to 2; others go through encode.
        self.allowed |= {(module, "bytes"): Call(lambda: b"") for module in ("builtins", "__builtin__")}
        self.allowed["_codecs", "encode"] = Call(self._encode)

    def _scalar(self, dtype=None, data=None):
        return self._elements(data, dtype, (1,), "C")[0]

    def _array(self, *_) -> Array:
        array = Array()
        array._elements = self._elements
        return array

    def _from_buffer(self, data=None, dtype=None, shape=None, order="C") -> list:
        return self._elements(data, dtype, shape, order)

    def _encode(self, text=None, encoding=None) -> bytes:
        """How Python 3 writes bytes for protocols 0 to 2."""
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            raise Malformed("an encoding other than Latin-1")
        self._spend(len(text))
        return text.encode("latin-1")

    def _elements(self, data, dtype, shape, order: str) -> list:
        if type(dtype) is not _Type or type(shape) is not tuple or not 1 <= len(shape) <= _MOST_AXES or any(
                type(n) is not int or not 0 <= n <= self.left for n in shape):
            raise Malformed("an array's shape or type")
        count, dtype = math.prod(shape), dtype.dtype
        self._spend(count * max(1, dtype.itemsize if dtype.kind != "O" else 1))
        if count == 0:
            return []
        if dtype.kind == "O":
            if type(data) is not list or len(shape) != 1 or len(data) != count:
                raise Malformed("an array of objects")
            return data
        data = _bytes(data, count * dtype.itemsize)
        if dtype.itemsize == 0:
            return [""] * count
        return np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C").tolist()

    def _spend(self, size: int):
        if size > self.left:
            raise Malformed("more than the file is large")
        self.left -= size


def _bytes(data, size: int) -> bytes:
    """What Python 3 wrote as bytes, or Python 2 as text: load_plain_pickle has read that as UTF-8 or as Latin-1, and
    only one of the two gives the size back."""
    if type(data) is str and len(data) <= size:
        for encoding in ("utf-8", "latin-1"):
            found = data.encode(encoding, "replace")
            if len(found) == size:
                return found
    if type(data) not in (bytes, bytearray) or len(data) != size:
        raise Malformed(f"data of another size than {size} bytes")
    return bytes(data)
