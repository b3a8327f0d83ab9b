"""Work beside the network: scoring in a few threads, so that the device does not wait for it."""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

THREADS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class Pool:
    """``submit`` starts a call in a thread; leaving the ``with`` block waits for all and raises what one raised.

    Args:
        pending: calls that may wait; another ``submit`` then waits for the oldest, so that memory stays bounded.
    """

    def __init__(self, pending: int, threads: int = THREADS):
        self._pending = pending
        self._threads = ThreadPoolExecutor(threads, "coupalign-score")
        self._calls: deque = deque()

    def submit(self, call: Callable, *arguments):
        while len(self._calls) >= self._pending or self._calls and self._calls[0].done():
            self._calls.popleft().result()
        self._calls.append(self._threads.submit(call, *arguments))

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind, *_):
        try:
            while self._calls and kind is None:
                self._calls.popleft().result()
        finally:
            self._threads.shutdown(cancel_futures=True)
