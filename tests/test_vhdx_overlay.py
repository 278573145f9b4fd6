"""VHDX images below and above one another: committed, rebased; and compacted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from libvhdi import expect_libvhdi, libvhdi_info
from test_overlay import change, held, interrupted_at, quiet
from test_vhdx import create, overlay_in_part

import qemu
from cli import done
from model import host_folder
from recording import RecordingHost
from vdisk.compact import compact
from vdisk.errors import Corrupt, InvalidArgument
from vdisk.extent import Kind
from vdisk.open import NO_OPTIONS, open_host, open_image
from vdisk.overlay import change_parent, commit, empty_overlay, rebase

MIB = 1 << 20
SIZE = 4 * MIB + 512


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory: it has holes, and takes no time."""
    with host_folder("memory") as made:
        yield made


def pair(folder: Path, seed: int = 1, larger: int = 0) -> tuple[Path, Path, bytearray]:
    """Base, overlay, and what that reads as."""
    base, content = create(folder / "base.vhdx", SIZE), bytearray(SIZE)
    change(base, content, seed)
    overlay = create(folder / "overlay.vhdx", SIZE + larger, base)
    content += bytes(larger)
    change(overlay, content, seed + 1, 5)
    return base, overlay, content


@pytest.mark.parametrize("larger", [0, 3 * MIB])
def test_a_commit_brings_all_into_the_parent(folder: Path, larger: int) -> None:
    base, overlay, content = pair(folder, larger=larger)
    other = create(folder / "other.vhdx", parent=base)
    commit(overlay, NO_OPTIONS, quiet)
    assert held(overlay) == held(base) == content
    assert libvhdi_info(overlay)["parent_identifier"] == libvhdi_info(base)["id"]
    qemu.check(base, "vhdx")
    qemu.expect(base, "vhdx", content)
    with pytest.raises(Corrupt, match="rebase --unsafe"):
        held(other)
    change_parent(other, base, NO_OPTIONS)
    assert held(other) == content[:SIZE]
    empty_overlay(overlay, NO_OPTIONS)
    assert held(overlay) == content
    with open_image(overlay, writable=False) as disk:
        assert disk.image.creation_options() == {"block-size": str(MIB)}


