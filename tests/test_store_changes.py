"""Making, renaming and removing disks in a folder: what is there is never lost by accident."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from model import host_folder
from vdisk.errors import (
    Busy,
    DiskError,
    Exists,
    InvalidArgument,
    NotFound,
    NotPermitted,
    ReadOnly,
)
from vdisk.open import open_image
from vdisk.options import NO_OPTIONS, OpenOptions
from vdisk.store import FolderStore


@pytest.fixture
def folder() -> Iterator[Path]:
    with host_folder("disk") as made:
        yield made


@pytest.fixture
def store(folder: Path) -> FolderStore:
    return FolderStore(folder, NO_OPTIONS, writable=True)


def image(folder: Path, name: str, size: int = 4096) -> Path:
    path = folder / name
    path.write_bytes(bytes(size))
    return path


def test_what_is_created_is_an_empty_raw_disk_recorded_as_such(
    folder: Path, store: FolderStore
) -> None:
    path, disk = store.create("new", 0o600)
    with disk:
        assert path == folder / "new.img"
        assert (path.stat().st_size, path.stat().st_mode & 0o777) == (0, 0o600)
        assert os.getxattr(path, "user.vdisk.format") == b"raw"
        with pytest.raises(Busy):
            open_image(path, writable=True, allow_empty=True)
    assert store.resolve("new") == "new"


def test_a_geometry_given_for_a_folder_does_not_keep_a_new_disk_from_being_made(
    folder: Path,
) -> None:
    for options in (OpenOptions(chs="20/4/17"), OpenOptions(profile="floppy-1.44M")):
        store = FolderStore(folder, options, writable=True)
        try:
            path, disk = store.create("new", 0o600)
        except InvalidArgument:
            pytest.fail("an empty disk has no geometry to fit")
        disk.close()
        path.unlink()


def test_a_disk_that_cannot_be_made_leaves_no_file(folder: Path) -> None:
    store = FolderStore(folder, OpenOptions(sector_size=513), writable=True)
    with pytest.raises(InvalidArgument):
        store.create("new", 0o600)
    assert os.listdir(folder) == []


@pytest.mark.parametrize("name", [".hidden", "a/b", "../out", ".", "..", "a\0b", "x" * 300, ""])
def test_a_name_that_no_disk_can_have_is_refused(
    folder: Path, store: FolderStore, name: str
) -> None:
    image(folder, "a.img")
    with pytest.raises(DiskError):
        store.create(name, 0o644)
    with pytest.raises(DiskError):
        store.rename("a", name)
    assert os.listdir(folder) == ["a.img"]


@pytest.mark.parametrize("name", ["a", "a.img"])
def test_a_name_that_is_taken_is_not_created_again(
    folder: Path, store: FolderStore, name: str
) -> None:
    image(folder, "a.img").write_bytes(b"precious" * 64)
    with pytest.raises(Exists):
        store.create(name, 0o644)
    assert (folder / "a.img").read_bytes() == b"precious" * 64


def test_a_file_that_is_no_disk_is_not_overwritten(folder: Path, store: FolderStore) -> None:
    (folder / "notes.img").mkdir()
    image(folder, "a.img")
    with pytest.raises(Exists):
        store.create("notes", 0o644)
    with pytest.raises(Exists):
        store.rename("a", "notes")
    assert sorted(os.listdir(folder)) == ["a.img", "notes.img"]


@pytest.mark.parametrize("name", ["a.p1", "a.p12"])
def test_the_name_of_a_partition_is_refused(folder: Path, store: FolderStore, name: str) -> None:
    image(folder, "a.img")
    image(folder, "b.img")
    with pytest.raises(NotPermitted, match="partition of a"):
        store.create(name, 0o644)
    with pytest.raises(NotPermitted, match="partition of a"):
        store.rename("b", name)


@pytest.mark.parametrize(
    ("file", "new", "expected"),
    [
        ("a.img", "b", "b.img"),
        ("a.img", "b.raw", "b.raw"),
        ("a.dsk", "b", "b.dsk"),
        ("a", "b", "b.img"),
        ("a.v1", "b", "b.img"),
        ("a.img", "a.raw", "a.raw"),
    ],
)
def test_a_renamed_disk_stays_what_it_is_under_the_new_name(
    folder: Path, store: FolderStore, file: str, new: str, expected: str
) -> None:
    path = image(folder, file)
    path.write_bytes(b"content!" * 64)
    os.setxattr(path, "user.vdisk.format", b"raw")
    old = next(iter(store.names()))
    assert store.rename(old, new) == folder / expected
    assert os.listdir(folder) == [expected]
    assert (folder / expected).read_bytes() == b"content!" * 64
    assert store.resolve(new) is not None


def test_a_disk_takes_the_place_of_another_whole(folder: Path, store: FolderStore) -> None:
    """As mv does: the target's own file is replaced, whatever its extension."""
    image(folder, "a.img").write_bytes(b"new" * 512)
    image(folder, "b.raw").write_bytes(b"old" * 512)
    assert store.rename("a", "b") == folder / "b.raw"
    assert os.listdir(folder) == ["b.raw"]
    assert (folder / "b.raw").read_bytes() == b"new" * 512


def test_a_removed_disk_is_gone_and_a_missing_one_cannot_be_removed(
    folder: Path, store: FolderStore
) -> None:
    image(folder, "a.img")
    store.remove("a")
    assert os.listdir(folder) == []
    for ask in (lambda: store.remove("a"), lambda: store.rename("a", "b")):
        with pytest.raises(NotFound, match="a: no such disk"):
            ask()


def test_a_read_only_store_changes_nothing(folder: Path) -> None:
    image(folder, "a.img")
    store = FolderStore(folder, NO_OPTIONS, writable=False)
    for change in (
        lambda: store.create("b", 0o644),
        lambda: store.remove("a"),
        lambda: store.rename("a", "b"),
    ):
        with pytest.raises(ReadOnly):
            change()
    assert os.listdir(folder) == ["a.img"]
