"""What is recorded beside an image, against getfattr and setfattr, and whatever somebody put there.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model import host_folder
from vdisk.errors import Corrupt
from vdisk.geometry import Geometry
from vdisk.host import HostFile
from vdisk.record import (
    forget_geometry,
    store_format,
    store_geometry,
    stored_format,
    stored_geometry,
)


@pytest.fixture(scope="module")
def host() -> Iterator[HostFile]:
    with host_folder("disk") as folder:
        opened = HostFile.create(folder / "disk.img")
        yield opened
        opened.close()


def getfattr(path: Path, name: str) -> str:
    line = ["getfattr", "--absolute-names", "--only-values", "-n", name, str(path)]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


def test_a_geometry_is_recorded_where_the_issue_says_and_comes_back(host: HostFile) -> None:
    for geometry in (Geometry(1024, 16, 63), Geometry(77, 1, 26, 128), Geometry(2**32 - 1, 1, 1)):
        assert store_geometry(host, geometry)
        assert getfattr(host.path, "user.vdisk.geometry") == f"{geometry} {geometry.sector_size}"
        assert stored_geometry(host) == geometry
    forget_geometry(host)
    forget_geometry(host)
    assert stored_geometry(host) is None
    assert os.listxattr(host.path) == []


def test_a_geometry_that_a_person_wrote_is_understood(host: HostFile) -> None:
    for text, expected in (
        ("80/2/18", Geometry(80, 2, 18)),
        ("80/2/18 1024\n", Geometry(80, 2, 18, 1024)),
        ("  80/2/18  512 ", Geometry(80, 2, 18)),
    ):
        line = ["setfattr", "-n", "user.vdisk.geometry", "-v", text, str(host.path)]
        subprocess.run(line, check=True)
        assert stored_geometry(host) == expected


def test_a_format_is_recorded_and_comes_back(host: HostFile) -> None:
    assert store_format(host, "raw")
    assert getfattr(host.path, "user.vdisk.format") == "raw"
    assert stored_format(host) == "raw"
    os.removexattr(host.path, "user.vdisk.format")
    assert stored_format(host) is None


@given(st.binary(max_size=600) | st.text("0123456789/ -x", max_size=40).map(str.encode))
@example(b"")
@example(b"0/0/0 512")
@example(b"1/1/1 513")
@example(b"1/1/1 -512")
@example(b"1/1/1 512 512")
@example(b"1/1")
@example(b"4294967296/1/1 512")
@example(b"1/1/1 " + b"9" * 5000)
@example(b"9" * 5000 + b"/1/1")
@example(b"1/1/1\0 512")
@example("1/1/1 ٥١٢".encode())
def test_any_bytes_are_a_geometry_or_a_refusal_that_says_what_to_do(
    host: HostFile, value: bytes
) -> None:
    os.setxattr(host.fd, "user.vdisk.geometry", value[:3000])
    try:
        found = stored_geometry(host)
    except Corrupt as error:
        message = str(error)
        assert str(host.path) in message
        assert "setfattr -x user.vdisk.geometry" in message
        assert message.isprintable()
        assert len(message) < 2000
    else:
        assert found is not None
        assert found.sector_size in (128, 256, 512, 1024, 2048, 4096)


def test_where_there_are_no_attributes_nothing_is_recorded_and_that_is_said() -> None:
    """/proc has none at all; a file of an ordinary file system without any answers the same."""
    fd = os.open("/proc/self/comm", os.O_RDONLY)
    host = HostFile(fd, Path("/proc/self/comm"), writable=False)
    try:
        assert not store_geometry(host, Geometry(1, 1, 1))
        assert not store_format(host, "raw")
        assert stored_geometry(host) is None
        assert stored_format(host) is None
        forget_geometry(host)
    finally:
        host.close()
