"""Stores: which files of a folder are disks, by which names, and how much room there is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import host_folder
from vdisk.errors import (
    Busy,
    HostError,
    InvalidArgument,
    NotFound,
    NotPermitted,
)
from vdisk.formats.registry import IMAGE_EXTENSIONS
from vdisk.open import open_image
from vdisk.options import NO_OPTIONS
from vdisk.store import FolderStore, ImageList, image_stem, shown_names

NAMES = ["a", "a.img", "a.vhd", "a.IMG", "a.img.img", "a.p1", "a.p1.img", "a.img.p1",
         "a.img.p1.img", "b.qcow2", "b.tar", "b", "é.img", "x y.img", ".img"]  # fmt: skip


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


# Which files, by which names


@given(st.sets(st.sampled_from(NAMES)))
def test_every_image_of_a_folder_has_a_name_of_its_own(names: set[str]) -> None:
    """No two files of one folder, and no partition of one of them, are ever shown by one name."""
    paths = [Path("/images") / name for name in sorted(names)]
    shown = shown_names(paths)
    assert sorted(shown.values()) == paths
    for name, path in shown.items():
        assert name in (path.name, image_stem(path.name))
    for name in shown:
        whole, _, number = name.rpartition(".p")
        if whole in shown and number.isdecimal():
            assert shown[name].name == name  # Only where the file itself is called that.


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a.img"], ["a"]),
        (["a.img", "b.vhd"], ["a", "b"]),
        (["a.img", "a.vhd"], ["a.img", "a.vhd"]),
        (["a.img", "a.img.img"], ["a", "a.img.img"]),
        (["a.IMG"], ["a"]),
        (["a.img", "a.p1.img"], ["a", "a.p1.img"]),
        (["a.p1.img"], ["a.p1"]),
        (["a.img", "a.vhd", "a.img.p1.img"], ["a.img", "a.img.p1.img", "a.vhd"]),
    ],
)
def test_the_extension_is_left_out_where_that_tells_them_apart(
    folder: Path, store: FolderStore, files: list[str], expected: list[str]
) -> None:
    for name in files:
        image(folder, name)
    assert sorted(store.names()) == expected


def test_two_images_of_one_name_in_two_folders_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="both be shown as"):
        shown_names([Path("/x/a.img"), Path("/y/a.img")])


def test_an_image_is_known_by_extension_record_or_whole_sectors(
    folder: Path, store: FolderStore
) -> None:
    for extension in IMAGE_EXTENSIONS:
        image(folder, f"by-extension{extension.removeprefix('.')}{extension}", 7)
    image(folder, "whole-sectors", 1024)
    recorded = image(folder, "recorded.v1", 7)
    os.setxattr(recorded, "user.vdisk.format", b"raw")
    wanted = set(os.listdir(folder))
    # None of these is a disk.
    image(folder, "odd", 1000)
    image(folder, "empty", 0)
    image(folder, "notes.txt", 1024)
    image(folder, ".hidden.img", 1024)
    (folder / "sub.img").mkdir()
    os.mkfifo(folder / "pipe.img")
    (folder / "dangling.img").symlink_to("nowhere")
    (folder / "loop.img").symlink_to("loop.img")
    assert {path.name for path in store.names().values()} == wanted


def test_a_file_that_one_cannot_ask_is_judged_by_its_size(
    folder: Path, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system has no attributes, asking for them is an error (ENOTSUP)."""

    def no_attributes(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    image(folder, "plain", 1024)
    monkeypatch.setattr(os, "listxattr", no_attributes)
    assert list(store.names()) == ["plain"]


def test_a_disk_is_found_by_its_shown_and_by_its_full_name(
    folder: Path, store: FolderStore
) -> None:
    image(folder, "a.img")
    assert store.resolve("a") == store.resolve("a.img") == "a"
    assert store.resolve("b") is None


def test_a_folder_that_is_gone_is_an_error_that_names_it(folder: Path) -> None:
    store = FolderStore(folder / "gone", NO_OPTIONS, writable=True)
    for ask in (store.names, store.version, store.space):
        with pytest.raises(HostError, match="gone"):
            ask()


def test_the_version_changes_with_the_names(folder: Path, store: FolderStore) -> None:
    before = store.version()
    image(folder, "a.img")
    assert store.version() != before


def test_the_space_is_what_df_says(folder: Path, store: FolderStore) -> None:
    space, system = store.space(), os.statvfs(folder)
    assert space.total == system.f_blocks * system.f_frsize
    assert 0 <= space.available <= space.free <= space.total


# Opening


def test_a_disk_is_opened_locked_and_as_writable_as_its_store(folder: Path) -> None:
    path = image(folder, "a.img")
    for writable in (True, False):
        store = FolderStore(folder, NO_OPTIONS, writable=writable)
        with store.open("a") as disk:
            assert disk.read_only != writable
            with pytest.raises(Busy):
                open_image(path, writable=True)
        with pytest.raises(NotFound, match="no such disk"):
            store.open("b")


def test_an_empty_file_in_a_folder_is_a_disk_that_can_grow(
    folder: Path, store: FolderStore
) -> None:
    image(folder, "a.img", 0)
    with store.open("a") as disk:
        assert (disk.size, disk.choice) == (0, None)
        disk.resize(1024)
        disk.write(1000, b"x" * 24)


def test_images_that_were_named_are_there_and_nothing_else_can_be_made(folder: Path) -> None:
    image(folder, "a.img")
    store = ImageList([folder / "a.img"], NO_OPTIONS, writable=True)
    with store.open("a") as disk:
        assert disk.size == 4096
    with pytest.raises(NotFound):
        store.open("b")
    for refused in (
        lambda: store.create("b", 0o644),
        lambda: store.remove("a"),
        lambda: store.rename("a", "b"),
    ):
        with pytest.raises(NotPermitted, match="mount"):
            refused()
    assert os.listdir(folder) == ["a.img"]
