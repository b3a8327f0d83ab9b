"""A line of the doctor's report."""

from dataclasses import dataclass

OK, NOTE, ABSENT, BAD = "ok", "note", "--", "BAD"  # BAD alone makes the exit code 1


@dataclass(frozen=True)
class Item:
    """``remedy`` is a command to type."""

    name: str
    status: str
    text: str
    remedy: str = ""
