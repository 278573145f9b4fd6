"""Raw images: the map is what qemu-img and filefrag see, and a size is exact to the byte."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import PLACES, host_folder
from vdisk.disk import Disk
from vdisk.extent import Extent
from vdisk.open import open_disk
from vdisk.options import OpenOptions

BLOCK = 64 << 10  # A multiple of any page or file system block, so that holes are exact.
BLOCKS = 40

Runs = list[tuple[int, int, str]]


@pytest.fixture(params=sorted(PLACES))
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    with host_folder(request.param) as made:
        yield made


def opened(image: Path, *, writable: bool = False) -> Disk:
    return open_disk(image, writable=writable, options=OpenOptions(format="raw"))


def qemu_map(image: Path) -> Runs:
    """(start, end, kind) by `qemu-img map`, neighbours of a kind joined."""
    line = ["qemu-img", "map", "-U", "-f", "raw", "--output=json", str(image)]
    rows = json.loads(subprocess.run(line, capture_output=True, check=True).stdout)
    kinds = {True: "data", False: "zero"}
    return joined((r["start"], r["start"] + r["length"], kinds[r["data"]]) for r in rows)


def vdisk_map(disk: Disk) -> Runs:
    return [run(extent) for extent in disk.map(0, disk.size)]


def run(extent: Extent) -> tuple[int, int, str]:
    return extent.guest_offset, extent.guest_end, str(extent.kind)


def joined(rows: object) -> Runs:
    found: Runs = []
    for start, end, kind in rows:  # type: ignore[attr-defined]
        if found and found[-1][1:] == (start, kind):
            found[-1] = (found[-1][0], end, kind)
        else:
            found.append((start, end, kind))
    return found


def truth(blocks: list[bool]) -> Runs:
    """The map of an image of which these blocks hold data."""
    rows = ((i * BLOCK, (i + 1) * BLOCK, "data" if b else "zero") for i, b in enumerate(blocks))
    return joined(rows)


@settings(max_examples=40)
@given(blocks=st.lists(st.booleans(), min_size=1, max_size=BLOCKS))
@pytest.mark.parametrize("place", sorted(PLACES))
def test_the_map_of_a_sparse_image_is_what_was_written_and_what_qemu_img_sees(
    place: str, blocks: list[bool]
) -> None:
    with host_folder(place) as folder:
        image = folder / "disk.img"
        with image.open("xb") as file:
            file.truncate(len(blocks) * BLOCK)
            for number, is_data in enumerate(blocks):
                if is_data:
                    file.seek(number * BLOCK)
                    file.write(b"x" * BLOCK)
        with opened(image) as disk:
            assert vdisk_map(disk) == truth(blocks) == qemu_map(image)


def test_a_hole_made_by_fallocate_is_seen_at_once_and_one_filled_is_gone(folder: Path) -> None:
    image = folder / "disk.img"
    image.write_bytes(b"x" * 8 * BLOCK)
    with opened(image, writable=True) as disk:
        line = ["fallocate", "-p", "-o", str(2 * BLOCK), "-l", str(3 * BLOCK), str(image)]
        subprocess.run(line, check=True)
        assert vdisk_map(disk) == truth([True] * 2 + [False] * 3 + [True] * 3) == qemu_map(image)
        disk.write(3 * BLOCK, b"y" * BLOCK)
        assert vdisk_map(disk) == truth(
            [True, True, False, True, False, True, True, True]
        ) == qemu_map(image)
        disk.discard(0, 8 * BLOCK)
        assert vdisk_map(disk) == truth([False] * 8) == qemu_map(image)


@pytest.mark.parametrize("size", [1, 511, 513, 4097, BLOCK + 1])
def test_a_size_of_no_whole_sectors_is_exact(folder: Path, size: int) -> None:
    """qemu-img rounds such a size up to sectors; the map here ends where the file does."""
    image = folder / "disk.img"
    image.write_bytes(b"x" * size)
    with opened(image) as disk:
        assert (disk.size, disk.sectors) == (size, size // 512)
        assert vdisk_map(disk) == [(0, size, "data")]
        assert disk.read(size - 1, 1) == b"x"


def test_the_map_of_the_whole_disk_and_of_any_part_agree(folder: Path) -> None:
    image = folder / "disk.img"
    image.write_bytes(b"x" * 6 * BLOCK)
    with opened(image, writable=True) as disk:
        disk.discard(BLOCK, BLOCK)
        for start, end in ((0, 1), (BLOCK - 1, BLOCK + 1), (BLOCK + 5, 2 * BLOCK + 5)):
            expected = [
                (max(low, start), min(high, end), kind)
                for low, high, kind in qemu_map(image)
                if low < end and high > start
            ]
            assert [run(extent) for extent in disk.map(start, end - start)] == expected


def test_the_runs_of_data_are_the_extents_of_filefrag() -> None:
    """FIEMAP, asked by filefrag of the file system itself; tmpfs has none."""
    with host_folder("disk") as folder:
        image = folder / "disk.img"
        with image.open("xb") as file:
            file.truncate(64 * BLOCK)
            for number in (0, 1, 7, 20, 63):
                file.seek(number * BLOCK)
                file.write(b"x" * BLOCK)
        with opened(image) as disk:
            disk.flush()
            assert [r[:2] for r in vdisk_map(disk) if r[2] == "data"] == filefrag(image)


def filefrag(image: Path) -> list[tuple[int, int]]:
    """(start, end) in bytes of the runs that are allocated, neighbours joined."""
    line = ["filefrag", "-s", "-v", "-b1", str(image)]
    text = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^\s*\d+:\s*(\d+)\.\.\s*(\d+):", text, re.MULTILINE)
    rows = joined((int(low), int(high) + 1, "data") for low, high in found)
    return [row[:2] for row in rows]


def test_a_large_sparse_image_is_mapped_without_looking_at_every_block() -> None:
    """Eight exbibytes but for one byte would take years, block by block."""
    with host_folder("memory") as folder:
        image = folder / "disk.img"
        with image.open("xb") as file:
            file.truncate(2**63 - 4096)
            file.seek(2**62)
            file.write(b"x" * 4096)
        with opened(image) as disk:
            assert vdisk_map(disk) == [
                (0, 2**62, "zero"),
                (2**62, 2**62 + 4096, "data"),
                (2**62 + 4096, 2**63 - 4096, "zero"),
            ]
            assert disk.read(2**62 + 4090, 12) == b"x" * 6 + bytes(6)
            assert disk.geometry.size_bytes <= disk.size
