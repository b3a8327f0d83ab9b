"""Hostile, malformed and unusual weight files. Pickles are written by hand: plain ``pickle`` has no such tensors."""

import json
import pickle
import struct
import time
import tracemalloc
import zipfile
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from mindspore_coupalign.errors import UserError
from mindspore_coupalign.weights.files import read_arrays, weight_file

GOLDEN = Path(__file__).parents[1] / "golden" / "weights"
TORCH_FILES = ("swin_official.pth", "swin_official_stream.pth", "resnet_torchvision.pth", "bert_pytorch_model.bin")
FORMS = pytest.mark.parametrize("form", ["zip", "stream"])
FOUR = np.arange(4, dtype="<f4")
GIB2 = 2**31  # a length to announce: more than a test may take, less than what fails at once


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def plain(value) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def named(name: str) -> bytes:
    return b"c" + "\n".join(name.rsplit(".", 1)).encode() + b"\n"


def storage(count=4, kind: str = "FloatStorage", key: str = "0") -> bytes:
    return b"(" + text("storage") + named(f"torch.{kind}") + text(key) + text("cpu") + plain(count) + b"tQ"


def tensor(memory: bytes, offset=0, shape=(4,), strides=(1,)) -> bytes:
    return (named("torch._utils._rebuild_tensor_v2") + b"(" + memory + plain(offset) + plain(shape) + plain(strides)
            + b"\x89" + named("collections.OrderedDict") + b")RtR")


ONE = tensor(storage())


def called(name: str, *arguments: bytes) -> bytes:
    return named(name) + b"(" + b"".join(arguments) + b"tR"


