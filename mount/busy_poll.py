"""Looking for the next request a little longer before going to sleep.

A processor that sleeps takes tens of microseconds to wake.  Where one small request follows the
other, that is most of the time they take; a server that looks again for as long answers twice as
many.  It must not cost anything where it does not help, so the time adapts: it grows while sleeps
turn out short, and goes back to nothing when they do not.  Linux does the same for the idle
processors of virtual machines (Documentation/virt/guest-halt-polling.rst).
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from time import perf_counter_ns

LONGEST_NS = 100_000
"""The longest look.  A few wake-ups long: what takes longer than that is worth a sleep."""

_SHORTEST_NS = 10_000
_CONTAINER_LIMIT = "/sys/fs/cgroup/cpu.max"


def usable_processors(limit: str = _CONTAINER_LIMIT) -> int:
    """How many processors this process may use at a time; 1 or more.

    `limit` is the file in which the control group has its share of time and the period, both in
    microseconds (Documentation/admin-guide/cgroup-v2.rst, "CPU Interface Files").
    """
    processors = len(os.sched_getaffinity(0))
    try:
        with open(limit, encoding="ascii") as file:
            share, period = (int(part) for part in file.read().split())
        return max(min(processors, share // period), 1)
    except (OSError, ValueError, ZeroDivisionError):  # No limit: "max", or no such file.
        return processors


class BusyPoll:
    """Whether there is something to read from a descriptor, or will be in a moment.

    Nothing else can happen in this thread meanwhile, so use it only where nothing is under way.
    With one processor it never looks twice: whoever is to make the request needs that processor.
    """

    def __init__(
        self, fd: int, processors: int | None = None, clock: Callable[[], int] = perf_counter_ns
    ) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        self._poll = poll.poll
        self._clock = clock
        processors = usable_processors() if processors is None else processors
        self._longest = LONGEST_NS if processors > 1 else 0
        self._patience = 0  # Nanoseconds.
        self._began = 0

    def is_readable(self) -> bool:
        """Whether there is something to read now."""
        return bool(self._poll(0))

    def finds_one(self) -> bool:
        """Whether there is something to read, or comes while it is worth looking for.

        After False, tell of the sleep by `slept`.
        """
        poll, clock = self._poll, self._clock
        if poll(0):
            return True
        self._began = now = clock()
        end = now + self._patience
        while now < end:
            if poll(0):
                return True
            now = clock()
        return False

    def slept(self) -> None:
        """There is something to read, after a sleep."""
        if self._clock() - self._began <= LONGEST_NS * 2:
            self._patience = min(max(self._patience * 2, _SHORTEST_NS), self._longest)
        else:
            self._patience = self._patience // 2 if self._patience > _SHORTEST_NS else 0
