"""Addresses become disks, and everything that is none is refused with one line that says why."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import host_folder
from table_images import entry, record
from vdisk.disk import Slice
from vdisk.errors import (
    Corrupt,
    DiskError,
    HostError,
    InvalidArgument,
    InvalidFormat,
    NotFound,
    NotPermitted,
)
from vdisk.open import open_disk, parse_address

MIB = 1 << 20
NOBODY = 65534


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    return path


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's rights for a while; for an ordinary user nothing changes."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder in which nobody may look, unlike those of pytest."""
    with host_folder("disk") as folder:
        folder.chmod(0o755)
        yield folder


# What an address means


@pytest.mark.parametrize(
    ("text", "path", "inside"),
    [
        ("disk.img", "disk.img", ()),
        ("./disk.img", "disk.img", ()),
        ("disk.img/", "disk.img", ()),
        ("disk.img/p1", "disk.img", ("p1",)),
        ("disk.img/alpha/p1", "disk.img", ("alpha", "p1")),
        ("link/disk.img/p1", "link/disk.img", ("p1",)),
        ("alias/p2", "alias", ("p2",)),
        ("dangling", "dangling", ()),
        ("dangling/p1", "dangling", ("p1",)),
        ("disk.img/../disk.img", "disk.img", ("..", "disk.img")),
    ],
)
def test_an_address_is_split_at_the_host_file(
    image: Path, monkeypatch: pytest.MonkeyPatch, text: str, path: str, inside: tuple[str, ...]
) -> None:
    monkeypatch.chdir(image.parent)
    Path("link").symlink_to(".")
    Path("alias").symlink_to("disk.img")
    Path("dangling").symlink_to("nowhere")
    found = parse_address(text)
    assert (found.path, found.inside) == (Path(path), inside)


@given(st.text(max_size=60) | st.lists(st.sampled_from(["disk.img", "..", "p1", "/", "x" * 300])))
def test_any_text_is_an_address_or_refused(text: str | list[str]) -> None:
    words = text if isinstance(text, str) else "/".join(text)
    with host_folder("memory") as folder:
        (folder / "disk.img").write_bytes(bytes(512))
        with suppress(DiskError):
            address = parse_address(words if words.startswith("/") else f"{folder}/{words}")
            assert address.path.is_symlink() or not address.path.is_dir()


# What is refused

Maker = Callable[[Path], object]

REFUSED: dict[str, tuple[Maker, str, type[DiskError], str]] = {
    "no file": (lambda p: None, "", NotFound, "no such file"),
    "no file in no folder": (lambda p: None, "/a/b", NotFound, "no such file"),
    "empty file": (Path.touch, "", InvalidFormat, "is empty"),
    "folder": (Path.mkdir, "", InvalidFormat, "is a folder"),
    "partition of a folder": (Path.mkdir, "/p1", NotFound, "no such file"),
    "pipe": (os.mkfifo, "", InvalidFormat, "neither a regular file nor"),
    "partition of a pipe": (os.mkfifo, "/p1", InvalidFormat, "neither a regular file nor"),
    "socket": (lambda p: _bind(p), "", InvalidFormat, "neither a regular file nor"),
    "terminal": (lambda p: p.symlink_to("/dev/tty"), "", InvalidFormat, "neither a regular"),
    "endless device": (lambda p: p.symlink_to("/dev/zero"), "", InvalidFormat, "neither a regular"),
    "link to nothing": (lambda p: p.symlink_to("nowhere"), "", NotFound, "no such file"),
    "link to itself": (lambda p: p.symlink_to(p.name), "", HostError, "symbolic link"),
    "partition of a link to itself": (
        lambda p: p.symlink_to(p.name), "/p1", HostError, "symbolic link"),
    "no table": (lambda p: p.write_bytes(bytes(MIB)), "/p1", NotFound, "no partition table"),
    "no such partition": (lambda p: _table(p), "/p3", NotFound, "it has: 1"),
    "no such thing": (lambda p: _table(p), "/q1", NotFound, "partitions are p1"),
    "partition nought": (lambda p: _table(p), "/p0", NotFound, "partitions are p1"),
    "partition 01": (lambda p: _table(p), "/p01", NotFound, "partitions are p1"),
    "partition without end": (lambda p: _table(p), "/p" + "1" * 200, NotFound, "partitions are"),
    "partition in other digits": (lambda p: _table(p), "/p\u0661", NotFound, "partitions are p1"),
    "partition of a partition": (lambda p: _table(p), "/p1/p1", NotFound, "partitions are p1"),
    "partition past the end": (lambda p: _table(p, 4096), "/p1", Corrupt, "partition 1"),
}  # fmt: skip


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def _table(path: Path, sectors: int = 1024) -> None:
    path.write_bytes(record(entry(0x83, 8, sectors)).ljust(MIB, b"\0"))


