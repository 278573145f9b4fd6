"""A write load with a journal of what was acknowledged, and the judge of what is there afterwards.

Run as a program (by somebody who may look into the mount), it writes until it is refused.  Each
writer is a thread with slots of its own: byte ranges of one file of the mount.  A write fills one
slot with bytes that tell the writer, the write's serial number and the slot, and only once all
of it is written (and, for a syncing writer, fsync has returned) is the serial number added to the
journal.  The slots come from the writer's own random numbers, so the judge knows which slot each
serial number went to, and which one the write went to that was under way at the end.

It prints "under way" when every writer has had `ENOUGH` writes acknowledged, then for each writer
a list of the errno of the first refused write and of one more, and stays, with the files open,
until its standard input ends.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random

SLOT = 6000  # Bytes; a page has parts of several.
ENOUGH = 150


@dataclass(frozen=True)
class Writer:
    """Who writes which slots: slot k is `SLOT` bytes from `start` + k * `stride` in `file`."""

    number: int
    file: str
    start: int
    stride: int
    slots: int
    syncs: bool = False

    def words(self) -> str:
        """As one word of a command line."""
        return f"{self.number}:{self.file}:{self.start}:{self.stride}:{self.slots}:{self.syncs:d}"

    @staticmethod
    def parse(word: str) -> Writer:
        """The inverse of `words`."""
        number, file, *rest = word.split(":")
        start, stride, slots, syncs = map(int, rest)
        return Writer(int(number), file, start, stride, slots, bool(syncs))

    def targets(self) -> Iterator[int]:
        """The slot of each write, in order; without end."""
        random = Random(self.number)
        while True:
            yield random.randrange(self.slots)

    def content(self, serial: int, slot: int) -> bytes:
        """The bytes of a slot after that write."""
        text = b"writer %d, write %d, slot %d; " % (self.number, serial, slot)
        return (text * (SLOT // len(text) + 1))[:SLOT]


def judge(writer: Writer, journal: Path, slot_bytes: Callable[[int], bytes]) -> int:
    """Compare every slot with the journal; the number of writes that were acknowledged.

    The one write that was under way may have left its slot as before, done, or partly done.
    """
    acknowledged = (journal / str(writer.number)).read_bytes().count(b"\n")
    expected: dict[int, bytes] = {}
    targets = writer.targets()
    for serial in range(acknowledged):
        slot = next(targets)
        expected[slot] = writer.content(serial, slot)
    last = next(targets)
    for slot in range(writer.slots):
        old = expected.get(slot, bytes(SLOT))
        found = slot_bytes(slot)
        if slot == last and found != old:
            new = writer.content(acknowledged, slot)
            assert all(byte in both for byte, *both in zip(found, old, new, strict=True)), slot
        else:
            assert found == old, f"writer {writer.number} lost a write to slot {slot}"
    return acknowledged


def _write(writer: Writer, folder: Path, journal: Path, enough: threading.Barrier) -> None:
    file = os.open(folder / writer.file, os.O_RDWR)
    log = os.open(journal / str(writer.number), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    refusals = []
    targets = writer.targets()
    for serial in count():
        slot = next(targets)
        try:
            _put(file, writer, serial, slot)
        except OSError as error:
            refusals.append(error.errno)
            break
        os.write(log, b"%d\n" % serial)
        if serial == ENOUGH:
            enough.wait()
    try:
        _put(file, writer, 0, 0)
    except OSError as error:
        refusals.append(error.errno)
    os.write(1, f"{refusals}\n".encode())  # One write, for the threads do not take turns.


def _put(file: int, writer: Writer, serial: int, slot: int) -> None:
    data = writer.content(serial, slot)
    start, done = writer.start + slot * writer.stride, 0
    while done < SLOT:  # The kernel may split a write and report the part that was done.
        done += os.pwrite(file, data[done:], start + done)
    if writer.syncs:
        os.fsync(file)


def _read(path: Path, length: int) -> None:
    """Reads that lock the pages others write beside.

    Who opens a disk for reading only may be given the host file, which goes on without the mount.
    """
    file, random = os.open(path, os.O_RDWR), Random(0)
    try:
        while True:
            os.pread(file, 65536, random.randrange(length))
    except OSError:
        return


def main(folder: Path, journal: Path, read_name: str, read_length: str, words: list[str]) -> None:
    """Start all writers and a reader, wait for them, and stay."""
    writers = [Writer.parse(word) for word in words]
    enough = threading.Barrier(len(writers), lambda: os.write(1, b"under way\n"))
    threads = [
        threading.Thread(target=_write, args=(writer, folder, journal, enough))
        for writer in writers
    ]
    threads.append(threading.Thread(target=_read, args=(folder / read_name, int(read_length))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(1, b"ended\n")
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:])
