"""A progress bar for what takes long, where somebody looks at standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE_SECONDS = 0.7
"""How long something takes before a bar is drawn for it."""


@contextmanager
def progress(label: str, total_bytes: int | None) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the bytes done since it was called last.

    A `total_bytes` of None is not known yet.  The bar appears on a terminal only, and there only
    for what is not over at once; it is gone when the context ends.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda count: None
        return
    bar = _Bar(label, total_bytes)
    try:
        yield bar.advance
    finally:
        bar.stop()


class _Bar:
    def __init__(self, label: str, total_bytes: int | None) -> None:
        self._label = label
        self._total = total_bytes
        self._done = 0
        self._begun = time.monotonic()
        self._drawn: Progress | None = None

    def advance(self, count: int) -> None:
        self._done += count
        if self._drawn is None and time.monotonic() - self._begun > PATIENCE_SECONDS:
            self._drawn = _new_bar()
            self._drawn.add_task(self._label, total=self._total)
            self._drawn.start()
        if self._drawn is not None:
            self._drawn.update(self._drawn.task_ids[0], completed=self._done)

    def stop(self) -> None:
        if self._drawn is not None:
            self._drawn.stop()


def _new_bar() -> Progress:
    # Reading rich takes longer than most commands do.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
