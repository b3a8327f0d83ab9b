"""NumPy's numbers, texts and arrays in a pickle -> plain Python values, without calling anything of NumPy's that a file
names.

A pickle rebuilds them by calling ``numpy.dtype``, ``scalar``, ``_reconstruct`` or ``_frombuffer`` and handing over a
state. The stand-ins here check every argument, know plain numbers and text only, and never make more of them than the
file holds. A file cannot change them: they take no state but an element type's and an array's.
"""

import math
import re
from collections.abc import Callable

import numpy as np

_PLAIN = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|[SU]\d{1,6}|O8?)")
_MOST_AXES = 4


class Malformed(Exception):
    """What the file hands over is not what NumPy writes."""


class Call:
    """A function that a pickle may name and call."""

    __slots__ = ("_make",)
    _make: Callable

    def __init__(self, make):
        object.__setattr__(self, "_make", make)

    def __call__(self, *arguments):
        return self._make(*arguments)

    def __setattr__(self, name, value):
        raise Malformed("a state for a function")

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


class StandIns:
    """Of one file of ``size`` bytes, which bounds what its arrays may hold together."""

    def __init__(self, size: int):
        self.left = size  # bytes; a file holds each of its arrays once
        self._calls: dict[str, Callable] = {
            "dtype": _Type, "scalar": self._scalar, "_reconstruct": self._array, "ndarray": self._array,
            "_frombuffer": self._from_buffer}

    def of(self, module: str, name: str) -> Call | None:
        """What stands for a name of NumPy's; None for a name that has no place in plain data."""
        if module in _MODULES and name in self._calls:
            return Call(self._calls[name])
        if name == "bytes" and module in ("builtins", "__builtin__"):
            return Call(lambda: b"")  # how Python 3 writes empty ones for protocols 0 to 2; others go through encode
        return Call(self._encode) if (module, name) == ("_codecs", "encode") else None

    def _scalar(self, dtype=None, data=None):
        return self._elements(data, dtype, (1,), "C")[0]

    def _array(self, *_) -> Array:
        array = Array()
        array._elements = self._elements
        return array

    def _from_buffer(self, data=None, dtype=None, shape=None, order="C") -> Array:
        array = self._array()
        array[:] = self._elements(data, dtype, shape, order)
        return array

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


_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
