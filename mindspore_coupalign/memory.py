"""Memory of this machine, within its container's limits, and of this process. Needs no package."""

import os
import resource
from pathlib import Path
from typing import NamedTuple

CGROUPS, OF_PROCESS, OF_MACHINE = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), Path("/proc/meminfo")


class Host(NamedTuple):
    """Bytes."""

    total: int
    free: int
    limit: int  # of the container; 0 where it has none

    @property
    def usable(self) -> int:
        """The most that all processes of this container can use together."""
        return min(self.total, self.limit or self.total)


def host() -> Host:
    table = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines(OF_MACHINE) if " kB" in line}
    total = table["MemTotal"]
    limits = [limit for limit in _limits() if limit < total]  # without a limit, cgroup version 1 gives nearly 2^63
    return Host(total, table["MemAvailable"], min(limits, default=0))


def _limits():
    """The limits in bytes of this process's control groups and their parents (cgroup versions 2 and 1)."""
    for line in ["0::/", "0:memory:/", *lines(OF_PROCESS)]:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, name = (CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (CGROUPS, "memory.max")
        group = root / path.strip("/")
        for place in (group, *group.parents):
            if place.is_relative_to(root):
                yield from (int(text) for text in lines(place / name)[:1] if text.isdigit())


def resident() -> int:
    """Bytes of memory that this process uses now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    """The most bytes that it has used so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
