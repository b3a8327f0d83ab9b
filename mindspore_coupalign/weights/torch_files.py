"""Reading PyTorch's files without torch, and without running anything that they say.

A ``.pth`` or ``.bin`` file is a pickle that names its tensors' memory, followed by that memory. Two forms exist: a zip
archive (``<name>/data.pkl``, ``<name>/data/<key>``), and the older stream (five pickles, then the storages one after
the other). The unpickler here builds dicts, lists, numbers, text and tensors; any other class, function or pickle
instruction is refused by name. Sizes are checked against the file before memory is taken, and no instruction costs more
than its own bytes: nothing that the file holds once can be copied twice.
"""

import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mindspore_coupalign.data.pickles import AllowList, Refused
from mindspore_coupalign.errors import UserError

_STREAM_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM_PROTOCOL = 1001
_STORAGES = {"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16",
             "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1",
             "BoolStorage": "?"}
_INSTRUCTIONS = (
    "PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE "
    "SHORT_BINUNICODE BINSTRING SHORT_BINSTRING EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS "
    "EMPTY_DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT "
    "MEMOIZE").split()  # what torch.save writes, with Python 2 and 3 and up to protocol 4
_LARGEST_PICKLE = 2**21  # bytes; those of large networks take less than one megabyte
_LARGEST = 2**63  # numbers of any size exist in a pickle, and multiplying them takes hours
_NESTED = ("model", "state_dict", "module", "net")  # where training scripts keep the state dict


def widen_bfloat16(data: bytes) -> np.ndarray:
    """Its numbers are the upper halves of float32's."""
    return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")


class _Storage:
    """A stretch of memory that the file holds: ``array`` is None until it has been read."""

    __slots__ = ("array", "count", "dtype")

    def __init__(self, dtype: str, count: object):
        if type(count) is not int or not 0 <= count < _LARGEST:
            shown = repr(count[:20] if type(count) is str else count) if type(count) in (int, str) else "odd"
            raise Refused(f"a storage of {shown[:30]} elements")  # nested tuples double with every level when shown
        self.dtype, self.count = dtype, count
        self.array: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)

    def fill(self, data: bytes):
        if len(data) != self.size:
            raise Refused(f"a storage of {len(data)} bytes where {self.size} are announced")
        if self.dtype == "bfloat16":
            self.array = widen_bfloat16(data)
        else:
            self.array = np.frombuffer(data, self.dtype)


class _Tensor:
    """A view of a storage, checked to stay inside it."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage, offset, shape, strides):
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or len(shape) != len(strides) or len(shape) > 16 or any(
                type(n) is not int or not 0 <= n < _LARGEST for n in numbers):
            raise Refused("a malformed tensor")
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        size = math.prod(shape)
        if size and (last >= storage.count or size > storage.count):
            raise Refused(f"a tensor of shape {tuple(shape)} in a storage of {storage.count} elements")
        self.storage, self.offset, self.shape, self.strides = storage, offset, tuple(shape), tuple(strides)

    def array(self) -> np.ndarray:
        flat = self.storage.array
        if flat is None:
            raise Refused("tensors without their storage")
        if not math.prod(self.shape):
            return np.zeros(self.shape, flat.dtype)
        return np.lib.stride_tricks.as_strided(flat[self.offset:], self.shape,
                                               [s * flat.itemsize for s in self.strides], writeable=False)


def _put(found, name, value):
    """Keys are what training scripts use: hashing nested tuples ends the process, chosen numbers take for ever."""
    if type(found) is not dict or not (type(name) is str or type(name) is int and 0 <= name < 2**32):
        raise Refused("a dict whose keys are neither names nor small numbers")
    found[name] = value


def _new_dict(pairs=None) -> dict:
    """In place of OrderedDict. Python 2 gave it its pairs in a list: emptied, so that no second call copies them."""
    found: dict = {}
    if pairs is not None:
        for name, value in pairs:
            _put(found, name, value)
        del pairs[:]
    return found


_ALLOWED = {**{("torch", name): dtype for name, dtype in _STORAGES.items()},
            ("collections", "OrderedDict"): _new_dict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: _Tensor(*arguments[:4]),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, requires_grad=False, hooks=None: tensor}
_INSTRUCTION_NAMES = {opcode.code: opcode.name for opcode in pickletools.opcodes}


class _Dispatch(dict):
    def __missing__(self, code: int):
        raise Refused(f"the pickle instruction {_INSTRUCTION_NAMES[chr(code)]}")  # KeyError: damaged


class _Unpickler(AllowList, pickle._Unpickler):
    """The one in Python, not the one in C: that one takes memory for any memo index that a file announces."""

    allowed = _ALLOWED
    stack: list  # this and pop_mark are pickle._Unpickler's own, which its published types leave out
    pop_mark: Callable[[], list]

    def __init__(self, file, storages: dict[str, _Storage]):
        super().__init__(file, encoding="utf-8")
        self.storages = storages

    def load_setitem(self):
        value, name = self.stack.pop(), self.stack.pop()
        _put(self.stack[-1], name, value)

    def load_setitems(self):
        items = self.pop_mark()
        for name, value in zip(items[::2], items[1::2], strict=True):
            _put(self.stack[-1], name, value)

    def load_build(self):
        """PyTorch hangs the modules' versions on a state dict; a tensor's state would change it after its check."""
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            raise Refused("a state of anything but a dict")

    dispatch = _Dispatch((code, pickle._Unpickler.dispatch[code]) for code in (
        getattr(pickle, name)[0] for name in _INSTRUCTIONS))
    dispatch |= {pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems, pickle.BUILD[0]: load_build}

    def persistent_load(self, pid):
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage" and pid[1] in _STORAGES.values()
                and isinstance(pid[2], str) and (len(pid) == 5 or pid[5] is None)):
            raise Refused("an unknown kind of storage")
        _, dtype, key, _, count = pid[:5]
        storage = self.storages.setdefault(key, _Storage(dtype, count))
        if (storage.dtype, storage.count) != (dtype, count):
            raise Refused(f"two different storages named {key[:40]!r}")
        return storage


def read_torch_file(path: str | Path) -> dict[str, np.ndarray]:
    """The state dict in a file written by ``torch.save``, name -> array.

    bfloat16 becomes float32; other element types stay. Both of PyTorch's forms are read; TorchScript, the tar form of
    PyTorch below 0.1.10, and pickles of modules are not.

    Raises:
        UserError: missing, truncated or damaged file, sizes that do not fit the file, or a pickle that names anything
            but tensors and plain containers.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            return _state_dict(_read_zip(path) if is_zip else _read_stream(file))
    except OSError as exc:
        raise UserError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    except Refused as exc:
        raise UserError(f"{path}: refuses {exc}: only tensors and plain containers are read; use a file that holds "
                        "weights alone (a state dict), from its original source") from exc
    except Exception as exc:  # a damaged file raises nearly anything, and all of it means the same to the user
        raise UserError(f"{path}: not a complete PyTorch file (truncated or damaged, {path.stat().st_size} bytes); "
                        "download it again") from exc


