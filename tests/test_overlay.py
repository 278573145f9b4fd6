"""Commit, rebase and compact: what a disk reads as never changes, also when interrupted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qemu
from cli import done, refused
from format_cases import FormatCase, make
from harness import sfdisk
from model import host_folder
from recording import RecordingHost
from vdisk.compact import compact
from vdisk.errors import Corrupt, InvalidArgument, NotPermitted, Unsupported
from vdisk.extent import Kind, pieces
from vdisk.formats.base import ProblemKind
from vdisk.host import HostFile
from vdisk.open import NO_OPTIONS, OpenOptions, open_host, open_image
from vdisk.overlay import change_parent, commit, empty_overlay, rebase

KIB, MIB = 1 << 10, 1 << 20
SIZE = 3 * MIB
CASE = FormatCase("vdi", 64 * KIB, {"block-size": "64K"})


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory: it has holes, and takes no time."""
    with host_folder("memory") as made:
        yield made


def quiet(count: int) -> None:
    """Progress that nobody looks at."""


def change(path: Path, content: bytearray, seed: int, count: int = 8) -> None:
    """Write, zero and discard at random, in the image and in `content`."""
    random = Random(seed)
    with open_image(path, writable=True) as disk:
        for _ in range(count):
            offset = random.randrange(disk.size)
            length = min(random.choice([1, 512, 5000, 64 * KIB, 200_000]), disk.size - offset)
            match random.choice(["write", "write", "zero", "discard"]):
                case "write":
                    block = random.randbytes(length)
                    disk.write(offset, block)
                case operation:
                    block = bytes(length)
                    getattr(disk, operation)(offset, length)
            content[offset : offset + length] = block


def new(path: Path, parent: Path | None = None, size: int = SIZE) -> Path:
    return make(path, CASE, size, parent)


def held(path: Path, *, clean: bool = True) -> bytes:
    """All that the image reads as; its structure is sound, or, not `clean`, as a crash leaves it.
    """
    with open_image(path, writable=False) as disk:
        allowed = set() if clean else {ProblemKind.UNCLEAN, ProblemKind.LEAK}
        assert {problem.kind for problem in disk.image.check()} <= allowed
        return disk.read(0, disk.size)


@given(seed=st.integers(0, 2**16), larger=st.sampled_from([0, 64 * KIB, 70_144]))
@settings(max_examples=12)
def test_a_commit_brings_all_into_the_parent(seed: int, larger: int) -> None:
    with host_folder("memory") as folder:
        base = new(folder / "base.vdi")
        content = bytearray(SIZE)
        change(base, content, seed)
        overlay = new(folder / "overlay.vdi", base, SIZE + larger)
        content += bytes(larger)
        change(overlay, content, seed + 1)
        other = new(folder / "other.vdi", base)
        assert commit(overlay, NO_OPTIONS, quiet) == base
        assert held(overlay) == held(base) == content
        with pytest.raises(Corrupt, match="rebase --unsafe"):
            held(other)
        empty_overlay(overlay, NO_OPTIONS)
        assert held(overlay) == content
        with open_image(overlay, writable=False) as disk:
            runs = pieces(disk.image.map(0, disk.size), 0, disk.size)
            assert {extent.kind for extent, _ in runs} == {Kind.PARENT}
            assert disk.image.creation_options() == {"block-size": str(64 * KIB)}


def test_what_was_committed_is_there_for_qemu(tmp_path: Path) -> None:
    """And the command says so; with --remove the overlay is gone."""
    base, overlay = tmp_path / "base.vdi", tmp_path / "overlay.vdi"
    content = bytearray(SIZE)
    qemu.create(base, "vdi", SIZE)
    qemu.scatter(base, "vdi", content, Random(4), 6)
    os.chmod(base, 0o640)
    done("snapshot", base, "--to", overlay)
    os.chmod(overlay, 0o600)
    change(overlay, content, 5)
    assert done("commit", overlay) == f"{base}: has what {overlay} held\n"
    assert overlay.stat().st_mode & 0o777 == 0o600
    qemu.expect(base, "vdi", content)
    qemu.check(base, "vdi")
    change(overlay, content, 6)
    done("commit", "--remove", overlay)
    qemu.expect(base, "vdi", content)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.vdi"]


