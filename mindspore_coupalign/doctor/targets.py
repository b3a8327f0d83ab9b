"""Which device targets MindSpore can use on this machine, why not the others, and one operator on each.

MindSpore itself is imported in child processes only.
"""

import glob
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from mindspore_coupalign import cuda
from mindspore_coupalign.distributed.process import reason, run_child
from mindspore_coupalign.doctor.machine import ABSENT, BAD, NOTE, OK, Item, mindspore_folder
from mindspore_coupalign.memory import lines

NPUS = "/dev/davinci[0-9]*"
CANN_SCRIPTS = ("/usr/local/Ascend/ascend-toolkit/set_env.sh", "/usr/local/Ascend/cann/set_env.sh",
                "~/Ascend/ascend-toolkit/set_env.sh", "~/Ascend/cann/set_env.sh")
GPU_PACKAGES = "pip install -r requirements-gpu.txt"
NO_MINDSPORE = "MindSpore is not installed"


def tried(target: str, timeout: float, more: str = "") -> Item:
    """What one operator on the target gives."""
    good, text = probe("device", target, timeout=timeout)[-1]
    return Item(target, OK if good else BAD, text + more)


def cpu(timeout: float) -> Iterator[Item]:
    yield tried("CPU", timeout) if mindspore_folder() else Item("CPU", BAD, NO_MINDSPORE)


def gpu(timeout: float) -> Iterator[Item]:
    folder, driver = mindspore_folder(), cuda.driver()
    for number, (name, capability) in enumerate(driver.cards):
        says = cuda.suits(driver.version, capability)
        yield Item(f"GPU {number}", NOTE if says.startswith("not served") else OK, f"{name}: {says}")
    if folder is None:
        yield Item("GPU", ABSENT, NO_MINDSPORE)
    elif obstacle := gpu_obstacle(folder, driver):
        text, remedy = obstacle
        yield Item("GPU", NOTE if driver.cards else ABSENT, text, remedy)
    else:
        yield tried("GPU", timeout)


def gpu_obstacle(folder: Path, driver: cuda.Driver) -> tuple[str, str] | None:
    """(why MindSpore, installed in ``folder``, cannot use a GPU, what to do); None where it should."""
    plugins = sorted((folder / "lib" / "plugin").glob("libmindspore_gpu.so.*"))
    if not plugins:
        return f"this MindSpore has no GPU back end (its wheel for {platform.machine()})", ""
    if driver.problem:
        return driver.problem, ""
    if all(cuda.suits(driver.version, capability).startswith("not served") for _, capability in driver.cards):
        return "no card that MindSpore 2.10 serves", ""
    libraries, release = cuda.find(), cuda.own_release()
    if libraries.home is None and not release:
        other = cuda.release_of(os.environ.get("CUDA_HOME", ""))
        own = f"CUDA_HOME has CUDA {other}, MindSpore 2.10 needs {' or '.join(cuda.KNOWN_RELEASES)}; " if other else ""
        remedy = f"{sys.executable} -m {GPU_PACKAGES}" if libraries.missing else ""
        return own + libraries.reason.partition("; pip")[0], remedy
    plugin = next((p for p in plugins if p.name.endswith(cuda.RELEASE if libraries.home else release)), plugins[-1])
    if missing := missing_libraries(plugin):
        return f"{plugin.name} does not find {', '.join(missing)}; is it in a folder of LD_LIBRARY_PATH?", ""
    return None


def ascend(timeout: float) -> Iterator[Item]:
    folder, devices, home = mindspore_folder(), glob.glob(NPUS), os.environ.get("ASCEND_HOME_PATH", "")
    obstacles, remedy = ascend_obstacles(folder) if folder else ([NO_MINDSPORE], "")
    if obstacles:
        yield Item("Ascend", NOTE if folder and (devices or home) else ABSENT, "; ".join(obstacles), remedy)
    else:
        yield tried("Ascend", timeout, f"; CANN {cann_version(home)}, {len(devices)} NPUs")


