"""Crashes and full hosts, for every format: what was promised is there, and nothing is damaged.

Every prefix of the host's writes is a killed process; random parts of what was written since the
last flush are a loss of power (`recording`).
"""

from __future__ import annotations

import errno
import subprocess
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from format_cases import CASES, SMALL_CASES, FormatCase, crash_params, make
from model import host_folder
from recording import FailingHost, RecordingHost
from vdisk.errors import HostError
from vdisk.formats.base import ProblemKind
from vdisk.image_disk import ImageDisk
from vdisk.open import open_host, open_image, resize_disk

SECTOR = 512
BLOCKS = 12
_OLD = b"\xee" * SECTOR


class Sectors:
    """A disk of which each write is told from all others, and what a sector may hold after a crash.

    `now` is what each sector holds; `possible` adds everything it held since the last flush.
    """

    def __init__(self, disk: ImageDisk, random: Random) -> None:
        self.disk = disk
        self.random = random
        content = disk.read(0, disk.size)
        self.now = [content[at : at + SECTOR] for at in range(0, len(content), SECTOR)]
        self.possible = [{sector} for sector in self.now]
        self.serial = 0

    def change(self, boundary: int) -> None:
        """One random write, zero, discard or flush."""
        random = self.random
        lba = random.randrange(len(self.now))
        sectors = min(random.randrange(1, 2 * boundary // SECTOR), len(self.now) - lba)
        match random.choice(["write", "write", "write", "zero", "discard", "flush"]):
            case "write":
                self.serial += 1
                block = self.serial.to_bytes(4, "big") * (SECTOR // 4)
                self.expect(lba, sectors, block)
                self.disk.write(lba * SECTOR, block * sectors)
            case "flush":
                self.disk.flush()
                self.flushed()
            case operation:
                self.expect(lba, sectors, bytes(SECTOR))
                getattr(self.disk, operation)(lba * SECTOR, sectors * SECTOR)

    def expect(self, lba: int, sectors: int, block: bytes) -> None:
        """That change has begun."""
        for at in range(lba, lba + sectors):
            self.now[at] = block
            self.possible[at].add(block)

    def flushed(self) -> None:
        """Whatever came before is sure to be there."""
        self.possible = [{sector} for sector in self.now]

    def snapshot(self) -> tuple[list[bytes], list[frozenset[bytes]]]:
        """What is there, and what may be there after a loss of power."""
        return self.now[:], [frozenset(each) for each in self.possible]


def layered(folder: Path, case: FormatCase) -> Path:
    """An image of that kind, with bytes of its own and, where it is an overlay, its parents'."""
    path = folder / f"0.{case.format}"
    size = BLOCKS * case.boundary + case.size_unit
    make(path, case, size)
    for layer in range(1, case.layers):
        with open_image(path, writable=True) as disk:
            disk.write(0, _OLD * (disk.size // SECTOR // (layer + 1)))
        path = folder / f"{layer}.{case.format}"
        make(path, case, size, parent=folder / f"{layer - 1}.{case.format}")
    with open_image(path, writable=True) as disk:
        disk.write(case.boundary, _OLD * (case.boundary // SECTOR + 3))
    return path


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("case", crash_params(SMALL_CASES))
def test_after_a_crash_what_was_flushed_is_there_and_nothing_is_damaged(
    case: FormatCase, seed: int
) -> None:
    with host_folder("memory") as folder:
        path = layered(folder, case)
        random = Random(seed)
        host = RecordingHost.recording(path)
        with open_host(host) as disk:
            sectors = Sectors(disk, random)
            host.log.mark(sectors.snapshot())
            for _ in range(25):
                sectors.change(case.boundary)
                host.log.mark(sectors.snapshot())
        crashed = path.with_name(f"crashed.{case.format}")
        for (begun, before), (ended, after) in pairwise(host.log.marks):
            # A flush that is under way has promised nothing yet.
            allowed = [old | new for old, new in zip(before[1], after[1], strict=True)]
            for count in range(begun, ended + 1):
                states = host.log.crash_states(count, random, 3)
                for number, content in enumerate(states):
                    crashed.write_bytes(content)
                    found = survivors(crashed, number, count == ended and case.layers == 1)
                    for lba, sector in enumerate(found):
                        assert sector in allowed[lba], (count, number, lba)
                    if number == 0 and count == ended and case.layers == 1:
                        assert found == after[0], "a killed process lost an acknowledged write"


def survivors(path: Path, number: int, write: bool) -> list[bytes]:
    """The sectors of an image after a crash, which must open, be sound, and go on being written."""
    with open_image(path, writable=False) as disk:
        content = disk.read(0, disk.size)
    if number == 1 and write:
        with open_image(path, writable=True) as disk:
            disk.write(disk.size - 5 * SECTOR, b"goes on")
            kinds = {problem.kind for problem in disk.image.check()}
            assert ProblemKind.CORRUPTION not in kinds
        with open_image(path, writable=False) as disk:
            expected = bytearray(content)
            expected[-5 * SECTOR : -5 * SECTOR + 7] = b"goes on"
            assert disk.read(0, disk.size) == expected
    return [content[at : at + SECTOR] for at in range(0, len(content), SECTOR)]


@pytest.mark.parametrize("case", crash_params([case for case in CASES if case.witness]))
def test_after_a_crash_qemu_finds_no_more_than_a_leak(case: FormatCase, tmp_path: Path) -> None:
    witness = case.crash_witness or case.witness
    assert witness is not None
    path = layered(tmp_path, case)
    random = Random(1)
    host = RecordingHost.recording(path)
    with open_host(host) as disk:
        for at in (0, 3, 4, 7):
            disk.write(at * case.boundary + 77, b"x" * (case.boundary // 2))
            host.log.mark(None)
    crashed = path.with_name(f"crashed.{case.format}")
    for count in sorted({mark[0] for mark in host.log.marks} | {len(host.log.events)}):
        for content in host.log.crash_states(count, random, 2):
            crashed.write_bytes(content)
            ended = subprocess.run(
                ["qemu-img", "check", str(crashed)], capture_output=True, text=True, check=False
            )
            said = ended.stdout + ended.stderr
            errors = [line for line in said.splitlines() if line.startswith("ERROR")]
            assert all(map(case.tolerates, errors)), said
            with open_image(crashed, writable=True) as disk:
                disk.write(0, b"y")
                list(disk.repair())
            witness(crashed)


@pytest.mark.parametrize("case", crash_params(SMALL_CASES))
def test_a_change_that_the_host_refuses_leaves_the_image_sound_and_it_goes_on(
    case: FormatCase,
) -> None:
    """Each change of the host in turn finds no room, halfway through where it is a write."""
    for fail_at in range(60):
        with host_folder("memory") as folder:
            path = layered(folder, case)
            host = FailingHost.open(path, writable=True)
            with open_host(host) as disk:
                sectors = Sectors(disk, Random(fail_at % 7))
                host.fail_at = fail_at
                refusals = 0
                for _ in range(12):
                    refusals += is_refused(sectors, case)
                    check(disk, sectors)
                failed = host.fail_at is None
                host.fail_at = None
                assert refusals == failed
            with open_image(path, writable=False) as disk:
                check(disk, sectors)
                kinds = {problem.kind for problem in disk.image.check()}
                assert ProblemKind.CORRUPTION not in kinds


def is_refused(sectors: Sectors, case: FormatCase) -> bool:
    """Make a change; whether the host had no room for it."""
    try:
        sectors.change(case.boundary)
    except HostError as error:
        return error.errno == errno.ENOSPC
    return False


def check(disk: ImageDisk, sectors: Sectors) -> None:
    """Each sector is what it was, or, where a change was refused, what it was to become."""
    content = disk.read(0, disk.size)
    for lba, possible in enumerate(sectors.possible):
        sector = content[lba * SECTOR : (lba + 1) * SECTOR]
        assert sector in possible or is_torn(sector, possible), lba
        sectors.now[lba], sectors.possible[lba] = sector, {sector}


def is_torn(sector: bytes, possible: set[bytes]) -> bool:
    """Whether a write ended in the middle of it: its two halves are of what it may hold."""
    half = SECTOR // 2
    return any(sector[:half] == each[:half] for each in possible) and any(
        sector[half:] == each[half:] for each in possible
    )


@pytest.mark.parametrize("case", crash_params([case for case in SMALL_CASES if case.resizes]))
def test_a_resize_that_is_cut_short_leaves_the_old_disk_or_the_new_one(case: FormatCase) -> None:
    for grows in (True, False):
        with host_folder("memory") as folder:
            path = layered(folder, case)
            host = RecordingHost.recording(path)
            with open_host(host) as disk:
                before = disk.read(0, disk.size)
                size = 300 * case.boundary if grows else 3 * case.boundary
                resize_disk(disk, size)
            crashed = path.with_name(f"crashed.{case.format}")
            random = Random(0)
            for count in range(len(host.log.events) + 1):
                for content in host.log.crash_states(count, random, 2):
                    crashed.write_bytes(content)
                    with open_image(crashed, writable=False) as disk:
                        assert disk.size in (len(before), size)
                        kept = min(size, len(before))
                        assert disk.read(0, kept) == before[:kept]
