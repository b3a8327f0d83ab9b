"""CUDA's libraries from pip: found, arranged as MindSpore looks for them, and its GPU back end linked against them. The
driver is a stub that gcc makes; no GPU is needed."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from no_gpu import library, stub_driver, with_nvcc

from mindspore_coupalign import cuda

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc makes the stub libraries")


@pytest.fixture
def site(tmp_path) -> Path:
    """A folder for PYTHONPATH with wheels whose libraries are empty."""
    for i, name in enumerate(cuda.LIBRARIES):
        library(tmp_path / "site" / "nvidia" / f"part{i}" / "lib" / name)
    (tmp_path / "site" / "nvidia" / "__init__.py").touch()
    return tmp_path / "site"


def ask(code: str, site: Path, driver: Path | None = None, **more) -> str:
    """What a new Python prints whose package finds these wheels and this driver."""
    place = {k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "LD_LIBRARY_PATH")}
    place |= {"PYTHONPATH": f"{site}:{ROOT}", **more}
    if driver:
        place["LD_LIBRARY_PATH"] = f"{driver}"
    place.setdefault("XDG_CACHE_HOME", str(site.parent / "cache"))
    start = "import os, sys\nsys.prefix = '/proc/nowhere'  # nothing is made in the tests' own Python\n"
    done = subprocess.run([sys.executable, "-c", f"{start}from mindspore_coupalign import cuda\n{code}"], env=place,
                          text=True, capture_output=True, timeout=60, cwd=site.parent)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.strip()


def test_the_wheels_are_arranged_as_mindspore_looks_for_them(site, tmp_path):
    """In the user's cache where the Python's folder is not theirs; loaded, and named to child processes."""
    driver, cache = stub_driver(tmp_path / "driver"), tmp_path / "cache"
    code = ("print(cuda.activate().home)\n"
            "print('libcudnn.so.8' in open('/proc/self/maps').read())\n"
            "print(*(os.environ[n] for n in ('CUDA_HOME', 'LD_LIBRARY_PATH', 'CUDA_CACHE_MAXSIZE')), sep='\\n')")
    printed = ask(code, site, driver)
    home, loaded, cuda_home, libraries, size = printed.splitlines()
    assert home == cuda_home and Path(home).is_relative_to(cache) and loaded == "True" and size == "4000000000"
    assert libraries == f"{home}/lib64:{driver}"
    assert cuda.release_of(home) == "11.6"
    assert sorted(p.name for p in (Path(home) / "lib64").iterdir()) == sorted([*cuda.LIBRARIES, cuda.CUDART])
    assert all(p.exists() for p in (Path(home) / "lib64").iterdir())
    assert [p.name for p in Path(home).parent.iterdir()] == [Path(home).name]  # nothing half made is left
    again = ask(code, site, driver, CUDA_HOME=home)
    assert again.splitlines()[0] == home  # as in a rank of a job whose script has set it


def test_scripts_get_the_variables(site, tmp_path):
    driver = stub_driver(tmp_path / "driver")
    printed = ask("cuda.main()", site, driver, XDG_CACHE_HOME=str(tmp_path / "a cache"))
    done = subprocess.run(["bash", "-c", f'{printed}\n"$CUDA_HOME/bin/nvcc"; echo "$LD_LIBRARY_PATH"'], text=True,
                          capture_output=True)
    assert "release 11.6," in done.stdout and f"lib64:{driver}" in done.stdout
    assert ask("cuda.main()", site.parent, driver) == ""  # without wheels


@pytest.mark.parametrize("driver, said", [
    ({"version": 10020}, "supports CUDA 10.2 only; install one from 450 on"),
    ({"init": 100}, "sees no card"), ({"cards": 0}, "sees no card"), ({"init": 3}, "cuInit: error 3"),
    (None, "no NVIDIA driver: libcuda.so.1 cannot be loaded")])
def test_a_driver_that_does_not_serve_is_left_alone(site, tmp_path, driver, said):
    folder = stub_driver(tmp_path / "driver", **driver) if driver else None
    code = "print(cuda.activate()); print('CUDA_HOME' in os.environ)"
    printed = ask(code, site, folder)
    assert said in printed and printed.endswith("False")


def test_a_cuda_of_the_users_own(site, tmp_path):
    """Is taken where MindSpore knows it; CUDA 12, which it refuses, gives way to the wheels."""
    driver = stub_driver(tmp_path / "driver")
    own, new = (with_nvcc(tmp_path / name, release) for name, release in (("own", "11.6"), ("new", "12.4")))
    code = "print(cuda.find())"
    assert "CUDA_HOME has CUDA 11.6, which is taken" in ask(code, site, driver, CUDA_HOME=own)
    for other in (new, str(tmp_path / "nowhere")):
        assert 'reason="CUDA 11\'s wheels"' in ask(code, site, driver, CUDA_HOME=other)


def test_missing_and_damaged_wheels_are_named(site, tmp_path):
    driver = stub_driver(tmp_path / "driver")
    assert "CUDA 11's wheels are not installed; pip install -r" in ask("print(cuda.find())", site.parent, driver)
    cudnn = next(site.glob("nvidia/*/lib/libcudnn.so.8"))
    cudnn.write_bytes(b"no library")
    code = "print(cuda.activate()); print('CUDA_HOME' in os.environ)"
    printed = ask(code, site, driver)
    assert "libcudnn.so.8 cannot be loaded" in printed and printed.endswith("False")
    cudnn.unlink()
    assert "nvidia-cudnn-cu11 not installed; pip install" in ask("print(cuda.find())", site, driver)


@pytest.mark.parametrize("version, capability, said", [
    (12040, (5, 2), "not served"), (11000, (6, 0), "machine code"), (11000, (8, 9), "machine code"),
    (11000, (9, 0), "not served: compute capability 9.0 needs a driver"), (12040, (9, 0), "the driver compiles")])
def test_which_cards_are_served(version, capability, said):
    assert said in cuda.suits(version, capability)


def test_requirements_name_every_wheel():
    """Exactly pinned, so that a version that was never linked is not installed."""
    text = (ROOT / "requirements-gpu.txt").read_text()
    pinned = {line.partition("==")[0] for line in text.splitlines() if "==" in line}
    assert pinned == set(cuda.LIBRARIES.values()) and text.startswith("-r requirements.txt")


PLUGIN = """
import mindspore_coupalign  # the libraries are loaded with it
import mindspore as ms
print("available", ms.device_context.gpu.is_available())
ms.set_device("GPU")
print("linked", sorted({line.split()[-1].rpartition("/")[2] for line in open("/proc/self/maps") if "gpu" in line}))
"""


def _gpu_python() -> str:
    """A Python with the wheels: this one, or that which COUPALIGN_GPU_PYTHON names."""
    if importlib.util.find_spec("nvidia") and not cuda.find().missing:
        return sys.executable
    return os.environ.get("COUPALIGN_GPU_PYTHON", "")


@pytest.mark.slow
@pytest.mark.skipif(not _gpu_python(), reason="needs a Python with requirements-gpu.txt, named in COUPALIGN_GPU_PYTHON")
def test_the_gpu_back_end_links(tmp_path):
    """Every symbol of the plugin, its kernels and the libraries is bound at once: one that is missing would stop it."""
    driver = stub_driver(tmp_path / "driver")
    place = {k: v for k, v in os.environ.items() if k != "CUDA_HOME"}
    place |= {"LD_LIBRARY_PATH": str(driver), "LD_BIND_NOW": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([_gpu_python(), "-c", PLUGIN], env=place, text=True, capture_output=True, timeout=120)
    assert "available True" in done.stdout and "libmindspore_gpu.so.11.6" in done.stdout, done.stdout + done.stderr
    assert "undefined symbol" not in done.stderr and "cannot open" not in done.stderr
