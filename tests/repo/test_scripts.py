"""scripts/*.sh through real shells: the caller's folder, a Python that is taken as it is, an offline install."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORDER = """#!/bin/sh
[ "$1" = -c ] && exec {python} "$@"
echo "$PWD|$*" >> {log}
"""


def bash(command: str, cwd: Path, **environment) -> subprocess.CompletedProcess:
    place = {k: v for k, v in os.environ.items() if k not in ("VENV", "PYTHONPATH")}
    place |= {"XDG_CACHE_HOME": str(cwd / "cache"), **environment}
    return subprocess.run(["bash", "-c", command], cwd=cwd, env=place, text=True, capture_output=True, timeout=120)


@pytest.fixture
def recorder(tmp_path):
    """A virtual environment whose Python writes down where it was called and with what, and those lines."""
    folder, log = tmp_path / "venv" / "bin", tmp_path / "calls.txt"
    folder.mkdir(parents=True)
    (folder / "python").write_text(RECORDER.format(python=sys.executable, log=log))
    (folder / "python").chmod(0o755)
    for files in (("requirements.txt",) * 2, ("requirements.txt", "requirements-test.txt"),
                  ("requirements.txt", "requirements-gpu.txt")):
        content = b"".join((ROOT / name).read_bytes() for name in files)
        mark = subprocess.run(["cksum"], input=content, capture_output=True).stdout.split()[0].decode()
        (folder.parent / f".installed-{mark}").touch()
    return lambda: [line.split("|") for line in log.read_text().splitlines()]


def test_the_quickstart_works_in_the_callers_folder(recorder, tmp_path):
    elsewhere = tmp_path / "else where"
    (elsewhere / "data" / "refshapes" / "images" / "refshapes").mkdir(parents=True)
    (elsewhere / "data" / "refshapes" / "images" / "refshapes" / "1.png").touch()
    (elsewhere / "runs" / "quickstart-seed3").mkdir(parents=True)
    done = bash(f"bash {ROOT}/scripts/quickstart.sh 3 train.steps=1", elsewhere, VENV="../venv")
    assert done.returncode == 0, done.stdout + done.stderr
    calls = recorder()
    assert {folder for folder, _ in calls} == {str(elsewhere)} and len(calls) == 6
    train = next(call for _, call in calls if " train " in call)
    assert f"--config {ROOT}/configs/refshapes_tiny.yaml --output runs/quickstart-seed3" in train
    assert train.endswith("train.seed=3 train.steps=1")


@pytest.mark.parametrize("script, arguments, expected", [
    ("run_standalone_train.sh", "a.yaml CPU --resume b", "train --config a.yaml --device-target CPU --resume b"),
    ("run_eval.sh", "a.ckpt 'val testA'", "evaluate --checkpoint a.ckpt --device-target auto --split val testA"),
    ("run_export.sh", "a.ckpt b.mindir GPU", "export --checkpoint a.ckpt --output b.mindir --device-target GPU"),
])
def test_relative_paths_are_the_callers(recorder, tmp_path, script, arguments, expected):
    (tmp_path / "work").mkdir()
    done = bash(f"bash ../clone/scripts/{script} {arguments}", tmp_path / "work", VENV=str(tmp_path / "venv"))
    assert done.returncode == 127 and "No such file" in done.stderr  # the clone is where it is
    (tmp_path / "clone").symlink_to(ROOT)
    done = bash(f"bash ../clone/scripts/{script} {arguments}", tmp_path / "work", VENV=str(tmp_path / "venv"))
    assert done.returncode == 0, done.stderr
    assert recorder() == [[str(tmp_path / "work"), f"-m mindspore_coupalign {expected}"]]


@pytest.mark.parametrize("arguments, tests", [("-k swin", f" {ROOT}/tests"), ("here.py::test_x -v", "")])
def test_the_tests_are_found_from_anywhere(recorder, tmp_path, arguments, tests):
    (tmp_path / "here.py").touch()
    done = bash(f"bash {ROOT}/scripts/run_tests.sh {arguments}", tmp_path, VENV="venv")
    assert done.returncode == 0, done.stderr
    assert recorder()[-1][1].endswith(f"--no-loadscope-reorder {arguments}{tests}")


def test_the_real_command_reads_the_callers_file(tmp_path):
    """And not one of the same name in the clone. The Python is the tests' own, called by another name."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "refshapes_tiny.yaml").write_text("train: {batch: 4}")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin" / "python3").chmod(0o755)
    done = bash(f"bash {ROOT}/scripts/run_standalone_train.sh configs/refshapes_tiny.yaml CPU", tmp_path, VENV="none",
                COUPALIGN_PYTHON=str(tmp_path / "bin" / "python3"))
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert done.stderr.startswith("error: configs/refshapes_tiny.yaml: unknown key train.batch;"), done.stderr