def _read_zip(path: Path):
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        if sum(info.file_size for info in archive.infolist()) > path.stat().st_size or any(
                info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size
                for info in archive.infolist()):
            raise Refused("a zip archive that is compressed, or announces more than it holds")
        index = next((name for name in infos if name.endswith("data.pkl") and name.count("/") == 1), None)
        if index is None or any("/code/" in name for name in infos):
            raise Refused("a zip archive without torch.save's data.pkl, or with code (TorchScript)")
        prefix = index[:-len("data.pkl")]
        if f"{prefix}byteorder" in infos and archive.read(f"{prefix}byteorder") != b"little":
            raise Refused("a file in big-endian order")
        if infos[index].file_size > _LARGEST_PICKLE:
            raise Refused(f"a pickle of {infos[index].file_size} bytes beside the tensors")
        storages: dict[str, _Storage] = {}
        content = _Unpickler(io.BytesIO(archive.read(index)), storages).load()  # whole, for its checksum
        for key, storage in storages.items():
            name = f"{prefix}data/{key}"
            if name not in infos or infos[name].file_size != storage.size:
                raise Refused(f"a storage {key[:40]!r} whose size is not the announced {storage.size} bytes")
            storage.fill(archive.read(name))
    return content


def _read_stream(file):
    storages: dict[str, _Storage] = {}
    pickles = io.BytesIO(file.read(_LARGEST_PICKLE))

    def load():
        return _Unpickler(pickles, storages).load()

    if load() != _STREAM_MAGIC or load() != _STREAM_PROTOCOL:
        raise Refused("a pickle that torch.save did not write")
    if load().get("little_endian") is not True:
        raise Refused("a file in big-endian order")
    content = load()
    keys = load()
    file.seek(pickles.tell())
    for key in keys:
        if type(key) is not str:  # see _put
            raise Refused("a storage without a name")
        storage = storages[key]
        (count,) = struct.unpack("<q", file.read(8))
        left = os.fstat(file.fileno()).st_size - file.tell()
        if count != storage.count or storage.size > left:
            raise Refused(f"a storage {key[:40]!r} of {storage.size} bytes where the file has {left} left")
        storage.fill(file.read(storage.size))
    return content


def _state_dict(content) -> dict:
    """The tensors by name; training scripts keep them one level down. Nothing else is looked at."""
    nested = [content.get(key) for key in _NESTED] if isinstance(content, dict) else []
    for found in (content, *nested):
        if isinstance(found, dict) and any(isinstance(value, _Tensor) for value in found.values()):
            return {str(name): value.array() for name, value in found.items() if isinstance(value, _Tensor)}
    raise Refused(f"a file without tensors by name, at its top or under {', '.join(_NESTED)}")
