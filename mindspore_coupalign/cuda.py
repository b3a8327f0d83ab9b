"""Prepares CUDA 11's libraries from pip (requirements-gpu.txt) for MindSpore, before it is imported.

MindSpore 2.10 loads its GPU back end when it is imported, and only where ``CUDA_HOME/bin/nvcc --version`` names a
release that it knows; it takes CUDA's version from the file name libcudart.so.X.Y.Z beside the library that its plugin
links. The wheels contain neither, so this module makes a folder with both:

    <home>/bin/nvcc                      says "release 11.6"
    <home>/lib64/lib*.so.*               symbolic links to the wheels' libraries
    <home>/lib64/libcudart.so.11.6.55    a link to libcudart, by the name that MindSpore looks for

``activate`` loads the libraries into this process, where the plugin finds them by their names, and sets the environment
for child processes; scripts evaluate what ``main`` prints for theirs. Needs no MindSpore.
"""

import contextlib
import ctypes
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

RELEASE, CUDART = "11.6", "libcudart.so.11.6.55"
DRIVER = "libcuda.so.1"
# The libraries that the plugin links, in the order of their own dependencies, and their wheels
LIBRARIES = {
    "libcudart.so.11.0": "nvidia-cuda-runtime-cu11", "libcublasLt.so.11": "nvidia-cublas-cu11",
    "libcublas.so.11": "nvidia-cublas-cu11", "libcufft.so.10": "nvidia-cufft-cu11",
    "libcurand.so.10": "nvidia-curand-cu11", "libcusparse.so.11": "nvidia-cusparse-cu11",
    "libcusolver.so.11": "nvidia-cusolver-cu11", "libnvrtc.so.11.2": "nvidia-cuda-nvrtc-cu11",
    "libcudnn.so.8": "nvidia-cudnn-cu11",
}
FOLDER = "mindspore_coupalign"  # parent of the folders made here
KNOWN_RELEASES = ("11.1", "11.6", "11.8")  # of nvcc, for which MindSpore 2.10 has a plugin
OLDEST = 11000  # least cuDriverGetVersion: CUDA 11 of any minor release runs on drivers from 450 on
COMPILES = 11060  # least version that compiles the wheel's PTX, which cards beyond its machine code need
MACHINE_CODE = ((6, 0), (8, 9))  # compute capabilities with machine code in the wheel: sm_60 to sm_80, and 86, 89
NO_CARD = 100  # error code of cuInit


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver; ``problem`` says why it cannot be used, or is ""."""

    problem: str
    version: int = 0  # of CUDA, from cuDriverGetVersion: 12040 is 12.4
    cards: tuple[tuple[str, tuple[int, int]], ...] = ()  # (name, compute capability) of each visible card


@dataclass(frozen=True)
class Libraries:
    """The folder with the GPU back end's libraries; ``home`` is None where the wheels are not used, for the
    ``reason``."""

    home: Path | None
    reason: str
    missing: tuple[str, ...] = ()  # wheels


def wheels() -> dict:
    """File name -> path of every library in the installed nvidia-*-cu11 wheels."""
    spec = importlib.util.find_spec("nvidia")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return {path.name: path for place in places for path in sorted(Path(place).glob("*/lib/*.so.*"))}


def find() -> Libraries:
    """The libraries to use, if any."""
    installed = wheels()
    missing = tuple(dict.fromkeys(wheel for name, wheel in LIBRARIES.items() if name not in installed))
    if len(missing) == len(set(LIBRARIES.values())):
        return Libraries(None, "CUDA 11's wheels are not installed; pip install -r requirements-gpu.txt", missing)
    if release := own_release():
        return Libraries(None, f"CUDA_HOME has CUDA {release}, which is taken", missing)
    if missing:
        return Libraries(None, f"{', '.join(missing)} not installed; pip install -r requirements-gpu.txt", missing)
    if problem := driver().problem:
        return Libraries(None, problem)
    home = _home(installed)
    return Libraries(home, "CUDA 11's wheels" if home else "neither the Python environment nor the user's cache can be "
                     "written; set XDG_CACHE_HOME to a folder that can")


def driver() -> Driver:
    """Ask the driver itself, without starting a CUDA context."""
    try:
        library = ctypes.CDLL(DRIVER)
    except OSError:
        return Driver(f"no NVIDIA driver: {DRIVER} cannot be loaded")
    version, count, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    code = library.cuInit(0)
    library.cuDriverGetVersion(ctypes.byref(version))
    supported = f"{version.value // 1000}.{version.value % 1000 // 10}"
    if 0 < version.value < OLDEST:
        return Driver(f"the NVIDIA driver supports CUDA {supported} only; install one from 450 on (CUDA 11)",
                      version.value)
    if code == 0:
        library.cuDeviceGetCount(ctypes.byref(count))
    if code not in (0, NO_CARD):
        return Driver(f"the NVIDIA driver does not start (cuInit: error {code}); does nvidia-smi work?", version.value)
    if count.value == 0:
        return Driver("the NVIDIA driver sees no card (CUDA_VISIBLE_DEVICES hides all of them, or there is none)",
                      version.value)
    cards = []
    for number in range(count.value):
        major, minor = ctypes.c_int(), ctypes.c_int()
        library.cuDeviceGetName(name, len(name), number)
        library.cuDeviceGetAttribute(ctypes.byref(major), 75, number)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        library.cuDeviceGetAttribute(ctypes.byref(minor), 76, number)
        cards.append((name.value.decode(errors="replace"), (major.value, minor.value)))
    return Driver("", version.value, tuple(cards))


def suits(version: int, capability: tuple[int, int]) -> str:
    """How MindSpore's wheel supports a card under a driver; starts with "not served" where it does not."""
    card = f"compute capability {capability[0]}.{capability[1]}"
    if capability < MACHINE_CODE[0]:
        return f"not served: {card}, and MindSpore 2.10 has code from 6.0 on"
    if capability <= MACHINE_CODE[1]:
        return f"{card}, served by MindSpore's machine code"
    if version < COMPILES:
        return f"not served: {card} needs a driver that compiles MindSpore's PTX (from 520 on)"
    return f"{card}: the driver compiles MindSpore's PTX, which takes many minutes at the first start"