@pytest.mark.parametrize("metadata, said", [
    ("numpy-2.1.0", "numpy 2.1.0: MindSpore is compiled against NumPy 1"),
    ("opencv_python_headless-4.12.0.88", "OpenCV 4.12.0.88 needs NumPy 2"),
    ("tqdm-4.0.0", "")])
def test_a_python_that_is_taken_as_it_is_must_serve(tmp_path, metadata, said):
    name, _, version = metadata.partition("-")
    (tmp_path / "site" / f"{metadata}.dist-info").mkdir(parents=True)
    (tmp_path / "site" / f"{metadata}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    done = bash(f"source {ROOT}/scripts/setup_env.sh; python -c 'import sys; print(sys.executable)'; command -v python",
                tmp_path, VENV="none", COUPALIGN_PYTHON=sys.executable, PYTHONPATH=str(tmp_path / "site"))
    if said:
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
        assert said in done.stderr and f"-m pip install {name.replace('_', '-')}==" in done.stderr
    else:
        assert done.returncode == 0 and done.stdout.splitlines()[0] == sys.executable, done.stderr
        assert done.stderr == "note: tqdm 4.0.0 is installed, tested: ==4.70.1\n"
        assert done.stdout.splitlines()[1].startswith(str(tmp_path / "cache"))


def test_a_python_without_mindspore_is_refused(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    done = bash(f"bash {ROOT}/scripts/run_eval.sh a val", tmp_path, VENV="none",
                COUPALIGN_PYTHON=str(tmp_path / "bare" / "bin" / "python"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "without mindspore, numpy, " in done.stderr and "pip install mindspore==" in done.stderr


def test_an_install_from_a_folder_of_wheels(tmp_path):
    """Without a network, in an environment of its own; a wheel that is missing is an error, not a download."""
    (tmp_path / "wheels").mkdir()
    info = "unusual_name-1.0.dist-info"
    with zipfile.ZipFile(tmp_path / "wheels" / "unusual_name-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("unusual_name.py", "answer = 42\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: unusual-name\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    (tmp_path / "own.txt").write_text("unusual-name==1.0\n")
    place = {"VENV": "own venv", "REQUIREMENTS": "own.txt", "WHEELS": "wheels", "COUPALIGN_PYTHON": sys.executable}
    script = f"source {ROOT}/scripts/setup_env.sh; python -c 'import unusual_name as u; print(u.answer)'"
    done = bash(script, tmp_path, **place)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "42", done.stdout + done.stderr
    assert list((tmp_path / "own venv").glob(".installed-*"))
    again = bash(script, tmp_path, **place)
    assert again.stdout == "42\n"  # nothing is installed twice
    (tmp_path / "own.txt").write_text("tqdm==4.70.1\n")
    done = bash(script, tmp_path, **place)
    assert done.returncode != 0 and "tqdm" in done.stderr and "42" not in done.stdout
    done = bash(script, tmp_path, **(place | {"WHEELS": "nowhere"}))
    assert done.returncode == 2 and done.stderr == "error: WHEELS=nowhere: no such folder\n"
