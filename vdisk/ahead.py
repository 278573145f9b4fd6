"""Work done ahead by threads, whose results come in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")

PROCESSORS = len(os.sched_getaffinity(0))
"""As many threads as can compute at once."""


def done_in_order(
    items: Iterable[S], work: Callable[[S], T], *, workers: int, ahead: int
) -> Iterator[T]:
    """`work(item)` of each item, in their order, by `workers` threads, at most `ahead` items early.

    What it raises is raised here, and then no other item is begun.
    """
    waiting: deque[Future[T]] = deque()
    threads = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(threads.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
