"""``doctor`` in whole and in broken environments: it always answers, names the cause, and never shows a traceback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from no_gpu import library, stub_driver

from mindspore_coupalign import cuda
from mindspore_coupalign.cli import doctor
from mindspore_coupalign.data.refshapes.dataset import make_shapes
from mindspore_coupalign.doctor import machine, targets
from mindspore_coupalign.doctor.machine import BAD, OK

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "tests" / "golden" / "first_release.safetensors"
MINDSPORE = machine.mindspore_folder()
CRASHES = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"


def see(*arguments, python=sys.executable, first: Path | None = None, **environment) -> tuple[dict, int, str]:
    """(items by name, exit code, the next command) of the real command in ``--json``; ``first`` leads PYTHONPATH."""
    place = os.environ | environment | {"PYTHONPATH": os.pathsep.join([*([str(first)] if first else []), str(ROOT)])}
    done = subprocess.run([python, "-m", "mindspore_coupalign", "doctor", "--json", *map(str, arguments)], cwd=ROOT,
                          env=place, text=True, capture_output=True, timeout=200)
    assert "Traceback" not in done.stdout + done.stderr and done.stderr == "", done.stderr
    report = json.loads(done.stdout)
    assert report["version"] and report["items"] and report["next"]
    return {item["name"]: item for item in report["items"]}, done.returncode, report["next"]


def fake_mindspore(folder: Path, source: str) -> Path:
    """A package of that name and version that does something else when it is imported."""
    (folder / "mindspore").mkdir(parents=True)
    (folder / "mindspore" / "__init__.py").write_text(source)
    distribution(folder, "mindspore", "2.10.0")
    return folder


def distribution(folder: Path, name: str, version: str) -> Path:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


def test_a_machine_that_is_well(tmp_path):
    """Everything is looked at, the inputs included, and nothing that is private is shown."""
    make_shapes(tmp_path / "data", 3, train=3, val=1, testA=1, testB=1)
    configuration = f"data.root={tmp_path / 'data'}"
    items, code, then = see("--config", "configs/refshapes_tiny.yaml", configuration, "--checkpoint", CHECKPOINT,
                            HOME=str(tmp_path), HF_TOKEN="hf_secret", http_proxy="http://me:secret@there")
    assert code == 0 and not [name for name, item in items.items() if item["status"] == BAD]
    assert list(items) == ["python", "package", "packages", "processor", "memory", "disk", "environment", "CPU", "GPU",
                           "Ascend", "config", "tokenizer", "data", "checkpoint"]
    assert "mindspore 2.10" in items["packages"]["text"] and "a matrix product is right" in items["CPU"]["text"]
    assert items["data"]["text"].startswith("~/data/refshapes/refs(shapes).p, ")
    assert "arrays, step " in items["checkpoint"]["text"]
    assert then == "python -m mindspore_coupalign train --config configs/refshapes_tiny.yaml data.root=~/data --dry-run"
    assert str(tmp_path) not in str(items) and "secret" not in str(items)


def test_without_arguments_it_names_the_first_step(command_line):
    done = command_line("doctor")
    lines = done.out.splitlines()
    assert done.code == 0 and done.err == "" and lines[-1] == "next: bash scripts/quickstart.sh"
    assert lines[0].startswith("ok   python       3.") and all(len(line.split(maxsplit=2)) == 3 for line in lines[:-2])


def test_inputs_that_are_missing(tmp_path):
    """Each is named by itself, with what is to be done about it."""
    (tmp_path / "page.pth").write_text("<html>")
    items, code, _ = see("--config", "configs/refcoco_swin_b.yaml", f"data.root={tmp_path / 'refer'}",
                         f"data.tokenizer={tmp_path / 'bert'}", f"model.backbone_weights={tmp_path / 'page.pth'}",
                         f"model.text_weights={tmp_path / 'none.bin'}", HF_HUB_OFFLINE="1")
    assert code == 1 and items["config"]["status"] == OK
    for name, said in (("tokenizer", "bert"), ("data", "refer"), ("text_weights", "none.bin: no such file")):
        assert items[name]["status"] == BAD and said in items[name]["text"], items[name]
    assert "a web page" in items["backbone_weights"]["text"]
    items, code, _ = see("--config", "configs/refcoco_swin_b.yaml", "data.rot=x")
    assert code == 1 and "unknown key data.rot" in items["config"]["text"] and "tokenizer" not in items


def test_numpy_2(tmp_path):
    """By its metadata alone: the report says it before an operator fails."""
    items, code, then = see("--checkpoint", "none.safetensors", first=distribution(tmp_path, "numpy", "2.1.0"))
    assert code == 1 and items["packages"]["status"] == BAD
    assert "numpy 2.1.0: MindSpore is compiled against NumPy 1" in items["packages"]["text"]
    assert "-m pip install numpy==1.26.4" in then
    assert items["checkpoint"]["status"] == BAD and "none.safetensors: " in items["checkpoint"]["text"]


def test_a_python_with_nothing(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    items, code, then = see("--config", "configs/refshapes_tiny.yaml", python=tmp_path / "bare" / "bin" / "python")
    assert code == 1 and items["packages"]["text"].startswith("without mindspore, numpy, ")
    assert [items[name]["text"] for name in ("CPU", "GPU", "Ascend")] == [targets.NO_MINDSPORE] * 3
    assert "ModuleNotFoundError: No module named 'yaml'" in items["config"]["text"]
    assert "-m pip install mindspore==" in then


@pytest.mark.parametrize("source, said", [
    (CRASHES, "its process ended by signal 11"), ("import time\ntime.sleep(60)\n", "no answer within 2 s"),
    ("raise ImportError('libgomp.so.1: cannot\\n  open')\n", "ImportError: libgomp.so.1: cannot open"),
    ("import sys\nsys.exit(3)\n", "ended by exit code 3"), ("import os\nos._exit(0)\n", "printed nothing")])
def test_a_mindspore_that_does_not_load(tmp_path, source, said):
    """Nor with a library that is missing or an instruction that the processor lacks: it is loaded elsewhere."""
    items, code, _ = see("--timeout", 2, first=fake_mindspore(tmp_path, source))
    assert code == 1 and items["CPU"]["status"] == BAD and said in items["CPU"]["text"], items["CPU"]


def test_a_part_that_fails_leaves_the_others(monkeypatch, capsys):
    monkeypatch.setattr(machine, "memory", lambda: 1 / 0)
    monkeypatch.setattr(targets, "mindspore_folder", lambda: None)
    arguments = SimpleNamespace(config=None, overrides=[], checkpoint=None, json=False, timeout=1)
    assert doctor.run(arguments) == 1
    printed = capsys.readouterr().out
    assert "BAD  memory       cannot be checked (ZeroDivisionError: division by zero)" in printed
    assert "disk" in printed


@pytest.mark.parametrize("version", ["3.9.18", "3.8.18", "3.13.0"])
def test_other_pythons(version):
    """Where one is installed: those before 3.10 cannot even read the package."""
    python, place = shutil.which(f"python{version.rpartition('.')[0]}"), os.environ | {"PYENV_VERSION": version}
    if not python or subprocess.run([python, "--version"], env=place, capture_output=True).returncode:
        pytest.skip(f"no Python {version}")
    done = subprocess.run([python, "-m", "mindspore_coupalign", "doctor"], cwd=ROOT, text=True, capture_output=True,
                          env=place)
    assert done.returncode == 1 and "Traceback" not in done.stderr + done.stdout
    assert "3.10, 3.11" in done.stderr + done.stdout


@pytest.fixture
def mindspore(tmp_path) -> Path:
    """The folder of a MindSpore whose GPU back end links a library that is not there."""
    if not shutil.which("gcc"):
        pytest.skip("gcc makes the plugin")
    plugins = tmp_path / "mindspore" / "lib" / "plugin"
    library(tmp_path / "libcudnn.so.8")
    for name in ("libmindspore_gpu.so.11.6", "libmindspore_ascend.so.2"):
        library(plugins / name, needs=tmp_path / "libcudnn.so.8")
    (tmp_path / "libcudnn.so.8").unlink()
    return tmp_path / "mindspore"


def card(capability=(8, 0), version=12040, problem=""):
    return cuda.Driver(problem, version, () if problem else (("a card", capability),))


def test_why_there_is_no_gpu(mindspore, tmp_path, monkeypatch):
    def why(driver=None):
        return targets.gpu_obstacle(mindspore, driver or card())

    monkeypatch.setattr(cuda, "wheels", lambda: {})
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert why(card(problem="no NVIDIA driver"))[0] == "no NVIDIA driver"
    assert why(card((5, 2)))[0] == "no card that MindSpore 2.10 serves"
    text, remedy = why()
    assert text == "CUDA 11's wheels are not installed" and remedy.endswith("pip install -r requirements-gpu.txt")
    for release, said in (("12.4", "CUDA_HOME has CUDA 12.4, MindSpore 2.10 needs 11.1 or 11.6 or 11.8; CUDA 11's"),
                          ("11.6", "libmindspore_gpu.so.11.6 does not find libcudnn.so.8")):
        nvcc = tmp_path / release / "bin" / "nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.write_text(f'#!/bin/sh\necho "Cuda compilation tools, release {release}, V{release}.1"\n')
        nvcc.chmod(0o755)
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / release))
        assert why()[0].startswith(said), why()
    library(tmp_path / "found" / "libcudnn.so.8")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "found"))
    assert why() is None
    for plugin in mindspore.glob("lib/plugin/*gpu*"):
        plugin.unlink()
    assert why()[0].startswith("this MindSpore has no GPU back end")


def test_a_card_is_described(tmp_path, monkeypatch):
    """Through the real command, whose driver is a stub: MindSpore's back end is not there, the card is."""
    if not shutil.which("gcc") or not machine.mindspore_folder():
        pytest.skip("gcc makes the driver")
    driver = stub_driver(tmp_path, version=12040, capability=(9, 0))
    items, _, then = see(LD_LIBRARY_PATH=str(driver), CUDA_HOME="", first=fake_mindspore(tmp_path / "site", CRASHES))
    assert "a card: compute capability 9.0: the driver compiles" in items["GPU 0"]["text"]
    assert items["GPU"]["text"].startswith("this MindSpore has no GPU back end")