def state(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


def write(path: Path, form: str, body: bytes, protocol=2, size=4, little=True, compression=zipfile.ZIP_STORED, **files):
    """A file with the pickle ``body``, and FOUR in storage "0" of elements of ``size`` bytes."""
    body = bytes([0x80, protocol]) + body + b"."
    if form == "zip":
        entries = {"data.pkl": body, "byteorder": "little" if little else "big", "data/0": FOUR.tobytes()} | files
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in entries.items():
                archive.writestr(f"archive/{name}", content)
    else:
        head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": little})
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in head) + body + pickle.dumps(["0"], 2)
                         + struct.pack("<q", FOUR.nbytes // size) + FOUR.tobytes())
    return path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_arrays(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < len(str(path)) + 400
    return message


@contextmanager
def modest(seconds: float = 5.0, megabytes: int = 60):
    """The block takes little memory and time."""
    started = time.perf_counter()
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < megabytes * 1e6 and time.perf_counter() - started < seconds


# Pickles that want something ------------------------------------------------------------------------------------------

HOSTILE = {  # name -> (pickle that touches {}, what the message names)
    "system": (lambda m: called("posix.system", text(f"touch {m}")), "'posix.system'"),
    "eval": (lambda m: called("builtins.eval", text(f"open({str(m)!r}, 'w')")), "'builtins.eval'"),
    "stack global": (lambda m: text("posix") + text("system") + b"\x93" + text(f"touch {m}") + b"\x85R",
                     "'posix.system'"),
    "object": (lambda m: b"(" + named("posix.system") + text(f"touch {m}") + b"o", "'posix.system'"),
    "instance": (lambda m: b"(" + text(f"touch {m}") + b"iposix\nsystem\n", "INST"),
}


@FORMS
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_runs_nothing(tmp_path, form, name):
    marker = tmp_path / "it-ran"
    make, wanted = HOSTILE[name]
    assert wanted in refused(write(tmp_path / "w.pth", form, state(w=ONE, x=make(marker))))
    assert not marker.exists()
    pickle.loads(b"\x80\x04" + make(marker) + b".")  # the same bytes do run in plain pickle: the test can fail
    assert marker.exists()


DEEP = b")" + 300_000 * b"\x85"  # nested tuples: to hash them ends the process
DOUBLED = b")" + 60 * b"q\x00h\x00\x86"  # a tuple of twice the tuple before: 2^60 brackets when it is shown
NEW_STATE = b"N" + state(shape=plain((2**24,)), count=plain(1), array=b"N", __code__=b"N") + b"\x86b"  # by slots
ODD = {
    "torch.jit": (named("torch.jit._load"), "'torch.jit._load'"),
    "a path through": (b"\x80\x04" + text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93",
                       "'torch._utils._rebuild_tensor_v2.__globals__'"),
    "not one line": (b"\x80\x04" + text("a\n\x1b[31m" + 9999 * "b") + text("c") + b"\x93", r"'a\n\x1b[31mb"),
    "new object": (named("collections.OrderedDict") + b")\x81", "NEWOBJ"),
    "extension": (b"\x82\x01", "EXT1"),
    "state of a tensor": (ONE + NEW_STATE, "a state of anything but a dict"),
    "state of a storage": (storage() + NEW_STATE, "a state of anything but a dict"),
    "state of a function": (named("torch._utils._rebuild_parameter") + NEW_STATE, "a state of anything but a dict"),
    "item of a tensor": (ONE + text("a") + b"Ns", "a dict whose keys"),
    "text is called": (text("os.system") + text("true") + b"\x85R", "not a complete"),
    "dict of a tuple": (called("collections.OrderedDict", plain((("a", 1),))), "not a complete"),
    "tensor of nothing": (called("torch._utils._rebuild_tensor_v2"), "not a complete"),
    "tensor of text": (tensor(text("memory")), "a malformed tensor"),
    "parameter with state": (called("torch._utils._rebuild_parameter", 9 * b"N"), "not a complete"),
    "persistent text": (text("0") + b"Q", "an unknown kind of storage"),
    "deep name": (storage().replace(text("0"), DEEP), "an unknown kind of storage"),
    "storage of text": (storage("4"), "a storage of '4' elements"),
    "storage of long text": (storage(9_999 * "4"), "a storage of '44444444444444444444' elements"),
    "storage of doubled tuples": (storage(()).replace(plain(()), DOUBLED), "a storage of odd elements"),
    "two storages": (storage(4) + b"0" + storage(5), "two different storages"),
    "deep key": (b"}" + DEEP + b"Ns", "a dict whose keys"),
    "colliding key": (b"}" + plain(2**61 - 1) + b"Ns", "a dict whose keys"),
    "key in a pair": (called("collections.OrderedDict", plain([[(1,), 2]])), "a dict whose keys"),
}


@FORMS
@pytest.mark.parametrize("name", ODD)
def test_odd_use_of_what_is_allowed_is_refused(tmp_path, form, name):
    body, wanted = ODD[name]
    assert wanted in refused(write(tmp_path / "w.pth", form, state(w=ONE, x=body)))


# Sizes ----------------------------------------------------------------------------------------------------------------


@FORMS
@pytest.mark.parametrize("count,offset,shape,strides", [
    (2**60, 0, (4,), (1,)), (2**70, 0, (4,), (1,)), (-1, 0, (4,), (1,)), (5, 0, (4,), (1,)), (3, 0, (4,), (1,)),
    (4, 1, (4,), (1,)), (4, 2**62, (1,), (1,)), (4, -1, (1,), (1,)), (4, 0, (2,), (4,)), (4, 0, (2,), (-1,)),
    (4, 0, (5,), (1,)), (4, 0, (2**40,), (0,)), (4, 0, (2**40, 2**40), (0, 0)), (4, 0, (-4,), (1,)),
    (4, 0, (4.0,), (1,)), (4, 0, (True,), (1,)), (4, 0, (2, 2), (1,)), (4, 0, 17 * (1,), 17 * (1,)), (4, 0, 4, 1),
    (4, 0, (0, 2**62), (1, 1)), (4, 0, 4 * (2**9_999_999,), 4 * (2**9_999_999,)),  # to multiply these takes a minute
], ids=count())
def test_sizes_that_do_not_fit_are_refused(tmp_path, form, count, offset, shape, strides):
    path = write(tmp_path / "w.pth", form, state(w=tensor(storage(count), offset, shape, strides)))
    with modest():
        refused(path)


@FORMS
@pytest.mark.parametrize("instruction", [
    b"\x8d" + struct.pack("<Q", GIB2), b"\x8e" + struct.pack("<Q", GIB2), b"\x96" + struct.pack("<Q", GIB2),
    b"\x95" + struct.pack("<Q", GIB2), b"X" + struct.pack("<I", GIB2), b"T" + struct.pack("<i", GIB2 - 1),
    b"B" + struct.pack("<I", GIB2), b"\x8b" + struct.pack("<i", GIB2 - 1), b"\x8d" + struct.pack("<Q", 2**63),
], ids="BINUNICODE8 BINBYTES8 BYTEARRAY8 FRAME BINUNICODE BINSTRING BINBYTES LONG4 endless".split())
def test_an_announced_length_takes_no_memory(tmp_path, form, instruction):
    path = write(tmp_path / "w.pth", form, instruction, protocol=4 if form == "zip" else 2)
    with modest():
        refused(path)


@FORMS
def test_a_memo_index_takes_no_memory(tmp_path, form):
    path = write(tmp_path / "w.pth", form, b"}r" + struct.pack("<I", GIB2) + b"0" + state(w=ONE))
    with modest():
        np.testing.assert_array_equal(read_arrays(path)[0]["w"], FOUR)


PAIRS = b"](" + b"".join(plain(i) + b"N\x86" for i in range(2000)) + b"eq\0"


@pytest.mark.parametrize("body,words", [
    (b"(" + PAIRS + 2000 * (named("collections.OrderedDict") + b"h\0\x85R") + b"t", "without tensors by name"),
    (b"(" + 2**24 * b"N" + b"t", f"a pickle of {2**24 + 5} bytes"),
], ids=["copied again and again", "large"])
def test_a_pickle_that_takes_too_much_is_refused(tmp_path, body, words):
    path = write(tmp_path / "w.pth", "zip", body)
    with modest():
        assert words in refused(path)


@pytest.mark.parametrize("fields", [(), (20,), (24,), (20, 24)], ids=["compressed", "packed", "size", "both"])
def test_an_archive_that_announces_more_than_it_holds_is_refused(tmp_path, fields):
    compression = zipfile.ZIP_STORED if fields else zipfile.ZIP_DEFLATED
    path = write(tmp_path / "w.pth", "zip", state(w=ONE), compression=compression)
    content = bytearray(path.read_bytes())
    for field in fields:  # packed size and size of the last entry in the directory
        struct.pack_into("<I", content, content.rindex(b"PK\1\2") + field, GIB2)
    path.write_bytes(content)
    assert "compressed, or announces more" in refused(path)


KEYS, COUNT = pickle.dumps(["0"], 2), struct.pack("<q", 4)


@pytest.mark.parametrize("count,old,new,words", [
    (2**29, COUNT, struct.pack("<q", 2**29), "of 2147483648 bytes where the file has 16 left"),
    (4, COUNT, struct.pack("<q", 3), "of 16 bytes where the file has 16 left"),
    (4, KEYS, b"\x80\x02]" + DEEP + b"a.", "a storage without a name"),
    (4, KEYS, pickle.dumps([], 2), "tensors without their storage"),
], ids=count())
def test_a_stream_whose_storages_are_not_those_of_its_pickle(tmp_path, count, old, new, words):
    path = write(tmp_path / "w.pth", "stream", state(w=tensor(storage(count))))
    before, found, after = path.read_bytes().rpartition(old)
    path.write_bytes(before + new + after)
    with modest():
        assert found and words in refused(path)


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", TORCH_FILES)
def test_a_file_truncated_anywhere_is_refused(tmp_path, file):
    content = (GOLDEN / file).read_bytes()
    for size in np.linspace(1, len(content) - 1, 40).astype(int):
        (tmp_path / "w.pth").write_bytes(content[:size])
        refused(tmp_path / "w.pth")


@pytest.mark.parametrize("file", TORCH_FILES)
def test_a_changed_byte_never_ends_in_another_error(tmp_path, file):
    """Archives have checksums: every change is found. The stream has none: what is read is arrays or an error."""
    content, random = bytearray((GOLDEN / file).read_bytes()), np.random.default_rng(0)
    is_zip = content.startswith(b"PK")
    start = content.index(b"\x80\x02")
    for place in random.integers(start, start + 7000, 60):
        kept, content[place] = content[place], content[place] ^ random.integers(1, 256)
        (tmp_path / "w.pth").write_bytes(content)
        content[place] = kept
        with modest(2.0):
            try:
                arrays, _ = read_arrays(tmp_path / "w.pth")
                assert not is_zip and all(isinstance(array, np.ndarray) for array in arrays.values())
            except UserError:
                pass


# Good files of unusual kinds ------------------------------------------------------------------------------------------

METADATA = state(_metadata=called("collections.OrderedDict")) + b"b"
PROTOCOL_4 = b"\x8c\1w\x940" + state(w=ONE).replace(
    named("torch._utils._rebuild_tensor_v2"), text("torch._utils") + text("_rebuild_tensor_v2") + b"\x93")
GOOD = {  # name -> (pickle, array "w", bytes of an element)
    "transposed": (state(w=tensor(storage(), 0, (2, 2), (1, 2))), FOUR.reshape(2, 2).T, 4),
    "one storage for two": (state(v=ONE, w=tensor(storage(), 1, (2,), (2,))), FOUR[1::2], 4),
    "expanded": (state(w=tensor(storage(), 2, (2, 2), (0, 1))), FOUR[[[2, 3], [2, 3]]], 4),
    "scalar": (state(w=tensor(storage(), 3, (), ())), FOUR[3], 4),
    "empty": (state(w=tensor(storage(), 0, (0, 3), (3, 1))), np.zeros((0, 3), np.float32), 4),
    "integers": (state(w=tensor(storage(4, "IntStorage"))), FOUR.view("<i4"), 4),
    "bytes": (state(w=tensor(storage(16, "ByteStorage"), 0, (16,))), FOUR.view("u1"), 1),
    "float16": (state(w=tensor(storage(8, "HalfStorage"), 0, (8,))), FOUR.view("<f2"), 2),
    "bfloat16": (state(w=tensor(storage(8, "BFloat16Storage"), 1, (4,), (2,))), FOUR, 2),  # the upper halves
    "parameter": (state(w=called("torch._utils._rebuild_parameter", ONE, b"\x88N")), FOUR, 4),
    "model": (state(epoch=plain(9), model=state(w=ONE), optimizer=state(lr=plain(0.1), of=plain({0: [1]}))), FOUR, 4),
    "state_dict": (state(state_dict=state(w=ONE)), FOUR, 4),
    "module": (state(module=state(w=ONE) + METADATA), FOUR, 4),
    "OrderedDict": (called("collections.OrderedDict") + b"(" + text("w") + ONE + b"u" + METADATA, FOUR, 4),
    "Python 2": (called("collections.OrderedDict", b"]](U\1w" + ONE + b"ea"), FOUR, 4),  # its pairs in a list
    "protocol 4": (b"\x95" + struct.pack("<Q", len(PROTOCOL_4) + 1) + PROTOCOL_4, FOUR, 4),  # one frame, with STOP
}


@FORMS
@pytest.mark.parametrize("name", GOOD)
def test_good_files_of_many_kinds(tmp_path, form, name):
    body, expected, size = GOOD[name]
    arrays, metadata = read_arrays(write(tmp_path / "w.pth", form, body, size=size))
    assert arrays.keys() - {"v"} == {"w"} and metadata == {} and arrays["w"].dtype == expected.dtype
    np.testing.assert_array_equal(arrays["w"], expected)


# Files of other kinds -------------------------------------------------------------------------------------------------


@FORMS
def test_other_orders_and_contents_are_refused(tmp_path, form):
    path, body = tmp_path / "w.pth", state(w=ONE)
    assert "big-endian" in refused(write(path, form, body, little=False))
    assert "without tensors by name" in refused(write(path, form, b"]" + tensor(storage()) + b"a"))
    assert "TorchScript" in refused(write(path, "zip", body, **{"code/__torch__.py": "import os"}))
    path.write_bytes(pickle.dumps({"w": 1}, 2))
    assert "torch.save did not write" in refused(path)


@pytest.mark.parametrize("content,words", [
    (b"", "empty"), (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"), (b"\n<html>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a Git LFS pointer"), (b"weights\n", "no known"),
    (b"PK\x03\x04" + bytes(99), "not a complete PyTorch file"), (b"\x80\x02", "not a complete PyTorch file"),
])
def test_other_files_are_named_for_what_they_are(tmp_path, content, words):
    (tmp_path / "w.pth").write_bytes(content)
    assert words in refused(tmp_path / "w.pth")


@pytest.mark.parametrize("name,words", [("", "holds neither model.safetensors nor"), ("absent", "no such file"),
                                        ("x" * 300, "no such file"), ("~nobody-here/w", "no such file")])
def test_places_without_weights(tmp_path, name, words):
    with pytest.raises(UserError, match=words):
        weight_file(tmp_path / name if name[:1] != "~" else name)


def safetensors(data: bytes, announced: int | None = None, **arrays) -> bytes:
    header = json.dumps({name: {"dtype": kind, "shape": shape, "data_offsets": place}
                         for name, (kind, shape, place) in arrays.items()}).encode()
    return struct.pack("<Q", len(header) if announced is None else announced) + header + data


@pytest.mark.parametrize("content,words", [
    (safetensors(bytes(7), w=("F32", [2], [0, 8])), "not a complete safetensors file"),
    (safetensors(bytes(8), 2**62, w=("F32", [2], [0, 8])), "not a complete"),
    (safetensors(bytes(12), w=("F32", [2], [0, 8]), v=("F32", [2], [4, 12])), "not a complete"),  # overlapping
    (safetensors(bytes(8), w=("F32", [2**40, 2**40], [0, 8])), "not a complete"),
    (safetensors(bytes(4), w=("F32", 100 * [1], [0, 4])), "not a complete"),
    (safetensors(b"", w=("F32", [2**63, 0], [0, 0])), "not a complete"),
    (safetensors(bytes(2), w=("F8_E4M3", [2], [0, 2])), "'w' is of type F8_E4M3"),
    (safetensors(bytes(8), **{"w\x1b[31m\n": ("F32", [2], [0, 8])}), r"'w\x1b[31m\n' is no array's name"),
    (safetensors(bytes(8), **{900 * "module.": ("F32", [2], [0, 8])}), "is no array's name"),
], ids=count())
def test_malformed_safetensors(tmp_path, content, words):
    (tmp_path / "w.safetensors").write_bytes(content)
    with modest():
        assert words in refused(tmp_path / "w.safetensors")


def test_bfloat16_in_safetensors(tmp_path):
    (tmp_path / "w").write_bytes(safetensors(FOUR.tobytes(), w=("BF16", [4, 2], [0, 16])))
    arrays, _ = read_arrays(tmp_path / "w")
    np.testing.assert_array_equal(arrays["w"], np.stack([np.zeros(4), FOUR], 1))  # the lower halves are zero
