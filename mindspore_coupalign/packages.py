"""The packages that the project needs beside those that a Python has. Imports none of them.

``python -m mindspore_coupalign.packages`` is for a Python that is taken as it is (VENV=none in scripts/): exit code 2
and one line where something is missing or cannot work, one line per package of another version, which may do.
"""

import importlib.metadata
import importlib.util
import operator
import platform
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

PINS = Path(__file__).resolve().parents[1] / "requirements.txt"  # of a clone; an installed package knows its ranges
REQUIREMENT = re.compile(r"([\w.-]+)\s*((?:[<>=]=?[\w.]+,?)+)")
MISSING = "missing"
MODULES = {"opencv-python-headless": "cv2", "pyyaml": "yaml", "pillow": "PIL"}  # where it is not the package's name
ALIKE = {"opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")}
COMPARE = {"==": operator.eq, ">=": operator.ge, "<=": operator.le, "<": operator.lt, ">": operator.gt}


@dataclass(frozen=True)
class Package:
    name: str
    wanted: str  # as in a requirements file: "==2.10.0", ">=1.26,<2"
    found: str  # version; "" where it is not there
    problem: str  # why it cannot work, or MISSING; "" where it may

    @property
    def was_tried(self) -> bool:
        return all(COMPARE[sign](_numbers(self.found), _numbers(version))
                   for sign, version in re.findall(r"([<>=]=?)([\w.]+)", self.wanted))


def requirements(path: Path = PINS) -> dict:
    """name -> wanted versions, from the clone's requirements file or, without one, from the installed package."""
    try:
        lines = path.read_text().splitlines() if path.exists() else importlib.metadata.requires(__package__) or ()
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = {}
    for line in lines:
        text, _, marker = line.partition("#")[0].partition(";")
        machines = re.findall(r'platform_machine == "(\w+)"', marker)
        elsewhere = "extra ==" in marker or (machines and platform.machine() not in machines)
        if (wanted := REQUIREMENT.fullmatch(text.strip())) and not elsewhere:
            found[wanted[1].lower()] = wanted[2]
    return found


def check(wanted: dict) -> list[Package]:
    """What this Python has of ``requirements()``."""
    return [_check(name, versions) for name, versions in wanted.items()]


def _check(name: str, wanted: str) -> Package:
    found = next(filter(None, map(installed, (name, *ALIKE.get(name, ())))), "")
    if not found or importlib.util.find_spec(MODULES.get(name, name.replace("-", "_"))) is None:
        return Package(name, wanted, "", MISSING)
    problem = ""
    if name == "numpy" and _numbers(found) >= (2,):
        problem = f"numpy {found}: MindSpore is compiled against NumPy 1, its operators fail"
    elif name in ALIKE and _numbers(found) >= (4, 12):
        problem = f"OpenCV {found} needs NumPy 2, which MindSpore does not support"
    return Package(name, wanted, found, problem)


def installed(name: str) -> str:
    """Version of an installed distribution; "" where there is none, or none that can be read."""
    try:
        return importlib.metadata.version(name) or ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple:
    return tuple(map(int, re.findall(r"\d+", version)))


def problems(packages: list[Package]) -> str:
    """In one line; "" where there is none."""
    missing = [p.name for p in packages if p.problem == MISSING]
    others = [p.problem for p in packages if p.problem not in ("", MISSING)]
    return "; ".join([*([f"without {', '.join(missing)}"] if missing else []), *others])


def remedy(packages: list[Package]) -> str:
    """The command that brings what has a problem; "" where nothing has."""
    names = " ".join(shlex.quote(p.name + p.wanted) for p in packages if p.problem)
    return f"{sys.executable} -m pip install {names}" if names else ""


def main() -> int:
    packages = check(requirements())
    if problem := problems(packages):
        print(f"error: {sys.executable}: {problem}; {remedy(packages)}", file=sys.stderr)
        return 2
    for package in packages:
        if not package.was_tried:
            print(f"note: {package.name} {package.found} is here, {package.wanted} was tried", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
