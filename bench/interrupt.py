"""Ctrl-C and SIGTERM: they end the benchmark, but never between a start and its clean-up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked us to end; `number` says which.  Not an Exception, so nothing swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _State:
    """`held` counts the `held()` blocks around us; `pending` is the signal that waits for them."""

    held = 0
    pending: int | None = None


def catch_signals() -> None:
    """From now on the first signal raises `Interrupted` in the main thread; later ones do nothing.

    A second Ctrl-C must not cut short the clean-up that the first one began.
    """
    for number in _SIGNALS:
        signal.signal(number, _caught)


def _caught(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        # A handler and not SIG_IGN, which the programs that clean up would inherit.
        signal.signal(each, lambda number, frame: None)
    if _State.held:
        _State.pending = number
    else:
        raise Interrupted(number)


@contextmanager
def held() -> Iterator[None]:
    """What is inside is finished before a signal is heard."""
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1
        if _State.pending is not None and not _State.held:
            number, _State.pending = _State.pending, None
            raise Interrupted(number)
