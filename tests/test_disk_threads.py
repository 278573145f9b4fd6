"""Several threads on one disk: no request moves another's bytes, whatever they overlap."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from format_cases import SMALL_CASES, empty_disk
from model import PLACES, host_folder
from vdisk.disk import Disk, Slice
from vdisk.open import open_disk
from vdisk.options import OpenOptions

THREADS = 8
SHARE = 256 << 10
ROUNDS = 60


@pytest.fixture(params=sorted(PLACES))
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    with host_folder(request.param) as made:
        yield made


@pytest.fixture(params=["whole", "slice", *map(str, SMALL_CASES)])
def disk(request: pytest.FixtureRequest, folder: Path) -> Iterator[Disk]:
    """A disk of zeros: raw, a slice of one, and each format, allocating as it is written."""
    for case in SMALL_CASES:
        if request.param == str(case):
            with empty_disk(folder, case, THREADS * SHARE) as opened:
                yield opened
            return
    path = folder / "disk.img"
    lead = 1000 if request.param == "slice" else 0
    path.write_bytes(bytes(lead + THREADS * SHARE))
    with open_disk(path, writable=True, options=OpenOptions(format="raw")) as whole:
        yield Slice(whole, lead, THREADS * SHARE, address="part") if lead else whole


def together(work: Callable[[int], None]) -> None:
    """`work(0)` to `work(THREADS - 1)`, all begun at one moment; an error of any is raised."""
    start = threading.Barrier(THREADS)

    def one(number: int) -> None:
        start.wait(timeout=30)
        work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(one, number) for number in range(THREADS)]:
            done.result(timeout=60)


def test_threads_on_ranges_of_their_own_each_see_a_plain_byte_array(disk: Disk) -> None:
    """Ranges that touch; each thread reads, writes, zeroes, discards and maps at unaligned ends."""
    models = [bytearray(SHARE) for _ in range(THREADS)]

    def work(number: int) -> None:
        random, model, base = Random(number), models[number], number * SHARE
        for _ in range(ROUNDS):
            offset = random.randrange(SHARE)
            length = random.randrange(1, min(20000, SHARE - offset) + 1)
            what = random.randrange(4)
            if what == 0:
                model[offset : offset + length] = block = random.randbytes(length)
                disk.write(base + offset, block)
            elif what == 1:
                model[offset : offset + length] = bytes(length)
                random.choice([disk.zero, disk.discard])(base + offset, length)
            elif what == 2:
                runs = list(disk.map(base + offset, length))
                assert sum(run.length for run in runs) == length
            assert disk.read(base + offset, length) == model[offset : offset + length]

    together(work)
    assert disk.read(0, disk.size) == b"".join(models)


def test_of_overlapping_writes_each_byte_is_from_one_of_them_and_at_its_own_place(
    disk: Disk,
) -> None:
    """Every thread writes the whole disk in blocks; byte i is (i + thread) mod 251, so that a byte
    that strayed shows.  Which thread wins is open; that it is one of them is not."""
    size = 3 * SHARE

    def pattern(number: int, offset: int, length: int) -> bytes:
        first = (offset + number) % 251
        return (bytes(range(251)) * (length // 251 + 2))[first : first + length]

    def work(number: int) -> None:
        random = Random(number)
        starts = list(range(0, size, 5000))
        random.shuffle(starts)
        for start in starts:
            length = min(5000 + number, size - start)
            disk.write(start, pattern(number, start, length))
            disk.read(start, length)

    together(work)
    found = disk.read(0, size)
    strayed = [i for i, byte in enumerate(found) if (byte - i) % 251 >= THREADS]
    assert strayed == []


def test_a_map_taken_while_others_write_is_a_map(disk: Disk) -> None:
    """Holes come and go under it; it still covers the range without a gap (else pieces raises)."""

    def work(number: int) -> None:
        random = Random(number)
        for _ in range(ROUNDS):
            offset = random.randrange(THREADS) * SHARE
            if number % 2:
                random.choice([disk.discard, disk.zero])(offset, SHARE)
                disk.write(offset + 4096, b"x" * 4096)
                continue
            at = 0
            for run in disk.map(0, disk.size):
                assert run.guest_offset == at
                assert run.length > 0
                at = run.guest_end
            assert at == disk.size

    together(work)
