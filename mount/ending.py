"""Being told to end: the signals that end a mount, from before it exists until its process ends.

A signal may come at any moment: between the kernel's mount and the first request, while disks are
flushed, again and again.  The first one is remembered and told to whoever waits for it; those that
follow change nothing, for the end is under way.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trio

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def signals_held() -> Iterator[None]:
    """Signals that end a process wait until the block is over, and are delivered then.

    What is begun in the block, and who is to undo it, become known together.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Ending:
    """Whether this process was told to end.  Made once, in the main thread, before the mount."""

    def __init__(self) -> None:
        self.told = False
        self._waiting: tuple[trio.lowlevel.TrioToken, trio.Event] | None = None
        for number in ENDING_SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.told = True
        if self._waiting is not None:
            token, event = self._waiting
            token.run_sync_soon(event.set)

    async def wait(self) -> None:
        """Return when the process was told to end, at once if it was already."""
        import trio

        event = trio.Event()
        self._waiting = trio.lowlevel.current_trio_token(), event
        try:
            if not self.told:
                await event.wait()
        finally:
            self._waiting = None
