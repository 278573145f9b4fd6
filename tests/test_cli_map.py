"""`vdisk map`: V against qemu-img, and the device beneath against filefrag."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cli import COMMAND, done, environment, output, refused
from harness import ROOT, make_image, sfdisk
from vdisk.extent import Kind
from vdisk.fiemap import EXTENTS_PER_CALL, DeviceRun, device_runs

MIB = 1 << 20
KIB = 1 << 10


def mapped(*words: str | Path) -> list[dict[str, Any]]:
    rows = json.loads(done("map", "--json", *words))
    assert isinstance(rows, list)
    return rows


def scattered(path: Path, size: int, seed: int) -> Path:
    """A disk with data in a dozen places, the rest of it holes."""
    make_image(path, size)
    random = Random(seed)
    with path.open("r+b") as file:
        for _ in range(12):
            file.seek(random.randrange(0, size - 256 * KIB, 4096))
            file.write(random.randbytes(random.randrange(4096, 256 * KIB, 4096)))
        os.fsync(file.fileno())
    return path


@pytest.mark.parametrize("seed", range(4))
def test_kinds_and_offsets_are_those_of_qemu_img(seed: int, tmp_path: Path) -> None:
    image = scattered(tmp_path / "d.img", 16 * MIB, seed)
    witness = json.loads(output("qemu-img", "map", "-f", "raw", "--output=json", image))
    assert [
        (row["guest_offset"], row["length"], row["host_offset"], row["kind"] == "data")
        for row in mapped(image)
    ] == [(run["start"], run["length"], run["offset"], run["data"]) for run in witness]
    assert {row["host_file"] for row in mapped(image)} == {str(image)}


def test_a_partitions_map_begins_at_its_own_byte_0(tmp_path: Path) -> None:
    image = make_image(tmp_path / "d.img", 8 * MIB)
    sfdisk(image, "label: dos\nstart=2048,size=4096\n")
    output("qemu-io", "-f", "raw", "-c", "write 2M 64K", image)
    assert [(r["guest_offset"], r["length"], r["kind"], r["host_offset"])
            for r in mapped(image / "p1")] == [
        (0, MIB, "zero", MIB), (MIB, 64 * KIB, "data", 2 * MIB),
        (MIB + 64 * KIB, MIB - 64 * KIB, "zero", 2 * MIB + 64 * KIB),
    ]  # fmt: skip


def test_text_says_sectors_and_addresses(tmp_path: Path) -> None:
    image = make_image(tmp_path / "d.img", 8 * MIB)
    output("qemu-io", "-f", "raw", "-c", "write 1M 64K", image)
    rows = [line.split() for line in done("map", image).splitlines()]
    assert rows[0][:5] == ["LBA", "END", "SECTORS", "C/H/S", "KIND"]
    # 16384 sectors by 16 heads and 63: LBA 2048 is cylinder 2, head 0, sector 33.
    assert rows[2] == ["2048", "2176", "128", "2/0/33", "data", str(image), str(MIB)]
    assert [row[0] for row in rows[1:]] == ["0", "2048", "2176"]


def test_a_sector_past_the_last_cylinder_has_no_address(tmp_path: Path) -> None:
    image = make_image(tmp_path / "d.img", 2 * MIB)
    output("qemu-io", "-f", "raw", "-c", "write 0 64K", image)
    rows = [line.split() for line in done("map", image, "--chs", "1/2/3").splitlines()]
    assert [row[3] for row in rows[1:]] == ["0/0/1", "-"]


# The device beneath


@pytest.fixture
def on_device() -> Iterator[Path]:
    """A folder on a file system that knows FIEMAP; /tmp itself may be in memory."""
    for folder in (tempfile.gettempdir(), str(ROOT), "/var/tmp"):
        with tempfile.TemporaryDirectory(dir=folder) as made:
            probe = make_image(Path(made) / "probe", 4096)
            ended = subprocess.run(["filefrag", probe], capture_output=True, check=False)
            if ended.returncode == 0 and b"Operation not supported" not in ended.stderr:
                yield Path(made)
                return
    pytest.fail("no folder here is on a file system with FIEMAP")


def filefrag(image: Path) -> list[tuple[int, int, int]]:
    """(logical, physical, length) in bytes of each extent, as filefrag -v prints them."""
    lines = output("filefrag", "-v", "-b1", image).splitlines()
    pattern = re.compile(r"\s*\d+:\s*(\d+)\.\.\s*(\d+):\s*(\d+)\.\.\s*(\d+):\s*(\d+):")
    return [
        (int(found[1]), int(found[3]), int(found[5]))
        for line in lines
        if (found := pattern.match(line))
    ]


def test_physical_is_what_filefrag_says(on_device: Path) -> None:
    image = scattered(on_device / "d.img", 16 * MIB, 7)
    rows = mapped("--physical", image)
    device = os.stat(image).st_dev
    name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if not name.exists():  # A file system on no single device: nothing may be claimed.
        assert {row["device_offset"] for row in rows} == {None}
        return
    assert {row["device"] for row in rows} == {f"/dev/{name.resolve().name}"}
    extents = filefrag(image)
    assert len(extents) > 1
    for row in rows:
        # Each row lies in one of filefrag's extents, or in none.
        start, end = row["host_offset"], row["host_offset"] + row["length"]
        around = [e for e in extents if e[0] <= start and end <= e[0] + e[2]]
        if row["kind"] == "data":
            (found,) = around
            assert row["device_offset"] == found[1] + start - found[0]
        else:
            assert (around, row["device_offset"], row["reason"]) == ([], None, "hole")
    sizes = sum(row["length"] for row in rows if row["kind"] == "data")
    assert sizes == sum(length for _, _, length in extents)


def test_physical_in_text_counts_sectors_of_512(on_device: Path) -> None:
    image = make_image(on_device / "d.img", MIB)
    output("qemu-io", "-f", "raw", "-c", "write 64K 64K", image)
    os.sync()
    ((_, physical, _),) = filefrag(image)
    line = next(line for line in done("map", "--physical", image).splitlines() if " data " in line)
    if "/dev/" in line:
        assert line.split()[-1] == str(physical // 512)


def test_allocated_and_never_written_has_a_place_and_that_is_said(on_device: Path) -> None:
    image = make_image(on_device / "d.img", MIB)
    output("fallocate", "-n", "-l", "64K", image)
    rows = [row for row in mapped("--physical", image) if row["host_offset"] < 64 * KIB]
    if (rows[0]["device"] or "").startswith("/dev/"):
        ((_, physical, _),) = filefrag(image)
        assert {row["reason"] for row in rows} == {"allocated, not written"}
        assert {row["device_offset"] - row["host_offset"] for row in rows} == {physical}


def test_a_file_system_without_fiemap_is_named() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # Which is in memory.
        image = make_image(Path(folder) / "d.img", MIB)
        text = refused("map", "--physical", image)
        assert str(image) in text
        assert "does not tell" in text
        # JSON that was begun must not look complete.
        ended = subprocess.run(
            [*COMMAND, "map", "--json", "--physical", str(image)], capture_output=True,
            env=environment(), check=False,
        )  # fmt: skip
        assert ended.returncode == 1
        with pytest.raises(json.JSONDecodeError):
            json.loads(ended.stdout)


# The structures, made by hand after include/uapi/linux/fiemap.h.

LAST, UNKNOWN, DELALLOC, ENCODED, INLINE, UNWRITTEN = 1, 2, 4, 8, 0x200, 0x800


def kernel(
    extents: list[tuple[int, int, int, int]], asked: list[tuple[int, int]] | None = None
) -> Callable[[bytearray], None]:
    """A file system with these (logical, physical, length, flags), answering as the kernel does."""

    def ask(buffer: bytearray) -> None:
        start, length, _, _, room, _ = struct.unpack_from("=QQLLLL", buffer)
        if asked is not None:
            asked.append((start, length))
        inside = [e for e in extents if e[0] < start + length and e[0] + e[2] > start][:room]
        struct.pack_into("=L", buffer, 20, len(inside))
        for at, (logical, physical, size, flags) in enumerate(inside):
            struct.pack_into(
                "=QQQQQLLLL", buffer, 32 + 56 * at, logical, physical, size, 0, 0, flags, 0, 0, 0
            )

    return ask


def summary(runs: Iterator[DeviceRun]) -> list[tuple[int, int, int | None, str | None]]:
    return [(run.guest_offset, run.guest_end, run.host_offset, run.reason) for run in runs]


def test_gaps_are_holes_and_extents_are_cut_to_the_range() -> None:
    ask = kernel([(0, 100_000, 8192, 0), (16384, 500_000, 8192, LAST)])
    assert summary(device_runs(ask, 4096, 24576)) == [
        (4096, 8192, 104_096, None),
        (8192, 16384, None, "hole"),
        (16384, 24576, 500_000, None),
        (24576, 28672, None, "hole"),
    ]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (UNKNOWN, "not known"),
        (UNKNOWN | DELALLOC, "not known"),
        (DELALLOC, "not yet allocated"),
        (ENCODED, "encoded"),
        (INLINE, "metadata"),
    ],
)
def test_a_place_that_means_nothing_is_not_told(flags: int, said: str) -> None:
    (run,) = device_runs(kernel([(0, 12345, 4096, flags | LAST)]), 0, 4096)
    assert (run.kind, run.host_offset) == (Kind.DATA, None)
    assert said in (run.reason or "")


def test_more_extents_than_fit_one_call() -> None:
    count = 3 * EXTENTS_PER_CALL + 5
    extents = [(at * 8192, at * 16384, 4096, 0) for at in range(count)]
    extents[-1] = (*extents[-1][:3], LAST)
    asked: list[tuple[int, int]] = []
    runs = list(device_runs(kernel(extents, asked), 0, count * 8192))
    assert [(r.guest_offset, r.host_offset) for r in runs if r.host_offset is not None] == [
        (logical, physical) for logical, physical, _, _ in extents
    ]
    assert len(asked) == 4


def test_an_answer_that_does_not_go_forward_ends() -> None:
    # As a broken file system might answer: the same extent again and again, or backwards.
    def ask(buffer: bytearray) -> None:
        struct.pack_into("=L", buffer, 20, 2)
        struct.pack_into("=QQQQQLLLL", buffer, 32, 4096, 1, 4096, 0, 0, 0, 0, 0, 0)
        struct.pack_into("=QQQQQLLLL", buffer, 88, 0, 1, 4096, 0, 0, 0, 0, 0, 0)

    runs = list(device_runs(ask, 0, 1 << 40))
    assert len(runs) < 10
    assert runs[0].guest_offset == 0
    assert runs[-1].guest_end == 1 << 40
    assert all(a.guest_end == b.guest_offset for a, b in pairwise(runs))


def test_a_count_larger_than_the_room_is_not_believed() -> None:
    def ask(buffer: bytearray) -> None:
        struct.pack_into("=L", buffer, 20, 2**32 - 1)

    assert list(device_runs(ask, 0, 4096))[-1].guest_end == 4096
