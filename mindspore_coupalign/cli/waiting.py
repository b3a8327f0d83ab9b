"""Telling a user on stderr what takes its time, when it does."""

import contextlib
import sys
import threading
from collections.abc import Iterator

AFTER = 1.5  # seconds
LOADING = "loading the network"
COMPILING = "compiling the network (5 s for a small one, 20 s to 2 min for the full recipe on a CPU)"


@contextlib.contextmanager
def told(what: str, after: float = AFTER) -> Iterator[None]:
    """Print ``what`` to stderr if the block is not done ``after`` so many seconds."""
    timer = threading.Timer(after, lambda: print(f"{what} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
