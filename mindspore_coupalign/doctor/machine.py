"""What the doctor reports about Python, the packages and the machine. Imports no other package.

``python -m mindspore_coupalign.doctor.machine`` checks the packages of a Python that the scripts use unchanged
(VENV=none): exit code 2 and one line where a package is missing or cannot work, one line per package of another version
than the tested one.
"""

import importlib.metadata
import importlib.util
import operator
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mindspore_coupalign import __version__
from mindspore_coupalign.memory import host, lines

OK, NOTE, ABSENT, BAD = "ok", "note", "--", "BAD"  # statuses of an item; BAD alone makes the exit code 1
PYTHONS = ((3, 10), (3, 12))  # with a wheel of MindSpore 2.10, first and last
MACHINES = ("x86_64", "aarch64")
LEAST_MEMORY, LEAST_DISK = 4 * 2**30, 2 * 10**9  # the quickstart needs 3 GiB and 1 GB
# Variables that change what MindSpore does; no others are shown: some hold passwords
SHOWN = ("CUDA_HOME", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "LD_PRELOAD", "ASCEND_HOME_PATH", "ASCEND_OPP_PATH",
         "ASCEND_RT_VISIBLE_DEVICES", "ASCEND_VISIBLE_DEVICES", "DEVICE_ID", "RANK_TABLE_FILE", "MS_ROLE", "MS_JIT",
         "MS_COMPILER_CACHE_ENABLE", "MS_ENABLE_GE", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "GLOG_v", "PYTHONPATH",
         "VENV", "HF_HUB_OFFLINE", "HF_HOME")
OWN = {"ONEDNN_MAX_CPU_ISA": "AVX2", "GLOG_v": "3"}  # what the package sets itself

PROJECT = "mindspore_coupalign"
PINS = Path(__file__).resolve().parents[2] / "requirements.txt"  # of a clone; an installed package knows its ranges
REQUIREMENT = re.compile(r"([\w.-]+)\s*((?:[<>=]=?[\w.]+,?)+)")
MODULES = {"opencv-python-headless": "cv2", "pyyaml": "yaml", "pillow": "PIL"}  # where it is not the package's name
ALIKE = {"opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")}
COMPARE = {"==": operator.eq, ">=": operator.ge, "<=": operator.le, "<": operator.lt, ">": operator.gt}


@dataclass(frozen=True)
class Item:
    """A line of the doctor's report; ``remedy`` is a command to type."""

    name: str
    status: str
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Package:
    """A required package: ``wanted`` as in a requirements file ("==2.10.0", ">=1.26,<2"), ``version`` "" where it is
    not installed, ``problem`` why it cannot work."""

    name: str
    wanted: str
    version: str = ""
    problem: str = ""

    @property
    def is_tested(self) -> bool:
        return all(COMPARE[sign](_numbers(self.version), _numbers(version))
                   for sign, version in re.findall(r"([<>=]=?)([\w.]+)", self.wanted))


def python() -> Iterator[Item]:
    version, machine = sys.version_info[:2], platform.machine()
    libc = " ".join(platform.libc_ver())
    text = f"{platform.python_version()} ({sys.executable}), {platform.system()} {machine}, {libc or 'no glibc'}"
    if not PYTHONS[0] <= version <= PYTHONS[1]:
        yield Item("python", BAD, f"{text}: MindSpore 2.10 has wheels for 3.10, 3.11 and 3.12 only")
    elif platform.system() != "Linux" or machine not in MACHINES:
        yield Item("python", BAD, f"{text}: MindSpore 2.10 was tested on Linux on {' and '.join(MACHINES)} only")
    elif not libc:
        yield Item("python", BAD, f"{text}: MindSpore's wheels need glibc (Alpine Linux has another library)")
    else:
        yield Item("python", OK, text)


def package() -> Iterator[Item]:
    folder = Path(__file__).resolve().parents[1]
    commit = ""
    if (folder.parent / ".git").exists() and shutil.which("git"):
        done = subprocess.run(["git", "-C", folder.parent, "describe", "--always", "--dirty"], capture_output=True,
                              text=True, timeout=20)
        commit = f", commit {done.stdout.strip()}" if done.returncode == 0 else ""
    yield Item("package", OK, f"mindspore_coupalign {__version__}{commit} ({folder})")


def mindspore_folder() -> Path | None:
    """The folder of the installed MindSpore, which is not imported."""
    spec = importlib.util.find_spec("mindspore")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places and (Path(places[0]) / "__init__.py").exists() else None


def requirements(path: Path = PINS) -> dict:
    """name -> wanted versions, from the clone's requirements file or, without one, from the installed package."""
    try:
        listed = path.read_text().splitlines() if path.exists() else importlib.metadata.requires(PROJECT) or ()
    except importlib.metadata.PackageNotFoundError:
        return {}
    wanted = {}
    for line in listed:
        text, _, marker = line.partition("#")[0].partition(";")
        machines = re.findall(r'platform_machine == "(\w+)"', marker)
        elsewhere = "extra ==" in marker or (machines and platform.machine() not in machines)
        if (parts := REQUIREMENT.fullmatch(text.strip())) and not elsewhere:
            wanted[parts[1].lower()] = parts[2]
    return wanted