def test_an_interrupted_commit_leaves_the_overlay_as_it_reads_and_can_be_repeated(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the parent's first write and the end, the overlay knows both of its states."""
    base, overlay, content = pair(folder, 21)
    saved = [(path, path.read_bytes()) for path in (base, overlay)]
    count = 0
    while True:
        for path, before in saved:
            path.write_bytes(before)
        if not interrupted_at(count, monkeypatch, lambda: commit(overlay, NO_OPTIONS, quiet)):
            break
        assert held(overlay, clean=False) == content, count
        if count % 4 == 0:
            commit(overlay, NO_OPTIONS, quiet)
            assert held(base) == held(overlay) == content, count
        count += 1
    assert count > 10


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_after_a_rebase_the_overlay_reads_as_before(folder: Path, sector_size: int) -> None:
    """Onto a parent of another size, onto none, and onto one again."""
    paths = [folder / f"{number}.vhdx" for number in range(3)]
    for path, size in zip(paths[:2], (4 * MIB, 6 * MIB), strict=True):
        create(path, size, sector_size=sector_size)
        change(path, bytearray(size), size)
    overlay = create(paths[2], 5 * MIB, paths[0])
    change(overlay, bytearray(5 * MIB), 3, 3)
    content = held(overlay)
    rebase(overlay, paths[1], NO_OPTIONS, quiet)
    paths[0].unlink()
    assert held(overlay) == content
    expect_libvhdi([overlay, paths[1]], content)
    rebase(overlay, None, NO_OPTIONS, quiet)
    assert held(overlay) == content
    expect_libvhdi([overlay], content)
    if sector_size == 512:
        qemu.check(overlay, "vhdx")
        qemu.expect(overlay, "vhdx", content)
    rebase(overlay, paths[1], NO_OPTIONS, quiet)
    assert held(overlay) == content
    expect_libvhdi([overlay, paths[1]], content)


def test_an_interrupted_rebase_leaves_the_overlay_as_it_reads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Onto another parent, and onto none."""
    _, overlay, content = pair(folder, 31)
    second = create(folder / "second.vhdx", SIZE)
    before = overlay.read_bytes()
    for target in (second, None):
        count = 0
        while interrupted_at(
            count, monkeypatch, lambda: rebase(overlay, target, NO_OPTIONS, quiet)  # noqa: B023
        ):
            assert held(overlay, clean=False) == content, count
            overlay.write_bytes(before)
            count += 1
        assert count > 3
        assert held(overlay) == content
        overlay.write_bytes(before)


def test_without_a_parent_no_block_is_here_in_part(tmp_path: Path) -> None:
    """Also where the parent had nothing that would have to be brought in."""
    base, overlay, content = overlay_in_part(tmp_path)
    with open_image(base, writable=True) as disk:
        disk.discard(0, disk.size)
    for at in range(0, len(content), 512):
        if content[at : at + 1] == b"P":
            content[at : at + 512] = bytes(512)
    change_parent(overlay, base, NO_OPTIONS)
    assert held(overlay) == content
    done("rebase", overlay, "--no-parent")
    base.unlink()
    assert held(overlay, clean=False) == content
    done("compact", overlay)  # What the bitmap took up.
    assert held(overlay) == content
    qemu.check(overlay, "vhdx")
    qemu.expect(overlay, "vhdx", content)


def test_often_rebased_an_image_finds_room_for_what_it_says_of_its_parent(folder: Path) -> None:
    bases = [create(folder / f"{number}{'n' * 60 * number}.vhdx", MIB) for number in range(3)]
    overlay = create(folder / "overlay.vhdx", MIB, bases[0])
    with open_image(overlay, writable=True) as disk:
        disk.write(5, b"kept")
    size = overlay.stat().st_size
    for number in range(300):
        change_parent(overlay, bases[number % 3], NO_OPTIONS)
    assert held(overlay)[:9] == b"\0\0\0\0\0kept"
    assert overlay.stat().st_size == size
    expect_libvhdi([overlay, bases[2]], held(overlay))


def test_what_cannot_be_beneath_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    base, overlay, _ = pair(tmp_path)
    raw, coarse = tmp_path / "raw.img", tmp_path / "coarse.vhdx"
    raw.write_bytes(bytes(SIZE))
    create(coarse, 4 * MIB, sector_size=4096)
    fixed = create(tmp_path / "fixed.vhdx", MIB, subformat="fixed")
    before = overlay.read_bytes(), fixed.read_bytes()
    for path, parent, why in (
        (overlay, raw, "needs a VHDX image"), (overlay, coarse, "4096"),
        (fixed, base, "never fixed"),
    ):  # fmt: skip
        with pytest.raises(InvalidArgument, match=why):
            rebase(path, parent, NO_OPTIONS, quiet)
    assert before == (overlay.read_bytes(), fixed.read_bytes())


# Compacting


@pytest.mark.parametrize("layered", [False, True])
def test_compacting_gives_back_what_is_zeros_and_changes_nothing(
    folder: Path, layered: bool
) -> None:
    size = 12 * MIB
    path, content = create(folder / "base.vhdx", size), bytearray(Random(3).randbytes(size))
    with open_image(path, writable=True) as disk:
        disk.write(0, content)
    if layered:
        path = create(folder / "overlay.vhdx", parent=path)
        with open_image(path, writable=True) as disk:
            disk.write(0, content)
    with open_image(path, writable=True) as disk:
        disk.write(2 * MIB, bytes(5 * MIB))
        content[2 * MIB : 7 * MIB] = bytes(5 * MIB)
        compact(disk, quiet)
        assert disk.image.plan_compact() is None
        used = sum(e.length for e in disk.image.map(0, size) if e.kind is Kind.DATA)
    assert held(path) == content
    assert used == 7 * MIB
    # Header, log, metadata and block table take a MiB each.
    assert path.stat().st_size == 4 * MIB + used


def test_a_compacted_image_is_smaller_and_sound_to_qemu(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    content = bytearray(16 * MIB)
    qemu.create(path, "vhdx", len(content), block_size="1M")
    qemu.scatter(path, "vhdx", content, Random(7), 30)
    for at in range(0, len(content) - 2 * MIB, 3 * MIB):
        qemu.qemu("qemu-io", "-f", "vhdx", "-c", f"write -q -P 0 {at} 2M", path)
        content[at : at + 2 * MIB] = bytes(len(content[at : at + 2 * MIB]))
    before = path.stat().st_size
    assert "given back" in done("compact", path)
    assert path.stat().st_size <= before - 5 * MIB
    qemu.expect(path, "vhdx", content)
    qemu.check(path, "vhdx")
    assert "0 bytes given back" in done("compact", path)


def test_a_compaction_that_a_crash_ends_has_lost_nothing(folder: Path) -> None:
    size = 6 * MIB
    path, content = create(folder / "disk.vhdx", size), bytearray(size)
    with open_image(path, writable=True) as disk:
        for block in (3, 0, 4, 1, 5):
            data = Random(block).randbytes(MIB) if block % 2 else bytes(MIB)
            disk.write(block * MIB, b"\1" * MIB)
            disk.write(block * MIB, data)
            content[block * MIB : (block + 1) * MIB] = data
    host = RecordingHost.recording(path)
    with open_host(host) as disk:
        compact(disk, quiet)
    crashed, random = folder / "crashed.vhdx", Random(1)
    for count in range(len(host.log.events) + 1):
        for state in host.log.crash_states(count, random, 2):
            crashed.write_bytes(state)
            with open_image(crashed, writable=False) as disk:
                assert disk.read(0, size) == content, count
    assert path.stat().st_size == 7 * MIB
