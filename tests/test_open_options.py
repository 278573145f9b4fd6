"""The options an image is opened with, what is recorded beside it, and what resizing makes of both.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vdisk.disk_geometry import resize_disk
from vdisk.errors import Corrupt, HostError, InvalidArgument
from vdisk.geometry import Geometry
from vdisk.open import open_disk
from vdisk.options import OpenOptions

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    return path


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (OpenOptions(chs="0/16/63"), "cylinders 0"),
        (OpenOptions(chs="1/0/63"), "heads 0"),
        (OpenOptions(chs="1/16/0"), "sectors per track 0"),
        (OpenOptions(chs="1000000/16/63"), "2/16/63 would fit"),
        (OpenOptions(chs="4294967296/1/1"), "cylinders 4294967296"),
        (OpenOptions(chs="99999999999999999999/1/1"), "is not a geometry"),
        (OpenOptions(chs="1/2"), "is not a geometry"),
        (OpenOptions(chs="-1/2/3"), "is not a geometry"),
        (OpenOptions(chs="a/b/c"), "is not a geometry"),
        (OpenOptions(chs=""), "is not a geometry"),
        (OpenOptions(sector_size=0), "not a sector size"),
        (OpenOptions(sector_size=-512), "not a sector size"),
        (OpenOptions(sector_size=513), "not a sector size"),
        (OpenOptions(sector_size=8192), "not a sector size"),
        (OpenOptions(profile="no such"), "no such"),
    ],
)
def test_absurd_options_are_refused_with_the_file_and_the_reason_and_change_nothing(
    image: Path, options: OpenOptions, reason: str
) -> None:
    for writable in (False, True):
        with pytest.raises(InvalidArgument) as refusal:
            open_disk(image, writable=writable, options=options)
        assert reason in str(refusal.value)
        assert "disk.img" in str(refusal.value)
    assert os.listxattr(image) == []
    open_disk(image, writable=True).close()  # And no lock was left behind.


def test_the_geometry_is_the_given_one_then_the_recorded_one(image: Path) -> None:
    os.setxattr(image, "user.vdisk.geometry", b"20/4/17 512")
    with open_disk(image) as disk:
        assert (str(disk.geometry), disk.choice and disk.choice.source) == ("20/4/17", "stored")
    with open_disk(image, options=OpenOptions(chs="10/2/9")) as disk:
        assert (str(disk.geometry), disk.choice and disk.choice.source) == ("10/2/9", "given")
    with open_disk(image, options=OpenOptions(chs="4/2/9", sector_size=4096)) as disk:
        assert disk.geometry == Geometry(4, 2, 9, 4096)


@pytest.mark.parametrize(
    "value", [b"", b"junk", b"\xff" * 900, b"0/0/0 512", b"9999/16/63 512", b"1/1/1 500"]
)
def test_a_garbage_record_is_refused_until_a_geometry_is_given(image: Path, value: bytes) -> None:
    os.setxattr(image, "user.vdisk.geometry", value)
    with pytest.raises(Corrupt, match=r"disk\.img"):
        open_disk(image)
    with open_disk(image, options=OpenOptions(chs="2/16/63")) as disk:
        assert str(disk.geometry) == "2/16/63"


def test_a_recorded_sector_size_that_is_contradicted_is_refused(image: Path) -> None:
    os.setxattr(image, "user.vdisk.geometry", b"2/16/8 4096")
    with pytest.raises(InvalidArgument, match=r"disk\.img.*4096-byte sectors, not 512"):
        open_disk(image, options=OpenOptions(sector_size=512))


def test_an_image_smaller_than_a_sector_has_bytes_and_no_geometry(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"few")
    with open_disk(path, writable=True) as disk:
        assert (disk.size, disk.sectors, disk.choice) == (3, 0, None)
        disk.write(1, b"xx")
        with pytest.raises(InvalidArgument, match="has no geometry"):
            disk.geometry  # noqa: B018
    assert path.read_bytes() == b"fxx"


# Resizing with a geometry that is one's own


def test_resizing_keeps_the_heads_and_the_record_always_fits(image: Path) -> None:
    os.setxattr(image, "user.vdisk.geometry", b"20/4/17 512")
    with open_disk(image, writable=True) as disk:
        for size, recorded in ((4 * MIB, "120/4/17 512"), (100 * 512, "1/4/17 512")):
            resize_disk(disk, size)  # type: ignore[arg-type]
            assert os.getxattr(image, "user.vdisk.geometry").decode() == recorded
            assert f"{disk.geometry} 512" == recorded
        resize_disk(disk, 67 * 512)  # type: ignore[arg-type]
        assert "user.vdisk.geometry" not in os.listxattr(image)
    with open_disk(image) as disk:
        assert disk.choice is not None
        assert disk.choice.source == "profile"


@pytest.mark.parametrize("size", [67 * 512, 100 * 512, 0])
def test_killed_in_the_middle_of_a_resize_the_image_still_opens(
    image: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Between the record and the file's new size, in whichever order, both must fit."""
    os.setxattr(image, "user.vdisk.geometry", b"20/4/17 512")
    disk = open_disk(image, writable=True)

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    seen = []
    ftruncate = os.ftruncate
    monkeypatch.setattr(
        os, "ftruncate", lambda fd, to: (seen.append(os.listxattr(image)), ftruncate(fd, to))
    )
    monkeypatch.setattr("vdisk.disk_geometry.refit", killed)
    with pytest.raises(Killed):
        resize_disk(disk, size)  # type: ignore[arg-type]
    disk.close()
    assert len(seen) == 1
    if size:
        open_disk(image).close()
    else:
        assert "user.vdisk.geometry" not in os.listxattr(image)


def test_a_resize_that_fails_leaves_the_geometry_as_it_was(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.setxattr(image, "user.vdisk.geometry", b"5/4/17 512")
    with open_disk(image, writable=True) as disk:

        def full(*_: object) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "ftruncate", full)
        for size in (100 * 512, 10, 4 * MIB):
            with pytest.raises(HostError):
                resize_disk(disk, size)  # type: ignore[arg-type]
            assert str(disk.geometry) == "5/4/17"
            assert os.getxattr(image, "user.vdisk.geometry") == b"5/4/17 512"