def installed_packages() -> list[Package]:
    """What this Python has of ``requirements()``."""
    return [_installed(name, versions) for name, versions in requirements().items()]


def _installed(name: str, wanted: str) -> Package:
    version = next(filter(None, map(_version, (name, *ALIKE.get(name, ())))), "")
    if not version or importlib.util.find_spec(MODULES.get(name, name.replace("-", "_"))) is None:
        return Package(name, wanted)
    problem = ""
    if name == "numpy" and _numbers(version) >= (2,):
        problem = f"numpy {version}: MindSpore is compiled against NumPy 1, its operators fail"
    elif name in ALIKE and _numbers(version) >= (4, 12):
        problem = f"OpenCV {version} needs NumPy 2, which MindSpore does not support"
    return Package(name, wanted, version, problem)


def _version(name: str) -> str:
    """Of an installed distribution; "" where there is none, or none that can be read."""
    try:
        return importlib.metadata.version(name) or ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple:
    return tuple(map(int, re.findall(r"\d+", version)))


def problems(packages: list[Package]) -> tuple[str, str]:
    """(what is missing or cannot work, in one line; the command that installs it), "" where nothing is."""
    missing = [p.name for p in packages if not p.version]
    texts = [f"without {', '.join(missing)}"] if missing else []
    names = " ".join(shlex.quote(p.name + p.wanted) for p in packages if p.problem or not p.version)
    return ("; ".join([*texts, *(p.problem for p in packages if p.problem)]),
            f"{sys.executable} -m pip install {names}" if names else "")


def packages() -> Iterator[Item]:
    known = installed_packages()
    text = ", ".join(f"{p.name} {p.version}" + ("" if p.is_tested else f" (tested: {p.wanted})")
                     for p in known if p.version)
    problem, remedy = problems(known)
    if problem:
        yield Item("packages", BAD, f"{problem} ({text or 'none of the others either'})", remedy)
    elif not known:
        yield Item("packages", NOTE, "neither requirements.txt nor an installed package lists what is needed")
    else:
        yield Item("packages", OK, text)


def processor() -> Iterator[Item]:
    cores, allowed, quota = os.cpu_count(), len(os.sched_getaffinity(0)), _quota()
    names = {line.partition(":")[2].strip() for line in lines(Path("/proc/cpuinfo")) if line.startswith("model name")}
    text = f"{cores} cores" + (f", {allowed} of them for this process" if allowed != cores else "")
    text += f", {quota:g} by the container's quota" if quota else ""
    text += f", {', '.join(sorted(names))}" if names else ""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > allowed:
        yield Item("processor", NOTE, f"{text}; OMP_NUM_THREADS={threads} is more than that and slows everything down")
    else:
        yield Item("processor", OK, text + (f", OMP_NUM_THREADS={threads}" if threads else ""))


def _quota() -> float:
    """Cores that a container may use at a time; 0 without a limit."""
    fields = (lines(Path("/sys/fs/cgroup/cpu.max")) or ["max"])[0].split()
    return int(fields[0]) / int(fields[1]) if len(fields) == 2 and fields[0].isdigit() else 0


def memory() -> Iterator[Item]:
    total, free, limit = host()
    text = f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} free"
    if limit:
        text, free = f"{text}, {limit / 2**30:.1f} by the container's limit", min(free, limit)
    few = "; the quickstart needs 3 GiB, a training step of the full recipe 15" if free < LEAST_MEMORY else ""
    yield Item("memory", NOTE if few else OK, text + few)


def disk() -> Iterator[Item]:
    free = shutil.disk_usage(".").free
    locked = "" if os.access(".", os.W_OK) else ", which cannot be written: commands need --output elsewhere"
    yield Item("disk", NOTE if locked or free < LEAST_DISK else OK,
               f"{free / 1e9:.1f} GB free in the current folder{locked}")


def environment() -> Iterator[Item]:
    shown = [f"{name}={os.environ[name]}" for name in SHOWN if os.environ.get(name, "") not in ("", OWN.get(name))]
    cache = os.environ.get("MS_COMPILER_CACHE_ENABLE") == "1"
    wrong = "MS_COMPILER_CACHE_ENABLE=1 gave wrong numbers (docs/notes/mindspore.md); " if cache else ""
    yield Item("environment", NOTE if cache else OK, wrong + (", ".join(shown) or "nothing special"))


def main() -> int:
    known = installed_packages()
    problem, remedy = problems(known)
    if problem:
        print(f"error: {sys.executable}: {problem}; {remedy}", file=sys.stderr)
        return 2
    for package in known:
        if not package.is_tested:
            print(f"note: {package.name} {package.version} is installed, tested: {package.wanted}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
