"""How pyfuse3's loop waits for requests.

pyfuse3 has several tasks in one loop: wait until the device can be read, read a request, answer
it.  The parts of that loop have names of their own in the module, found anew each time they are
called, so they can be wrapped.  Where another pyfuse3 has other names, its loop stays as it comes.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pyfuse3
import trio

from mount.busy_poll import BusyPoll

_IN_A_ROW_MAX = 64  # Requests answered before other tasks get their turn.


def adapt_loop(device: int) -> None:
    """Have the loop that is to begin never wait in a read, and look before it sleeps."""
    loop = getattr(pyfuse3, "_session_loop", None)
    wait = getattr(pyfuse3, "_wait_fuse_readable", None)
    if loop is None or wait is None:
        return
    pyfuse3._session_loop = _never_waiting_in_read(loop)  # type: ignore[attr-defined]
    pyfuse3._wait_fuse_readable = EagerWait(device, wait)  # type: ignore[attr-defined]
    os.set_blocking(device, False)


def _never_waiting_in_read(
    loop: Callable[..., Awaitable[None]],
) -> Callable[..., Awaitable[None]]:
    """A loop that waits for requests in epoll alone, never in a read of the device.

    A request that epoll told of is gone again when its client is killed before it was read.  A
    read that waits then holds up everything, answers to other clients included, until the next
    request; and there is none if all clients wait for those answers.  pyfuse3 leaves the device
    blocking, and takes EAGAIN for a failure: its loop is begun again after it.
    """

    async def patient_loop(*arguments: object) -> None:
        while True:
            try:
                await loop(*arguments)
            except BlockingIOError:
                continue
            except ConnectionAbortedError:  # As ENODEV, which libfuse takes for the end itself.
                pyfuse3.terminate()
            return

    return patient_loop


class EagerWait:
    """In place of `_wait_fuse_readable`: looks for a request before it asks the event loop.

    The way through the event loop costs more than a small request itself.  The task that has just
    answered one looks first; all others are in `wait`, where one sleeps and the rest queue up.
    After a number of requests the looking task goes there as well, and the sleeping one takes its
    part.  One always has to be in `wait`: when it reads a request and nobody is, pyfuse3 starts
    another task.

    Nobody looks while an answer is under way: the task that is to give it would have to wait.
    """

    def __init__(
        self, device: int, wait: Callable[[], Awaitable[bool]], poll: BusyPoll | None = None
    ) -> None:
        self._wait = wait
        self._poll = poll or BusyPoll(device)
        self._answering: set[trio.lowlevel.Task] = set()
        self._waiting = 0  # Tasks in `wait`.
        self._in_a_row = 0

    async def __call__(self) -> bool:
        """Wait until there is a request; False where the loop is to end."""
        task = trio.lowlevel.current_task()
        self._answering.discard(task)
        while not self._finds_one():
            self._in_a_row = 0
            self._waiting += 1
            try:
                if not await self._wait():
                    return False
            finally:
                self._waiting -= 1
            self._poll.slept()
            # Another task may have taken it, and an empty read ends pyfuse3's loop, which then
            # loses its buffer.
            if self._poll.is_readable():
                break
        self._answering.add(task)
        return True

    def _finds_one(self) -> bool:
        if self._answering or not self._waiting or self._in_a_row == _IN_A_ROW_MAX:
            return False
        self._in_a_row += 1
        return self._poll.finds_one()
