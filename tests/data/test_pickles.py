import os
import pickle
import resource
import sys

import numpy as np
import pytest

from mindspore_coupalign.data.pickles import load_plain_pickle
from mindspore_coupalign.errors import UserError


def write(path, content: bytes):
    path.write_bytes(content)
    return path


NUMPY = [
    {"ref_id": np.int64(1), "image_id": np.int32(-7), "u": np.uint8(255), "f": np.float32(0.5), "b": np.bool_(True),
     "split": np.str_("träin"), "none": np.str_(""), "big": np.array(5, ">i8")[()], "bytes": np.bytes_(b"x"),
     "sentences": np.array([{"sent_id": np.int64(3), "sent": "a"}, None], object), "box": np.arange(4) / 4,
     "tokens": np.array(["left", "é"]), "grid": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
     "empty": np.zeros((0, 3)), "text": np.array(["", ""])}]


def plainly(value):
    if isinstance(value, dict):
        return {key: plainly(part) for key, part in value.items()}
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return [plainly(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numpys_numbers_and_arrays_become_plain(tmp_path, protocol, core):
    """As pandas and NumPy leave them in dicts, of version 1 and (``_core``) 2."""
    data = pickle.dumps(NUMPY, protocol)
    if protocol < 4:  # there a name is a line of text
        data = data.replace(b"cnumpy.core", b"c" + core.encode())
    found = load_plain_pickle(write(tmp_path / "refs(x).p", data))
    assert found == plainly(NUMPY)
    assert all(type(value) in (int, float, bool, str, bytes) or isinstance(value, list) for value in found[0].values())


def test_numpy_of_python_2(tmp_path):
    """Its bytes are texts; none of the 256 values of a byte, alone or in pairs, is mistaken."""
    kind = b"cnumpy\ndtype\nq\x00(U\x02i4K\x00K\x01tRq\x01(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    values = [*range(256), *(a + 256 * b for a in (0x41, 0xC3, 0xE9) for b in range(256)), -1, -2**31]
    scalars = b"".join(b"cnumpy.core.multiarray\nscalar\nh\x01U\x04" + (v % 2**32).to_bytes(4, "little") + b"\x86R"
                       for v in values)
    data = b"\x80\x02" + kind + b"0(" + scalars + b"l."
    assert load_plain_pickle(write(tmp_path / "refs(x).p", data)) == values


I8 = b"cnumpy\ndtype\n(U\x02i8K\x00K\x01tR"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n)R"


@pytest.mark.parametrize("hostile", [
    b"cnumpy.core.multiarray\nscalar\n" + I8 + b"U\x04abcd\x86R",  # half a number
    b"cnumpy.core.multiarray\nscalar\n(" + I8 + b"tR", b"cnumpy.core.multiarray\nscalar\nNN\x86R",
    b"cnumpy\ndtype\nU\x0ai8,i8,i8,i8\x85R", b"cnumpy\ndtype\n]\x85R", I8 + b"(K\x03U\x01<]NNtb", I8 + b"}b",
    ARRAY + b"(K\x01(J\xff\xff\xff\x7fK\x00t" + I8 + b"\x89U\x00tb",  # 2^31 empty lists
    ARRAY + b"(K\x01(K\x7ft" + I8 + b"\x89U\x08abcdefghtb", ARRAY + b"}b", ARRAY + b"N}X\x01\x00\x00\x00aNs\x86b",
    b"cnumpy.core.multiarray\nscalar\n}X\x09\x00\x00\x00__class__Nsb", b"c_codecs\nencode\nU\x01aU\x03hex\x86R",
    b"cnumpy\ndtype\nN}X\x05\x00\x00\x00_makeNs\x86b",
])
def test_stand_ins_of_numpy_take_nothing_else(tmp_path, hostile):
    path = write(tmp_path / "refs(x).p", b"\x80\x02" + hostile + b".")
    with pytest.raises(UserError, match="NumPy's numbers|not a complete pickle"):
        load_plain_pickle(path)
    test_numpys_numbers_and_arrays_become_plain(tmp_path, 2, "numpy.core")


def test_what_a_file_holds_once_is_not_copied_many_times(tmp_path):
    """A memo could name one array's bytes a million times: 8 PB of work in a file of 10 MB."""
    once = b"cnumpy\ndtype\n(U\x02i8K\x00K\x01tRq\x01" + b"T\x40\x1f\x00\x00" + bytes(8000) + b"q\x02"
    again = ARRAY + b"(K\x01(M\xe8\x03th\x01\x89h\x02tb0"
    with pytest.raises(UserError, match="more than the file is large"):
        load_plain_pickle(write(tmp_path / "refs(x).p", b"\x80\x02" + once + again * 200 + b"."))


def test_objects_of_pandas_are_refused_with_how_to_convert(tmp_path):
    path = write(tmp_path / "refs(x).p", b"\x80\x04cpandas.core.frame\nDataFrame\n.")
    with pytest.raises(UserError, match=r"'pandas.core.frame.DataFrame'.*frame.to_dict\('records'\), file"):
        load_plain_pickle(path)


def test_windows_line_ends(tmp_path):
    """A text file's way through FTP or git turns LF into CR LF: surely undone in protocol 0, named in the others."""
    value = [{"ref_id": 3, "sent": "line\nof\r\ntwo\r", "raw": "é\n", "x": 1.5, "l": 2**70, "t": (1, None), "b": True}]
    data = pickle.dumps(value, 0)
    assert load_plain_pickle(write(tmp_path / "refs(x).p", data)) == value
    assert load_plain_pickle(write(tmp_path / "refs(x).p", data.replace(b"\n", b"\r\n"))) == value
    python_2 = b"(lp1\n(dp2\nS'ref_id'\np3\nI5\nsS'sent'\np4\nS'a\\nb\\r'\np5\nsS'raw'\np6\nVa\\u000ab\np7\nsa."
    for content in (python_2, python_2.replace(b"\n", b"\r\n")):
        assert load_plain_pickle(write(tmp_path / "refs(x).p", content)) == [
            {"ref_id": 5, "sent": "a\nb\r", "raw": "a\nb"}]
    binary = pickle.dumps([{"ref_id": 10, "sent": "two\nlines", "k": k} for k in range(2570, 2590)], 2)
    with pytest.raises(UserError, match="every line end in it is CR LF"):
        load_plain_pickle(write(tmp_path / "refs(x).p", binary.replace(b"\n", b"\r\n")))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol(tmp_path, protocol):
    value = [{"a": 1, "b": [2.5, None, True, 2**70], "c": ("x", "é")}]
    assert load_plain_pickle(write(tmp_path / "refs(x).p", pickle.dumps(value, protocol))) == value


def test_python_2_byte_strings_become_text(tmp_path):
    # Written by hand: what Python 2's pickle.dumps([{'sent': 'caf\xc3\xa9'}, 'caf\xe9 \xc3\xa9'], 2) holds.
    data = b"\x80\x02](}U\x04sentU\x05caf\xc3\xa9sU\x07caf\xe9 \xc3\xa9e."
    assert load_plain_pickle(write(tmp_path / "refs(x).p", data)) == [{"sent": "café"}, "café é"]
    protocol_0 = b"(lp0\n(dp1\nS'sent'\np2\nS'the man'\np3\nsa."
    assert load_plain_pickle(write(tmp_path / "refs(y).p", protocol_0)) == [{"sent": "the man"}]


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"{sys.executable} -c \"open(r'{self.marker}', 'w')\"",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_hostile_pickle_runs_nothing(tmp_path, protocol):
    marker = tmp_path / "it-ran"
    data = pickle.dumps([{"ref_id": 1}, Hostile(marker)], protocol)
    path = write(tmp_path / "refs(unc).p", data)
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: refuses to load '(posix|nt)\.system'"):
        load_plain_pickle(path)
    assert not marker.exists()
    pickle.loads(data)  # the same bytes do run in plain pickle: the test can fail
    assert marker.exists()


@pytest.mark.parametrize("data", [
    pickle.dumps({1, 2}, 2), pickle.dumps(Hostile, 2), pickle.dumps(np.random.RandomState, 2),  # a set, classes
    b"cbuiltins\neval\n.", b"\x80\x02cbuiltins\ngetattr\n.", b"(S'x'\nios\nsystem\n.",
])
def test_every_global_is_refused(tmp_path, data):
    with pytest.raises(UserError, match="refuses to load"):
        load_plain_pickle(write(tmp_path / "refs(x).p", data))


def test_persistent_ids_are_refused(tmp_path):
    with pytest.raises(UserError, match="refuses to load a persistent id"):
        load_plain_pickle(write(tmp_path / "refs(x).p", b"Psecret\n."))


def test_calls_without_a_global_are_only_damage(tmp_path):
    with pytest.raises(UserError, match="not a complete pickle"):  # REDUCE on a text
        load_plain_pickle(write(tmp_path / "refs(x).p", b"S'os.system'\n(S'true'\ntR."))


def test_a_damaged_number_does_not_take_the_machines_memory(tmp_path):
    """The place of a value in the memo, with one bit too many: 20 GB."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    path = write(tmp_path / "refs(x).p", b"\x80\x02]r" + (0x50000000).to_bytes(4, "little") + b".")
    with pytest.raises(UserError, match="not a complete pickle"):
        load_plain_pickle(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 10e6  # kB
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


def test_truncation_at_any_byte_is_a_user_error(tmp_path):
    data = pickle.dumps([{"ref_id": 1, "sentences": ["a b", "c"], "x": 1.5, "y": 2**40}], 2)
    for size in range(len(data)):
        with pytest.raises(UserError, match="not a complete pickle") as caught:
            load_plain_pickle(write(tmp_path / "refs(x).p", data[:size]))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("start, words", [
    (b"<!DOCTYPE html><html>", "a web page"), (b"PK\x03\x04rest", "a zip archive"), (b"", "an empty file"),
    (b"version https://git-lfs.github.com/spec/v1", "Git LFS"), (b"\x00\x01garbage", "truncated or damaged"),
])
def test_other_files_are_named_for_what_they_are(tmp_path, start, words):
    with pytest.raises(UserError, match=words):
        load_plain_pickle(write(tmp_path / "refs(x).p", start))


def test_missing_file_lists_its_neighbours(tmp_path):
    write(tmp_path / "refs(umd).p", b"N.")
    with pytest.raises(UserError, match=r"refs\(google\)\.p: no such file; found beside it: refs\(umd\)\.p"):
        load_plain_pickle(tmp_path / "refs(google).p")
    with pytest.raises(UserError, match="found beside it: no refs"):
        load_plain_pickle(tmp_path / "no" / "refs(google).p")
    with pytest.raises(UserError, match="cannot be read"):
        load_plain_pickle(tmp_path)


def test_a_file_too_large_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "refs(x).p"
    with path.open("wb") as file:
        file.truncate((1 << 30) + 1)  # sparse
    with pytest.raises(UserError, match="too large"):
        load_plain_pickle(path)
