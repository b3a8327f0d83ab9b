import os
import pickle
import resource
import sys

import pytest

from mindspore_coupalign.data.pickles import load_plain_pickle
from mindspore_coupalign.errors import UserError


def write(path, content: bytes):
    path.write_bytes(content)
    return path


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
    pickle.dumps({1, 2}, 2), pickle.dumps(b"bytes", 2), pickle.dumps(Hostile, 2),  # set, _codecs.encode, a class
    b"cbuiltins\neval\n.", b"\x80\x02cbuiltins\ngetattr\n.", b"(S'x'\nios\nsystem\n.",
])
def test_every_global_is_refused(tmp_path, data):
    with pytest.raises(UserError, match="refuses to load"):
        load_plain_pickle(write(tmp_path / "refs(x).p", data))


def test_persistent_ids_are_refused(tmp_path):
    with pytest.raises(UserError, match="refuses to follow a persistent id"):
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
    (b"<!DOCTYPE html><html>", "a web page"), (b"PK\x03\x04rest", "a zip archive"), (b"", "it is empty"),
    (b"version https://git-lfs.github.com/spec/v1", "Git LFS"), (b"\x00\x01garbage", "truncated or damaged"),
])
def test_other_files_are_named_for_what_they_are(tmp_path, start, words):
    with pytest.raises(UserError, match=words):
        load_plain_pickle(write(tmp_path / "refs(x).p", start))


def test_missing_file_lists_its_neighbours(tmp_path):
    write(tmp_path / "refs(umd).p", b"N.")
    with pytest.raises(UserError, match=r"refs\(google\)\.p: no such file; found beside it: refs\(umd\)\.p"):
        load_plain_pickle(tmp_path / "refs(google).p")
    with pytest.raises(UserError, match="does not exist either"):
        load_plain_pickle(tmp_path / "no" / "refs(google).p")
    with pytest.raises(UserError, match="cannot be read"):
        load_plain_pickle(tmp_path)


def test_a_file_too_large_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "refs(x).p"
    with path.open("wb") as file:
        file.truncate((1 << 30) + 1)  # sparse
    with pytest.raises(UserError, match="too large"):
        load_plain_pickle(path)