@pytest.mark.parametrize("writable", [False, True], ids=["to read", "to write"])
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_disk_is_refused_in_one_line_that_names_it(
    tmp_path: Path, what: str, writable: bool
) -> None:
    make, inside, kind, reason = REFUSED[what]
    path = tmp_path / "thing.img"
    make(path)
    with pytest.raises(kind) as refusal:
        open_disk(f"{path}{inside}", writable=writable)
    message = str(refusal.value)
    assert "thing.img" in message
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", "\0", "disk\0.img"])
def test_what_is_no_name_is_no_address(text: str) -> None:
    with pytest.raises(InvalidArgument):
        open_disk(text)


@pytest.mark.parametrize("text", ["x" * 300, "x/" * 3000])
def test_a_name_too_long_for_the_system_is_an_error_of_vdisk(tmp_path: Path, text: str) -> None:
    with pytest.raises((HostError, NotFound)):
        open_disk(f"{tmp_path}/{text}")


def test_a_file_that_one_may_not_read_is_refused(open_folder: Path) -> None:
    image = open_folder / "secret.img"
    image.write_bytes(bytes(MIB))
    image.chmod(0)
    with as_nobody(), pytest.raises(HostError, match=r"secret\.img.*Permission denied"):
        open_disk(image)


def test_a_file_that_one_may_only_read_says_that_reading_works(open_folder: Path) -> None:
    image = open_folder / "others.img"
    image.write_bytes(bytes(MIB))
    image.chmod(0o444)
    with as_nobody():
        with pytest.raises(HostError, match=r"others\.img.*Permission denied.*-r"):
            open_disk(image, writable=True)
        with open_disk(image) as disk:
            assert disk.read_only


@pytest.mark.parametrize("inside", ["disk.img", "disk.img/p1", "nothing"])
def test_a_folder_that_one_may_not_enter_is_refused(open_folder: Path, inside: str) -> None:
    (open_folder / "shut").mkdir()
    (open_folder / "shut/disk.img").write_bytes(bytes(MIB))
    (open_folder / "link").symlink_to("shut/disk.img")
    (open_folder / "shut").chmod(0)
    try:
        with as_nobody():
            for address in (open_folder / "shut" / inside, open_folder / "link"):
                with pytest.raises(HostError, match="Permission denied"):
                    open_disk(address)
    finally:
        (open_folder / "shut").chmod(0o755)


# Partitions


def test_a_partition_made_by_sfdisk_is_a_disk_of_its_own(image: Path) -> None:
    subprocess.run(
        ["sfdisk", "-q", str(image)], input=b"start=64,size=128\nstart=512,size=1024\n", check=True
    )
    before = image.read_bytes()
    with open_disk(f"{image}/p2", writable=True) as part:
        assert isinstance(part, Slice)
        assert (part.size, part.address) == (1024 * 512, f"{image}/p2")
        part.write(0, b"begin")
        part.write(part.size - 3, b"end")
        with pytest.raises(NotPermitted, match="cannot be resized"):
            part.resize(part.size + 512)
        part.resize(part.size)
    after = bytearray(before)
    after[512 * 512 : 512 * 512 + 5] = b"begin"
    after[1536 * 512 - 3 : 1536 * 512] = b"end"
    assert image.read_bytes() == after