def test_why_there_is_no_ascend(mindspore, tmp_path, monkeypatch):
    def why() -> str:
        found, remedy = targets.ascend_obstacles(mindspore)
        return " | ".join([*found, *([f"try {remedy}"] if remedy else [])])

    monkeypatch.setattr(targets, "NPUS", str(tmp_path / "davinci[0-9]*"))
    monkeypatch.setattr(targets, "CANN_SCRIPTS", (str(tmp_path / "set_env.sh"),))
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    assert why().startswith("no NPU: there is no /dev/davinci0") and "ASCEND" not in why()
    (tmp_path / "davinci0").touch()
    assert why() == "ASCEND_HOME_PATH is not set, and CANN is in none of its usual folders"
    (tmp_path / "set_env.sh").touch()
    assert why() == f"ASCEND_HOME_PATH is not set | try source {tmp_path}/set_env.sh"
    home = tmp_path / "cann" / "latest"
    (home / "compiler").mkdir(parents=True)
    monkeypatch.setenv("ASCEND_HOME_PATH", str(home))
    assert "version.info does not say CANN's version" in why()
    (mindspore / "run_check").mkdir()
    if MINDSPORE:
        shutil.copy(MINDSPORE / "run_check" / "_check_version.py", mindspore / "run_check")
    for version, said in (("8.0.RC3", "CANN is 8.0, this MindSpore is made for 8.2 to 9.1"), ("8.5.0", None)):
        (home / "compiler" / "version.info").write_text(f"Package=compiler\nVersion={version}\ninnerversion=V1\n")
        assert said in why() if said else "CANN is" not in why()
    assert "libmindspore_ascend.so.2 does not find libcudnn.so.8" in why()
    assert "CANN's Python package te is not found" in why()


