"""Host files that remember what was done to them, and ones that fail: for crashes and full hosts.

`RecordingHost` notes every change and every flush in order, and `crash_states` makes of that what a
disk may hold after a loss of power: everything before a flush that had returned, and any part of
what came after it.  `FailingHost` refuses one change, perhaps halfway through.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from vdisk.errors import HostError
from vdisk.host import HostFile

PAGE = 4096
"""What a host writes back wholly or not at all, in this model; a sector is a part of one."""


@dataclass(frozen=True)
class Event:
    """A change: `data` at `offset`, or, where that is None, a file of `offset` bytes.

    `durable` says that it was before the call returned, whatever else was.
    """

    offset: int
    data: bytes | None
    durable: bool = False

    def parts(self) -> Iterator[Event]:
        """The pieces that may be durable one without the other."""
        if self.data is None:
            yield self
            return
        at = 0
        while at < len(self.data):
            length = PAGE - (self.offset + at) % PAGE
            yield Event(self.offset + at, self.data[at : at + length], self.durable)
            at += length

    def apply(self, content: bytearray) -> None:
        """Do it to a file's content."""
        if self.data is None:
            del content[self.offset :]
            content.extend(bytes(self.offset - len(content)))
            return
        end = self.offset + len(self.data)
        content.extend(bytes(max(0, end - len(content))))
        content[self.offset : end] = self.data


@dataclass
class Log:
    """All events since `base`, the content of the file; `flushes` are event counts, `marks` too.

    A mark is a test's own: (events until then, what it says).
    """

    base: bytes
    events: list[Event] = field(default_factory=list)
    flushes: list[int] = field(default_factory=list)
    marks: list[tuple[int, object]] = field(default_factory=list)

    def mark(self, what: object) -> None:
        """Note `what` at this moment."""
        self.marks.append((len(self.events), what))

    def crash_states(self, count: int, random: Random, variants: int) -> Iterator[bytes]:
        """The file after a crash when `count` events had been begun.

        First, all of them done (the process was killed); then, `variants` times, all before the
        last flush and a random part of the others (the power was lost).
        """
        flushed = max((n for n in self.flushes if n <= count), default=0)
        content = bytearray(self.base)
        for event in self.events[:flushed]:
            event.apply(content)
        yield self._with(content, self.events[flushed:count])
        for _ in range(variants):
            chance = random.choice([0.1, 0.5, 0.9])
            parts = [part for event in self.events[flushed:count] for part in event.parts()]
            kept = [part for part in parts if part.durable or random.random() < chance]
            yield self._with(content, kept)

    @staticmethod
    def _with(content: bytearray, events: list[Event]) -> bytes:
        copy = content[:]
        for event in events:
            event.apply(copy)
        return bytes(copy)


class RecordingHost(HostFile):
    """A host file with a `log`."""

    log: Log

    @classmethod
    def recording(cls, path: Path) -> RecordingHost:
        """Open `path` for writing, and begin to record."""
        host = cls.open(path, writable=True)
        host.log = Log(path.read_bytes())
        return host

    def _write(self, offset: int, data: bytes | memoryview, flags: int) -> None:
        super()._write(offset, data, flags)
        self.log.events.append(Event(offset, bytes(data), flags == os.RWF_DSYNC))

    def try_write(self, offset: int, data: bytes | memoryview) -> bool:
        return False

    def zero(self, offset: int, length: int) -> None:
        before = self.size()
        super().zero(offset, length)
        self._note_zeros(offset, length, before)

    def discard(self, offset: int, length: int) -> None:
        before = self.size()
        super().discard(offset, length)
        self._note_zeros(offset, length, before)

    def _note_zeros(self, offset: int, length: int, size: int) -> None:
        inside = min(length, size - offset)  # Past the end there are zeros already.
        if inside > 0:
            self.log.events.append(Event(offset, bytes(inside)))

    def truncate(self, size: int) -> None:
        super().truncate(size)
        self.log.events.append(Event(size, None))

    def flush(self) -> None:
        super().flush()
        self.log.flushes.append(len(self.log.events))


class FailingHost(HostFile):
    """A host file of which one change fails: that which counts `fail_at` down to nothing.

    A write that fails has written its first half.
    """

    fail_at: int | None = None
    number = errno.ENOSPC

    def _fails(self) -> bool:
        if self.fail_at is None:
            return False
        self.fail_at -= 1
        if self.fail_at >= 0:
            return False
        self.fail_at = None
        return True

    def _error(self) -> HostError:
        return HostError.of(OSError(self.number, os.strerror(self.number)), "write", self.path)

    def _write(self, offset: int, data: bytes | memoryview, flags: int) -> None:
        if self._fails():
            super()._write(offset, data[: len(data) // 2], flags)
            raise self._error()
        super()._write(offset, data, flags)

    def try_write(self, offset: int, data: bytes | memoryview) -> bool:
        return False

    def zero(self, offset: int, length: int) -> None:
        if self._fails():
            raise self._error()
        super().zero(offset, length)

    def discard(self, offset: int, length: int) -> None:
        if self._fails():
            raise self._error()
        super().discard(offset, length)

    def truncate(self, size: int) -> None:
        if self._fails():
            raise self._error()
        super().truncate(size)

    def flush(self) -> None:
        if self._fails():
            raise self._error()
        super().flush()
