"""How much memory there is: of this machine within its container's limits, and of a process. Needs no package."""

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
        """What all processes of this container can have together."""
        return min(self.total, self.limit or self.total)


def host() -> Host:
    table = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines(OF_MACHINE) if " kB" in line}
    total = table["MemTotal"]
    limits = [limit for limit in _limits() if limit < total]  # an unlimited group of version 1 says nearly 2^63
    return Host(total, table["MemAvailable"], min(limits, default=0))


def _limits():
    """Bytes that the control groups of this process allow it, those around them included (versions 2 and 1)."""
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
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    """Bytes that it has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