def test_committing_the_middle_of_a_chain(folder: Path) -> None:
    contents = []
    content = bytearray(SIZE)
    paths = [new(folder / "0.vdi")]
    for number in (1, 2):
        change(paths[-1], content, number)
        contents.append(bytes(content))
        paths.append(new(folder / f"{number}.vdi", paths[-1]))
    change(paths[2], content, 9)
    commit(paths[2], NO_OPTIONS, quiet)
    assert held(paths[2]) == held(paths[1]) == content
    assert held(paths[0]) == contents[0]


class _Killed(BaseException):
    """What ends a process in the middle of anything."""


def interrupted_at(
    count: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]
) -> bool:
    """Do `work`, whose write number `count` to a host never comes; whether that was met."""
    left = count

    def write(self: HostFile, offset: int, data: bytes | memoryview, flags: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise _Killed
        original(self, offset, data, flags)

    original = HostFile._write
    with monkeypatch.context() as patch:
        patch.setattr(HostFile, "_write", write)
        try:
            work()
        except _Killed:
            return True
        return False


def test_an_interrupted_commit_leaves_the_overlay_as_it_reads_and_can_be_repeated(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = new(folder / "base.vdi", size=MIB)
    content = bytearray(MIB)
    change(base, content, 21)
    overlay = new(folder / "overlay.vdi", base, MIB)
    change(overlay, content, 22)
    saved = [(path, path.read_bytes()) for path in (base, overlay)]
    count = 0
    while True:
        for path, before in saved:
            path.write_bytes(before)
        if not interrupted_at(count, monkeypatch, lambda: commit(overlay, NO_OPTIONS, quiet)):
            break
        assert held(overlay, clean=False) == content, count
        commit(overlay, NO_OPTIONS, quiet)
        assert held(base) == content, count
        count += 1
    assert count > 5


@given(seed=st.integers(0, 2**16), sizes=st.tuples(*3 * [st.sampled_from([MIB, SIZE, 70_144])]))
@settings(max_examples=15)
def test_after_a_rebase_the_overlay_reads_as_before(
    seed: int, sizes: tuple[int, int, int]
) -> None:
    """Whichever of the three is the largest."""
    with host_folder("memory") as folder:
        first, second = new(folder / "1.vdi", size=sizes[0]), new(folder / "2.vdi", size=sizes[1])
        change(first, bytearray(sizes[0]), seed)
        change(second, bytearray(sizes[1]), seed + 1)
        overlay = new(folder / "overlay.vdi", first, sizes[2])
        change(overlay, bytearray(sizes[2]), seed + 2, 3)
        content = held(overlay)
        rebase(overlay, second, NO_OPTIONS, quiet)
        first.unlink()
        assert held(overlay) == content
        with open_image(overlay, writable=False) as disk:
            assert disk.image.parent is not None
            assert disk.image.parent.address == str(second)
        rebase(overlay, None, NO_OPTIONS, quiet)
        second.unlink()
        assert held(overlay) == content
        rebase(overlay, new(second), NO_OPTIONS, quiet)
        assert held(overlay) == content


def test_without_a_parent_it_is_an_image_that_qemu_reads(tmp_path: Path) -> None:
    base, overlay = make(tmp_path / "base.vdi", FormatCase("vdi", MIB), SIZE), tmp_path / "o.vdi"
    content = bytearray(SIZE)
    change(base, content, 31)
    done("snapshot", base, "--to", overlay)
    change(overlay, content, 32)
    assert done("rebase", overlay, "--no-parent") == f"{overlay}: has no parent any more\n"
    base.unlink()
    qemu.expect(overlay, "vdi", content)
    qemu.check(overlay, "vdi")


def test_what_both_parents_have_is_not_brought_in(folder: Path) -> None:
    base = new(folder / "base.vdi")
    content = bytearray(SIZE)
    change(base, content, 41, 20)
    copy = folder / "copy.vdi"
    new(copy)
    with open_image(copy, writable=True) as disk:
        disk.write(0, content)
        disk.write(MIB, b"only here")
    overlay = new(folder / "overlay.vdi", base)
    rebase(overlay, copy, NO_OPTIONS, quiet)
    assert held(overlay) == content
    with open_image(overlay, writable=False) as disk:
        own = [e for e in disk.image.map(0, SIZE) if e.kind is Kind.DATA]
        assert [(e.guest_offset, e.length) for e in own] == [(MIB, 64 * KIB)]


def test_an_interrupted_rebase_leaves_the_overlay_as_it_reads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases = [new(folder / f"{number}.vdi", size=MIB) for number in range(2)]
    for number, path in enumerate(bases):
        change(path, bytearray(MIB), 50 + number)
    overlay = new(folder / "overlay.vdi", bases[0], MIB)
    change(overlay, bytearray(MIB), 52, 3)
    content, before = held(overlay), overlay.read_bytes()
    count = 0
    while interrupted_at(
        count, monkeypatch, lambda: rebase(overlay, bases[1], NO_OPTIONS, quiet)
    ):
        assert held(overlay, clean=False) == content, count
        overlay.write_bytes(before)
        count += 1
    assert count > 3


def test_a_parent_that_was_moved_is_found_again_when_it_is_said_where(tmp_path: Path) -> None:
    base, overlay = new(tmp_path / "base.vdi"), tmp_path / "overlay.vdi"
    new(overlay, base)
    content = bytearray(SIZE)
    change(overlay, content, 61)
    made_again = new(tmp_path / "again.vdi")
    with open_image(base, writable=False) as disk, open_image(made_again, writable=True) as other:
        other.write(0, disk.read(0, SIZE))
    base.unlink()
    refused("info", overlay)
    assert "its parent is" in done("rebase", "--unsafe", overlay, "--parent", made_again)
    assert held(overlay) == content
    # And one that was written to is taken as it is.
    with open_image(made_again, writable=True) as disk:
        disk.write(SIZE - 1, b"!")
    assert "rebase --unsafe" in refused("info", overlay)
    change_parent(overlay, made_again, NO_OPTIONS)
    held(overlay)


def test_what_cannot_be_beneath_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    base, overlay = new(tmp_path / "base.vdi"), tmp_path / "overlay.vdi"
    new(overlay, base)
    above = new(tmp_path / "above.vdi", overlay)
    raw = tmp_path / "raw.img"
    raw.write_bytes(bytes(SIZE))
    (tmp_path / "elsewhere").mkdir()
    far = Path(shutil.copy(base, tmp_path / "elsewhere"))
    before = {path: path.read_bytes() for path in (base, overlay, above)}
    for unsafe in (False, True):
        def attempt(path: Path, parent: Path) -> None:
            if unsafe:  # noqa: B023
                change_parent(path, parent, NO_OPTIONS)
            else:
                rebase(path, parent, NO_OPTIONS, quiet)

        with pytest.raises(NotPermitted, match="its own parent"):
            attempt(overlay, above)
        with pytest.raises(NotPermitted, match="its own parent"):
            attempt(overlay, overlay)
        with pytest.raises(InvalidArgument, match="needs a VDI image beneath it"):
            attempt(overlay, raw)
        with pytest.raises(NotPermitted, match="--allow-parent"):
            attempt(overlay, far)
        with pytest.raises((InvalidArgument, Unsupported)):
            attempt(raw, base)
    with pytest.raises(InvalidArgument, match="no overlay"):
        commit(base, NO_OPTIONS, quiet)
    with pytest.raises(InvalidArgument, match="no overlay"):
        rebase(base, None, NO_OPTIONS, quiet)
    allowed = OpenOptions(allow_parent=(tmp_path / "elsewhere",))
    rebase(overlay, far, allowed, quiet)
    # The first write changes an image's state; what it holds is as before.
    assert held(base) == bytes(SIZE)
    assert base.read_bytes() == before[base]
    assert raw.read_bytes() == bytes(SIZE)


def test_usage() -> None:
    for words in (["rebase", "x"], ["rebase", "x", "--parent", "b", "--no-parent"],
                  ["rebase", "x", "--no-parent", "--unsafe"], ["snapshot", "x"],
                  ["snapshot", "x", "--list", "--create", "a"]):  # fmt: skip
        refused(*words, status=2)


# Snapshots inside an image: none of the formats that keep them is needed to see the refusal.


@pytest.mark.parametrize("option", [["--list"], ["--create", "a"], ["--apply", "a"],
                                    ["--delete", "a"]])  # fmt: skip
def test_a_format_that_keeps_no_snapshots_says_what_to_do(
    tmp_path: Path, option: list[str]
) -> None:
    path = new(tmp_path / "disk.vdi")
    before = path.read_bytes()
    said = refused("snapshot", path, *option)
    assert "a vdi image keeps no snapshots of its own" in said
    assert "vdisk snapshot --to" in said
    assert path.read_bytes() == before


# Compacting


@given(seed=st.integers(0, 2**16), layered=st.booleans())
@settings(max_examples=12)
def test_compacting_gives_back_what_is_zeros_and_changes_nothing(
    seed: int, layered: bool
) -> None:
    with host_folder("memory") as folder:
        path, content = new(folder / "base.vdi"), bytearray(SIZE)
        if layered:
            change(path, content, seed + 5)
            path = new(folder / "overlay.vdi", path)
        change(path, content, seed, 12)
        with open_image(path, writable=True) as disk:
            disk.write(MIB, bytes(8 * 64 * KIB))
            content[MIB : MIB + 8 * 64 * KIB] = bytes(8 * 64 * KIB)
            compact(disk, quiet)
            assert disk.read(0, SIZE) == content
            assert disk.image.plan_compact() is None
            used = sum(e.length for e in disk.image.map(0, SIZE) if e.kind is Kind.DATA)
        assert held(path) == content
        # The header and the map fill the first MiB, and the first block begins at the second.
        assert path.stat().st_size <= 2 * MIB + used
        units = [content[at : at + 64 * KIB] for at in range(0, SIZE, 64 * KIB)]
        assert used <= 64 * KIB * sum(any(unit) for unit in units)


def test_a_compacted_image_is_smaller_and_sound_to_qemu(tmp_path: Path) -> None:
    path = tmp_path / "disk.vdi"
    content = bytearray(16 * MIB)
    qemu.create(path, "vdi", len(content))
    qemu.scatter(path, "vdi", content, Random(7), 40)
    for at in range(0, len(content) - 2 * MIB, 3 * MIB):
        qemu.qemu("qemu-io", "-f", "vdi", "-c", f"write -q -P 0 {at} 2M", path)
        content[at : at + 2 * MIB] = bytes(len(content[at : at + 2 * MIB]))
    before = path.stat().st_size
    assert "given back" in done("compact", path)
    assert path.stat().st_size <= before - 5 * MIB
    qemu.expect(path, "vdi", content)
    qemu.check(path, "vdi")
    assert "0 bytes given back" in done("compact", path)


def test_of_a_raw_disk_and_of_a_partition_the_zeros_become_holes(folder: Path) -> None:
    path = folder / "disk.img"
    path.write_bytes(b"x" * (8 * MIB))
    sfdisk(path, "2048,4096\n6144,+\n")
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(bytes(6 * MIB))
    content = path.read_bytes()
    done("compact", f"{path}/p1")
    assert path.stat().st_blocks * 512 == 6 * MIB
    done("compact", path)
    assert path.stat().st_blocks * 512 == 2 * MIB
    assert path.read_bytes() == content


def test_a_fixed_image_keeps_its_blocks(tmp_path: Path) -> None:
    path = tmp_path / "disk.vdi"
    done("create", path, "--size", "4M", "-o", "subformat=fixed")
    size = path.stat().st_size
    done("compact", path)
    assert path.stat().st_size == size
    qemu.check(path, "vdi")
    assert path.stat().st_blocks * 512 < 2 * MIB


def test_a_compaction_that_a_crash_ends_has_lost_nothing(folder: Path) -> None:
    path, content = new(folder / "disk.vdi", size=MIB), bytearray(MIB)
    with open_image(path, writable=True) as disk:
        for block in (3, 9, 1, 12, 0, 7, 5):
            data = Random(block).randbytes(64 * KIB) if block % 2 else bytes(64 * KIB)
            disk.write(block * 64 * KIB, data)
            content[block * 64 * KIB : (block + 1) * 64 * KIB] = data
    host = RecordingHost.recording(path)
    with open_host(host) as disk:
        compact(disk, quiet)
    crashed, random = folder / "crashed.vdi", Random(1)
    for count in range(len(host.log.events) + 1):
        for state in host.log.crash_states(count, random, 2):
            crashed.write_bytes(state)
            with open_image(crashed, writable=False) as disk:
                assert disk.read(0, MIB) == content, count
    assert len(host.log.events) > 4
