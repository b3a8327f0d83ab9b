"""The pinned packages beside those that a Python has. Imports none of them.

``python -m mindspore_coupalign.packages`` is for a Python that is taken as it is (VENV=none in scripts/): exit code 2
and one line where something is missing or cannot work, one line per package of another version, which may do.
"""

import importlib.metadata
import importlib.util
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

PINS = Path(__file__).resolve().parents[1] / "requirements.txt"  # of a clone; an installed package knows its own
PIN = re.compile(r"([\w.-]+)==([\w.]+)")
MISSING = "missing"
MODULES = {"opencv-python-headless": "cv2", "pyyaml": "yaml"}  # where it is not the package's name
ALIKE = {"opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")}


@dataclass(frozen=True)
class Package:
    name: str
    wanted: str  # version
    found: str  # version; "" where it is not there
    problem: str  # why it cannot work; "" where it may


def pins(path: Path = PINS) -> dict:
    """name -> version of every exact pin, from a requirements file or, without one, from the installed package."""
    if path.exists():
        return dict(_pins(line.partition("#")[0] for line in path.read_text().splitlines()))
    try:
        return dict(_pins(importlib.metadata.requires(__package__) or ()))
    except importlib.metadata.PackageNotFoundError:
        return {}


def _pins(lines):
    for line in lines:
        text, _, marker = line.partition(";")
        machine = re.search(r'platform_machine == "(\w+)"', marker)
        if (pin := PIN.fullmatch(text.strip())) and (not machine or machine[1] == platform.machine()):
            yield pin[1].lower(), pin[2]


def check(wanted: dict) -> list[Package]:
    """What this Python has of ``pins()``."""
    return [_check(name, version) for name, version in wanted.items()]


def _check(name: str, wanted: str) -> Package:
    found = next(filter(None, map(installed, (name, *ALIKE.get(name, ())))), "")
    module = MODULES.get(name, name.replace("-", "_"))
    if not found or importlib.util.find_spec(module) is None:
        return Package(name, wanted, "", MISSING)
    if name == "numpy" and int(found.split(".")[0]) >= 2:
        return Package(name, wanted, found, f"numpy {found}: MindSpore is compiled against NumPy 1, its operators fail")
    if name in ALIKE and int(installed("numpy").split(".")[0] or 1) < 2 and _numbers(found) >= (4, 12):
        return Package(name, wanted, found, f"OpenCV {found} wants NumPy 2, which MindSpore does not bear")
    return Package(name, wanted, found, "")


def installed(name: str) -> str:
    """Version of an installed distribution; "" where there is none, or none that can be read."""
    try:
        return importlib.metadata.version(name) or ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def problems(packages: list[Package]) -> str:
    """In one line; "" where there is none."""
    missing = [p.name for p in packages if p.problem == MISSING]
    others = [p.problem for p in packages if p.problem not in ("", MISSING)]
    return "; ".join([*([f"without {', '.join(missing)}"] if missing else []), *others])


def remedy(packages: list[Package]) -> str:
    """The command that brings what has a problem."""
    names = " ".join(f"{p.name}=={p.wanted}" for p in packages if p.problem)
    return f"{sys.executable} -m pip install {names}" if names else ""


def main() -> int:
    packages = check(pins())
    if problem := problems(packages):
        print(f"error: {sys.executable}: {problem}; {remedy(packages)}", file=sys.stderr)
        return 2
    for package in packages:
        if package.found != package.wanted:
            print(f"note: {package.name} {package.found} is here, {package.wanted} was tried", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