def ascend_obstacles(folder: Path) -> tuple[list, str]:
    """(why MindSpore, installed in ``folder``, cannot use an NPU; what to do about the first of it)."""
    obstacles, devices, home = [], sorted(glob.glob(NPUS)), os.environ.get("ASCEND_HOME_PATH", "")
    if not devices:
        obstacles.append("no NPU: there is no /dev/davinci0 (`npu-smi info` lists them; a container needs it passed "
                         "in)")
    elif not os.access(devices[0], os.R_OK | os.W_OK):
        obstacles.append(f"no permission for {devices[0]}: join the group that owns it (HwHiAiUser)")
    if home:
        cann, remedy = cann_obstacles(folder, home)
        return [*obstacles, *cann], remedy
    script = next(filter(os.path.exists, map(os.path.expanduser, CANN_SCRIPTS)), "")
    if devices or script:
        nowhere = "" if script else ", and CANN is in none of its usual folders"
        obstacles.append(f"ASCEND_HOME_PATH is not set{nowhere}")
    return obstacles, f"source {script}" if script else ""


def cann_obstacles(folder: Path, home: str) -> tuple[list, str]:
    """The same about CANN in ``home``."""
    obstacles, remedy, version, known = [], "", cann_version(home), cann_versions(folder)
    if not version:
        obstacles.append(f"{home}/compiler/version.info does not say CANN's version; is ASCEND_HOME_PATH right?")
    elif known and version not in known:
        obstacles.append(f"CANN is {version}, this MindSpore is made for {known[0]} to {known[-1]}")
    plugin = next(iter((folder / "lib" / "plugin").glob("libmindspore_ascend.so*")), None)
    if plugin is None:
        obstacles.append("this MindSpore has no Ascend back end")
    elif missing := missing_libraries(plugin):
        obstacles.append(f"{plugin.name} does not find {', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}")
        remedy = f"source {home}/../set_env.sh"
    if importlib.util.find_spec("te") is None:
        obstacles.append("CANN's Python package te is not found (set_env.sh puts it into PYTHONPATH)")
    return obstacles, remedy


def cann_version(home: str) -> str:
    """As MindSpore reads it, "8.2"; "" where it is not written."""
    text = "\n".join(lines(Path(home) / "compiler" / "version.info"))
    version = re.search(r"^Version=(\d+\.\d+)", text, re.MULTILINE)
    return version[1] if version else ""


def cann_versions(folder: Path) -> list:
    """The versions that this MindSpore checks CANN's against; empty where its source names none."""
    source = "\n".join(lines(folder / "run_check" / "_check_version.py"))
    versions = re.search(r"class AscendEnvChecker.*?self\.version = \[(.*?)\]", source, re.DOTALL)
    return re.findall(r"[\d.]+", versions[1]) if versions else []


def missing_libraries(plugin: Path) -> list:
    """Names of the libraries that the dynamic loader does not find for a plugin; empty where ldd is not there."""
    try:
        done = subprocess.run(["ldd", plugin], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"^\s*(\S+) => not found", done.stdout, re.MULTILINE)


def inputs(config: str | None, overrides: list, checkpoint: str | None, timeout: float) -> Iterator[Item]:
    """The configuration's data, tokenizer and weights, and the checkpoint."""
    if not config and not checkpoint:
        yield Item("inputs", ABSENT, "not checked: --config FILE data.root=DIR … and --checkpoint FILE name them")
    findings = probe("config", config, *overrides, timeout=timeout) if config else []
    findings += probe("checkpoint", checkpoint, timeout=timeout) if checkpoint else []
    for good, text in findings:
        name, _, text = text.partition(": ")
        yield Item(name, OK if good else BAD, text)


def probe(*arguments: str, timeout: float) -> list[tuple[bool, str]]:
    """The findings of ``probe.py``, (good, text) each; the last one tells how its process ended, if that was wrong."""
    ended = run_child([sys.executable, "-m", "mindspore_coupalign.doctor.probe", *arguments], limit=timeout,
                      stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said = [json.loads(line) for line in ended.out.splitlines() if line.startswith('{"good": ')]  # others print, too
    findings = [(finding["good"], finding["text"]) for finding in said]
    subject = arguments[0] + ": " if arguments[0] != "device" else ""
    if ended.late:
        findings.append((False, f"{subject}no answer within {timeout} s; --timeout waits for longer"))
    elif ended.code:
        findings.append((False, f"{subject}{reason(ended.code, ended.err)}"))
    return findings or [(False, f"{subject}its process printed nothing")]
