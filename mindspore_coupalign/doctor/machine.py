"""What the doctor says of Python, the packages and the machine. Needs no package."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from mindspore_coupalign import __version__, packages
from mindspore_coupalign.doctor.items import BAD, NOTE, OK, Item
from mindspore_coupalign.memory import host, lines

PYTHONS = ((3, 10), (3, 12))  # with a wheel of MindSpore 2.10, first and last
MACHINES = ("x86_64", "aarch64")
LEAST_MEMORY, LEAST_DISK = 4 * 2**30, 2 * 10**9  # the quickstart needs 3 GiB and 1 GB
# Variables that change what MindSpore does; no others are shown: some hold passwords
SHOWN = ("CUDA_HOME", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "LD_PRELOAD", "ASCEND_HOME_PATH", "ASCEND_OPP_PATH",
         "ASCEND_RT_VISIBLE_DEVICES", "ASCEND_VISIBLE_DEVICES", "DEVICE_ID", "RANK_TABLE_FILE", "MS_ROLE", "MS_JIT",
         "MS_COMPILER_CACHE_ENABLE", "MS_ENABLE_GE", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "GLOG_v", "PYTHONPATH",
         "VENV", "HF_HUB_OFFLINE", "HF_HOME")
OWN = {"ONEDNN_MAX_CPU_ISA": "AVX2", "GLOG_v": "3"}  # what the package sets itself


def python() -> Iterator[Item]:
    version, machine = sys.version_info[:2], platform.machine()
    libc = " ".join(platform.libc_ver())
    text = f"{platform.python_version()} ({sys.executable}), {platform.system()} {machine}, {libc or 'no glibc'}"
    if not PYTHONS[0] <= version <= PYTHONS[1]:
        yield Item("python", BAD, f"{text}: MindSpore 2.10 has wheels for 3.10, 3.11 and 3.12 alone")
    elif platform.system() != "Linux" or machine not in MACHINES:
        yield Item("python", BAD, f"{text}: MindSpore 2.10 was tried on Linux on {' and '.join(MACHINES)} alone")
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


def of_mindspore() -> Path | None:
    """The folder of the installed MindSpore, which is not imported."""
    spec = importlib.util.find_spec("mindspore")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places and (Path(places[0]) / "__init__.py").exists() else None


def packages_found() -> Iterator[Item]:
    found = packages.check(packages.requirements())
    text = ", ".join(f"{p.name} {p.found}" + ("" if p.was_tried else f" ({p.wanted} was tried)")
                     for p in found if p.found)
    if problem := packages.problems(found):
        yield Item("packages", BAD, f"{problem} ({text or 'none of the others either'})", packages.remedy(found))
    elif not found:
        yield Item("packages", NOTE, "neither requirements.txt nor an installed package says what is needed")
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
    writable = os.access(".", os.W_OK)
    text = f"{free / 1e9:.1f} GB free in the current folder"
    if not writable:
        yield Item("disk", NOTE, f"{text}, which cannot be written: commands need --output elsewhere")
    else:
        yield Item("disk", NOTE if free < LEAST_DISK else OK, text)


def environment() -> Iterator[Item]:
    found = [f"{name}={os.environ[name]}" for name in SHOWN if os.environ.get(name, "") not in ("", OWN.get(name))]
    cache = os.environ.get("MS_COMPILER_CACHE_ENABLE") == "1"
    wrong = "MS_COMPILER_CACHE_ENABLE=1 gave wrong numbers (docs/notes/mindspore.md); " if cache else ""
    yield Item("environment", NOTE if cache else OK, wrong + (", ".join(found) or "nothing special"))