def own_release() -> str:
    """The CUDA release in the user's own CUDA_HOME, if MindSpore has a plugin for it, else ""."""
    home = os.environ.get("CUDA_HOME", "")
    release = release_of(home)
    return release if release in KNOWN_RELEASES and Path(home).parent.name != FOLDER else ""


def release_of(home: str) -> str:
    """The release that ``home``/bin/nvcc prints, as "12.4"; "" where there is none."""
    if not home:
        return ""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run([f"{home}/bin/nvcc", "--version"], capture_output=True, text=True, timeout=10)
        if release := re.search(r"release (\d+\.\d+),", done.stdout):
            return release[1]
    return ""


def activate() -> Libraries:
    """Load the wheels' libraries into this process and set its children's environment, if there are a card, the wheels
    and no CUDA of the user's own that MindSpore can use; otherwise change nothing. Call it before MindSpore is
    imported."""
    libraries = find()
    if libraries.home is None:
        return libraries
    for name in LIBRARIES:
        try:
            ctypes.CDLL(str(libraries.home / "lib64" / name))
        except OSError as exc:  # a damaged wheel, or one for another machine
            return Libraries(None, f"{name} cannot be loaded: {exc}")
    os.environ.update(environment(libraries.home))
    return libraries


def environment(home: Path) -> dict:
    """The environment variables with which MindSpore uses ``home``."""
    paths = [p for p in os.environ.get("LD_LIBRARY_PATH", "").split(":") if p and p != str(home / "lib64")]
    # for the compiled PTX of cards newer than the wheel's machine code, which the driver's default limit discards
    size = {"CUDA_CACHE_MAXSIZE": os.environ.get("CUDA_CACHE_MAXSIZE", "4000000000")}
    return {"CUDA_HOME": str(home), "LD_LIBRARY_PATH": ":".join([str(home / "lib64"), *paths])} | size


def _home(libraries: dict) -> Path | None:
    """The folder that the module's docstring describes, made if it is missing: in the virtual environment, or in the
    user's cache if that is read-only."""
    mark = f"{zlib.crc32(repr(sorted(libraries.items())).encode()):08x}"  # other wheels have another folder
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for parent in (Path(sys.prefix) / "share", cache):
        home = parent / FOLDER / f"cuda-{RELEASE}-{mark}"
        if (home / "bin" / "nvcc").exists():
            return home
        with contextlib.suppress(OSError):
            _make(home, libraries)
            return home
    return None


def _make(home: Path, libraries: dict):
    """Atomic: several ranks may make it at the same time."""
    home.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f"{home.name}-", dir=home.parent))
    try:
        new.chmod(0o755)
        (new / "lib64").mkdir()
        (new / "bin").mkdir()
        for name, path in libraries.items():
            (new / "lib64" / name).symlink_to(path)
        (new / "lib64" / CUDART).symlink_to(libraries["libcudart.so.11.0"])
        nvcc = new / "bin" / "nvcc"
        version = CUDART.removeprefix("libcudart.so.")
        nvcc.write_text(f'#!/bin/sh\necho "Cuda compilation tools, release {RELEASE}, V{version}"\n')
        nvcc.chmod(0o755)
        new.rename(home)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
        if not (home / "bin" / "nvcc").exists():  # else another rank was faster
            raise


def main():
    """Print the shell commands that set the variables of ``activate``; nothing where it changes nothing."""
    libraries = find()
    if libraries.home is not None:
        for name, value in environment(libraries.home).items():
            print(f"export {name}={shlex.quote(value)}")
