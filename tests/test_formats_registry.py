"""Which format a file is taken for: given, then recorded, then its signature; made by qemu-img."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import host_folder
from vdisk.errors import Corrupt, InvalidArgument, InvalidFormat, Unsupported
from vdisk.formats.registry import FORMATS, signature
from vdisk.host import HostFile
from vdisk.image_disk import ImageDisk
from vdisk.open import NO_OPTIONS, OpenOptions, open_image

RAW = OpenOptions(format="raw")

# The name vdisk has for a format, and how qemu-img is asked to make one.
FOREIGN = {
    "vhdx": ["-f", "vhdx"],
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
    for size in (777, 0):
        for length in (512, 511):
            path.write_bytes(bytes(size) + footer[:length])
            with pytest.raises(Corrupt, match=f"file has room for {size}"):
                opened(path)
    path.write_bytes(bytes(777) + footer[:510])
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
    with pytest.raises(InvalidArgument, match=f"known: {', '.join(sorted(FORMATS))}"):
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


# The first bytes that each kind of image begins with, and a tool that opens it.
ELSEWHERE = {
    "EnCase evidence": (0, b"EVF\x09\x0d\x0a\xff\0\1\1\0\0\0", "ewfmount"),
    "EnCase 7 evidence": (0, b"EVF2\x0d\x0a\x81\0", "ewfmount"),
    "Advanced Forensic Format": (0, b"AFF10\x0d\x0a\0", "affuse"),
    "Apple disk image": (-512, b"koly\0\0\0\4", "dmg2img"),
    "CloneCD": (0, b"\0" + b"\xff" * 10 + b"\0\0\2\0\1", "ccd2iso"),
    "Alcohol": (0, b"MEDIA DESCRIPTOR\x01\x05", "mdf2iso"),
    "ISO 9660": (0x8000, b"\1CD001\1\0", "mount -o loop"),
    "Bochs": (0, b"Bochs Virtual HD Image\0", "qemu-img"),
}  # fmt: skip


@pytest.mark.parametrize("what", ELSEWHERE)
def test_an_image_that_is_not_opened_here_is_refused_with_a_tool_that_opens_it(
    tmp_path: Path, what: str
) -> None:
    offset, magic, tool = ELSEWHERE[what]
    content = bytearray(1 << 20)
    at = offset % len(content)
    content[at : at + len(magic)] = magic
    path = tmp_path / "disk.bin"
    path.write_bytes(content)
    with pytest.raises(Unsupported, match=tool):
        opened(path, writable=True)
    with opened(path, RAW) as disk:
        assert disk.read(0, disk.size) == content


def test_a_cd_that_is_a_disk_as_well_is_opened(tmp_path: Path) -> None:
    """A hybrid, as most installers are today: a partition table, and an ISO 9660 file system."""
    path = tmp_path / "installer.iso"
    path.write_bytes(bytes(1 << 20))
    subprocess.run(["sfdisk", "-q", str(path)], input=b"64,,0x17,*\n", check=True)
    with path.open("r+b") as file:
        file.seek(0x8000)
        file.write(b"\1CD001\1\0")
    with opened(path) as disk:
        assert disk.image.name == "raw"


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
