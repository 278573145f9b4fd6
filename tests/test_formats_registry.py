"""Which format a file is taken for: given, then recorded, then its signature; made by qemu-img."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import host_folder
from vdisk.errors import InvalidArgument, InvalidFormat, Unsupported
from vdisk.formats.registry import signature
from vdisk.host import HostFile
from vdisk.image_disk import ImageDisk
from vdisk.open import open_image
from vdisk.options import NO_OPTIONS, OpenOptions

RAW = OpenOptions(format="raw")

# The name vdisk has for a format, and how qemu-img is asked to make one.
FOREIGN = {
    "qcow2": ["-f", "qcow2"],
    "qcow2 of version 2": ["-f", "qcow2", "-o", "compat=0.10"],
    "vhd": ["-f", "vpc"],
    "vhd of fixed size": ["-f", "vpc", "-o", "subformat=fixed"],
    "vmdk": ["-f", "vmdk"],
    "vmdk that is a description of others": ["-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat"],
    "vmdk for streaming": ["-f", "vmdk", "-o", "subformat=streamOptimized"],
    "vhdx": ["-f", "vhdx"],
    "qed": ["-f", "qed"],
    "parallels": ["-f", "parallels"],
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A raw image of sixteen sectors, nothing recorded."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8192))
    return path


def opened(path: Path, options: OpenOptions = NO_OPTIONS, *, writable: bool = False) -> ImageDisk:
    return open_image(path, writable=writable, options=options)


@pytest.mark.parametrize("what", FOREIGN)
def test_an_image_of_another_format_is_refused_by_name(tmp_path: Path, what: str) -> None:
    """As raw, its tables would be shown as the guest's bytes, and a write would destroy them."""
    path = tmp_path / "disk.img"
    line = ["qemu-img", "create", "-q", *FOREIGN[what], str(path), "8M"]
    subprocess.run(line, check=True)
    before = path.read_bytes()
    for writable in (False, True):
        with pytest.raises(Unsupported, match=rf"disk\.img: is a {what.split()[0]} image") as told:
            opened(path, writable=writable)
        assert "--format raw" in str(told.value)
    assert path.read_bytes() == before
    with opened(path, RAW) as disk:
        assert disk.read(0, disk.size) == before


def test_a_signature_at_the_end_is_found_in_a_file_of_any_length(tmp_path: Path) -> None:
    """The footer of a fixed VHD is its last 512 bytes (VHD specification, "Hard disk footer")."""
    path = tmp_path / "disk.img"
    line = ["qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=fixed", str(path), "3M"]
    subprocess.run(line, check=True)
    footer = path.read_bytes()[-512:]
    path.write_bytes(bytes(777) + footer)
    with pytest.raises(Unsupported, match="vhd"):
        opened(path)
    path.write_bytes(footer[:511])
    with pytest.raises(Unsupported, match="vhd"):
        opened(path)
    path.write_bytes(bytes(777) + footer[:511])
    opened(path).close()


def test_a_guest_cannot_make_its_raw_disk_another_format(image: Path) -> None:
    """Recorded as raw once, it is raw whatever the guest writes into sector 0 (CVE-2008-2004)."""
    header = image.with_name("other.qcow2")
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", str(header)],
        check=True,
    )
    with opened(image, RAW, writable=True) as disk:
        disk.write(0, header.read_bytes()[:8192])
    with opened(image, writable=True) as disk:
        assert disk.image.name == "raw"
        assert disk.read(0, 4) == b"QFI\xfb"
        assert disk.size == 8192


def test_a_given_format_is_recorded_only_by_a_writer(image: Path) -> None:
    opened(image, RAW).close()
    assert os.listxattr(image) == []
    opened(image, RAW, writable=True).close()
    assert os.getxattr(image, "user.vdisk.format") == b"raw"


def test_looking_for_a_format_is_recorded_only_by_a_writer(image: Path) -> None:
    """Or a guest that writes a header of another format would change what the file is."""
    opened(image).close()
    assert os.listxattr(image) == []
    opened(image, writable=True).close()
    assert os.getxattr(image, "user.vdisk.format") == b"raw"


@pytest.mark.parametrize("name", ["RAW", "qcow3", "../raw", "raw ", "\0", "x" * 5000])
def test_a_format_nobody_knows_is_refused_and_the_known_ones_told(image: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="known: raw, vdi"):
        opened(image, OpenOptions(format=name), writable=True)
    assert os.listxattr(image) == []


@pytest.mark.parametrize("record", [b"vhd9", b"\xff\xfe\x1b[2J", b"r" * 3000, b"raw raw"])
def test_a_recorded_format_nobody_knows_is_refused_and_can_be_overruled(
    image: Path, record: bytes
) -> None:
    os.setxattr(image, "user.vdisk.format", record)
    with pytest.raises(Unsupported) as refusal:
        opened(image)
    message = str(refusal.value)
    assert "setfattr -x user.vdisk.format" in message
    assert message.isprintable()
    assert len(message) < 2000
    opened(image, RAW).close()


@given(st.binary(max_size=600), st.sampled_from([b"", b"conectix", b"QFI\xfb", b"koly"]))
def test_looking_for_a_signature_takes_any_bytes(content: bytes, start: bytes) -> None:
    with host_folder("memory") as folder:
        path = folder / "disk.img"
        path.write_bytes(start + content)
        host = HostFile.open(path, writable=False)
        try:
            found = signature(host)
        finally:
            host.close()
        if start in (b"conectix", b"QFI\xfb"):
            assert found is not None
        if start + content:
            opened(path, RAW).close()
        else:
            with pytest.raises(InvalidFormat, match="is empty"):
                opened(path, RAW)