def test_the_versions_of_cann_are_mindspores_own():
    """Read from the installed MindSpore's source, which another release may change."""
    assert targets.cann_versions(MINDSPORE) == ["8.2", "8.3", "8.5", "9.0", "9.1"]


def test_wanted_packages(tmp_path):
    """From the clone's file and from what an installed package knows."""
    pins = machine.requirements()
    assert pins["mindspore"] == "==2.10.0" and pins["numpy"].startswith("==1.26") and "pyyaml" in pins
    (tmp_path / "r.txt").write_text('numpy>=1.26,<2\ntorch>=2.6; extra == "parity"\na==1; platform_machine == "vax"\n')
    assert machine.requirements(tmp_path / "r.txt") == {"numpy": ">=1.26,<2"}
    for version, is_tested in (("1.26.4", True), ("2.0", False), ("1.25.9", False)):
        assert machine.Package("numpy", ">=1.26,<2", version).is_tested is is_tested
    assert machine.problems([machine.Package("numpy", ">=1.26,<2", "1.26.4")]) == ("", "")
    problem, remedy = machine.problems([machine.Package("numpy", ">=1.26,<2", "2.0", "x"), machine.Package("a", "==1")])
    assert problem == "without a; x" and remedy.endswith("pip install 'numpy>=1.26,<2' a==1")
