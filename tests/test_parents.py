"""Which files an image may lead to: its own folder's, regular ones, no loops, no endless chains."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import done, refused
from format_cases import FormatCase, make
from vdisk.errors import Busy, Corrupt, InvalidFormat, NotFound, NotPermitted
from vdisk.formats.base import ParentReference
from vdisk.formats.vdi_header import VdiHeader
from vdisk.host import HostFile
from vdisk.open import open_image
from vdisk.options import OpenOptions
from vdisk.parents import DEPTH_MAX, opening

CASE = FormatCase("vdi", 4096, {"block-size": "4K"})
SIZE = 64 << 10


@pytest.fixture
def child(tmp_path: Path) -> Iterator[HostFile]:
    """Any file in a folder of its own; beside it, and elsewhere, images."""
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    make(folder / "base.vdi", CASE, SIZE)
    make(folder / "deeper" / "base.vdi", CASE, SIZE)
    make(tmp_path / "outside.vdi", CASE, SIZE)
    (folder / "child").write_bytes(b"a child")
    host = HostFile.open(folder / "child", writable=False)
    yield host
    host.close()


def follow(child: HostFile, *names: str, allowed: tuple[Path, ...] = ()) -> Path:
    """Where these names lead."""
    with opening(child, allowed).open_parent(ParentReference(names, "vdi")) as disk:
        assert disk.read_only
        return Path(disk.address)


def test_a_name_is_taken_from_the_folder_of_the_child(child: HostFile) -> None:
    folder = child.path.parent
    assert follow(child, "base.vdi") == folder / "base.vdi"
    assert follow(child, "./deeper/../base.vdi") == folder / "base.vdi"
    assert follow(child, str(folder / "base.vdi")) == folder / "base.vdi"
    assert follow(child, "not there", "base.vdi") == folder / "base.vdi"


@pytest.mark.parametrize(
    "name",
    ["../outside.vdi", "deeper/base.vdi", "/etc/passwd", "/dev/zero", "/proc/self/mem", "link.vdi",
     "folder-link/outside.vdi", ".."],
)  # fmt: skip
def test_a_name_that_leads_out_of_the_folder_is_refused(child: HostFile, name: str) -> None:
    folder = child.path.parent
    (folder / "link.vdi").symlink_to("../outside.vdi")
    (folder / "folder-link").symlink_to("..")
    with pytest.raises(NotPermitted, match="--allow-parent"):
        follow(child, name)


@pytest.mark.parametrize(
    "name",
    ["json:{\"driver\":\"file\"}", "nbd:localhost:10809", "file:base.vdi", "http://x/base.vdi",
     "", "a\0b", "fifo", "."],
)  # fmt: skip
def test_a_name_that_is_no_file_is_refused_and_never_a_protocol(
    child: HostFile, name: str
) -> None:
    os.mkfifo(child.path.with_name("fifo"))
    with pytest.raises((NotFound, Corrupt, InvalidFormat, NotPermitted)):
        follow(child, name)


def test_folders_that_are_allowed_are_followed_into_as_deep_as_they_go(child: HostFile) -> None:
    folder = child.path.parent
    outside = folder.parent / "outside.vdi"
    assert follow(child, "../outside.vdi", allowed=(folder.parent,)) == outside
    assert follow(child, "deeper/base.vdi", allowed=(folder,)) == folder / "deeper" / "base.vdi"
    (folder / "link.vdi").symlink_to("../outside.vdi")
    assert follow(child, "link.vdi", allowed=(folder.parent,)) == outside
    with pytest.raises(NotPermitted):
        follow(child, "../outside.vdi", allowed=(folder / "deeper",))


def test_a_link_to_the_child_is_followed_to_where_it_really_lies(child: HostFile) -> None:
    link = child.path.parent.parent / "link"
    link.symlink_to(child.path)
    host = HostFile.open(link, writable=False)
    try:
        assert follow(host, "base.vdi") == child.path.parent / "base.vdi"
    finally:
        host.close()


def test_a_parent_of_unknown_format_is_never_taken_for_raw(child: HostFile) -> None:
    """A child that does not say it would let the parent's guest choose (CVE-2008-2004)."""
    child.path.with_name("raw.img").write_bytes(bytes(SIZE))
    opened = opening(child)
    with pytest.raises(InvalidFormat, match="no image of a known format"):
        opened.open_parent(ParentReference(("raw.img",)))
    opened.open_parent(ParentReference(("raw.img",), "raw")).close()
    with opened.open_parent(ParentReference(("base.vdi",))) as disk:
        assert disk.image.name == "vdi"


def test_a_parent_is_locked_against_writers_and_shared_with_readers(child: HostFile) -> None:
    base = child.path.with_name("base.vdi")
    with opening(child).open_parent(ParentReference(("base.vdi",), "vdi")):
        open_image(base, writable=False).close()
        with pytest.raises(Busy):
            open_image(base, writable=True)
    with open_image(base, writable=True), pytest.raises(Busy):
        follow(child, "base.vdi")
    open_image(base, writable=True).close()


def chain(folder: Path, length: int) -> Path:
    path = make(folder / "0.vdi", CASE, SIZE)
    for number in range(1, length):
        path = make(folder / f"{number}.vdi", CASE, SIZE, parent=path)
    return path


def test_a_chain_has_a_longest_length(tmp_path: Path) -> None:
    longest = chain(tmp_path, DEPTH_MAX)
    with open_image(longest, writable=False) as disk:
        assert disk.read(0, 1) == b"\0"
    one_more = make(tmp_path / "more.vdi", CASE, SIZE, parent=longest)
    with pytest.raises(Corrupt, match="more than 31 parents"):
        open_image(one_more, writable=False)
    assert open_descriptors(tmp_path) == []


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_loop_is_refused_and_nothing_stays_open(tmp_path: Path, length: int) -> None:
    """The first image is made a child of the last one."""
    last = chain(tmp_path, length)
    first = tmp_path / "0.vdi"
    with last.open("rb") as file:
        identity = file.read(0x198)[0x188:]
    with first.open("r+b") as file:
        file.seek(0x4C)
        file.write(b"\4\0\0\0")
        file.seek(0x1A8)
        file.write(identity)
    with pytest.raises(Corrupt, match="is its own parent"):
        open_image(last, writable=False)
    assert open_descriptors(tmp_path) == []


def open_descriptors(folder: Path) -> list[str]:
    """Files in `folder` that this process has open."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue  # The descriptor of this very look.
    return [path for path in found if path.startswith(str(folder))]


def test_the_command_line_follows_where_it_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    base = make(tmp_path / "bases" / "base.vdi", CASE, SIZE)
    overlay = make(tmp_path / "overlay.vdi", CASE, SIZE, parent=base)
    assert "--allow-parent" in refused("info", overlay)
    said = done("info", overlay, "--allow-parent", tmp_path / "bases")
    assert f"parent:           {base}" in said
    options = OpenOptions(allow_parent=(tmp_path / "bases",))
    with open_image(overlay, writable=False, options=options) as disk:
        host = disk.image.hosts()[0]
        assert VdiHeader.read(host).size == SIZE
