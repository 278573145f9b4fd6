"""QEMU's tools and a mount: each reads what the other wrote; neither writes beside the other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from harness import Mounted, Person, make_image, sfdisk
from holders import qemu_io

Mounts = Callable[..., Mounted]

MIB = 1 << 20
SIZE = 24 * MIB
TABLE = "label: dos\nstart=2048,size=16384\nstart=18432\n"  # From 1 MiB, and from 9 MiB on.


@pytest.fixture
def image(person: Person, place: Path) -> Path:
    made = make_image(place / "disk.img", SIZE, person)
    sfdisk(made, TABLE, person=person)
    return made


def test_qemu_reads_what_was_written_through_the_mount(
    person: Person, image: Path, mounts: Mounts
) -> None:
    """Through the disk, a partition and a track; unaligned, and over a partition's first byte."""
    mounted = mounts(image, options=("--chs", "48/16/63"))
    _fill(person, mounted / "disk.p1", 5 * MIB + 123, 4567, b"\xa1")
    _fill(person, mounted / "disk.p2", 0, 2 * MIB, b"\xa2")
    _fill(person, mounted / "disk", 9 * MIB - 1000, 1500, b"\xa3")
    # Track 40/3 begins at sector (40 * 16 + 3) * 63.
    _fill(person, mounted / ".vdisk/disk/chs/40/3/track", 0, 63 * 512, b"\xa4")
    mounted.unmount()
    written = [
        (6 * MIB + 123, 4567, 0xA1),
        (9 * MIB + 500, 2 * MIB - 500, 0xA2),
        (9 * MIB - 1000, 1500, 0xA3),
        (643 * 63 * 512, 63 * 512, 0xA4),
        (6 * MIB, 123, 0),
        (6 * MIB + 123 + 4567, 5000, 0),
    ]
    for offset, length, value in written:
        told = person.run("qemu-io", "-r", "-f", "raw", "-c", f"read -P {value} {offset} {length}",
                          image)  # fmt: skip
        assert b"Pattern verification failed" not in told.stdout
        assert f"read {length}/{length} bytes".encode() in told.stdout
    assert "disk.p2" not in person.run("ls", mounted.mountpoint).stdout.decode()


def test_the_mount_shows_what_qemu_wrote(person: Person, image: Path, mounts: Mounts) -> None:
    mounts(image).unmount()
    writes = [f"write -P {0xB0 + n} {n * 5 * MIB + 3 * MIB + n * 77} {65536 + n}" for n in range(4)]
    _qemu_io(person, image, *writes)
    mounted = mounts(image)
    for n in range(4):
        start, length = n * 5 * MIB + 3 * MIB + n * 77, 65536 + n
        expected = bytes([0xB0 + n]) * length
        assert _part(person, mounted / "disk", start, length) == expected
        name, base = ("disk.p1", MIB) if start < 9 * MIB else ("disk.p2", 9 * MIB)
        assert _part(person, mounted / name, start - base, length) == expected


def test_qemu_works_on_the_mounted_disk_itself(
    person: Person, place: Path, image: Path, mounts: Mounts
) -> None:
    """qemu-img converts onto mnt/disk, compares it, and qemu-io writes to its partition."""
    source = make_image(place / "source", SIZE, person)
    person.run("dd", f"of={source}", "conv=notrunc", stdin=Random(4).randbytes(SIZE // 2))
    person.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, place / "source.qcow2")
    mounted = mounts(image)
    person.run(
        "qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw",
        place / "source.qcow2", mounted / "disk",
    )  # fmt: skip
    person.run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, mounted / "disk")
    _qemu_io(person, mounted / "disk", f"write -P 0xcc {20 * MIB} 1M", "flush")
    _qemu_io(person, source, f"write -P 0xcc {20 * MIB} 1M")
    mounted.unmount()
    assert _hash(image) == _hash(source)


@pytest.mark.parametrize(
    "command",
    [
        ["qemu-io", "-f", "raw", "-c", "write 0 512"],
        ["qemu-io", "-c", "discard 0 1M"],
        ["qemu-img", "resize", "--shrink", "-f", "raw", "{image}", "1M"],
        ["qemu-img", "convert", "-f", "raw", "-O", "raw", "{image}", "{image}.copy"],
        ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "{image}.other", "{image}"],
        [
            "qemu-storage-daemon", "--blockdev", "file,node-name=node,filename={image}",
            "--nbd-server", "addr.type=unix,addr.path={image}.socket",
            "--export", "nbd,id=export,node-name=node,writable=on",
        ],
    ],
    ids=["io-write", "io-discard", "img-resize", "img-read", "img-write", "server"],
)
def test_qemu_is_refused_while_the_disk_is_mounted_writable(
    person: Person, image: Path, mounts: Mounts, command: list[str]
) -> None:
    make_image(Path(f"{image}.other"), SIZE, person)
    before = _hash(image)
    mounts(image)
    words = [word.format(image=image) for word in command]
    if command[0] == "qemu-io":
        words.append(str(image))
    refused = person.run(*words, check=False)
    said = (refused.stdout + refused.stderr).decode()
    assert refused.returncode != 0, said
    assert "lock" in said
    assert _hash(image) == before
    assert image.stat().st_size == SIZE


def test_qemu_may_read_and_not_write_a_disk_mounted_read_only(
    person: Person, place: Path, image: Path, mounts: Mounts
) -> None:
    _qemu_io(person, image, "write -P 0x77 2M 64k")
    mounted = mounts(image, options=("-r",))
    told = person.run("qemu-io", "-r", "-f", "raw", "-c", "read -P 0x77 2M 64k", image)
    assert b"read 65536/65536 bytes" in told.stdout
    assert b"Pattern" not in told.stdout
    person.run("qemu-img", "convert", "-f", "raw", "-O", "raw", image, place / "copy")
    refused = person.run("qemu-io", "-f", "raw", "-c", "write 0 512", image, check=False)
    assert refused.returncode != 0
    assert b"lock" in refused.stderr
    assert _part(person, mounted / "disk", 2 * MIB, 65536) == b"\x77" * 65536


@pytest.mark.parametrize("options", [(), ("-r",)], ids=["writable", "read-only"])
def test_a_mount_of_a_disk_that_qemu_writes_to_is_refused_in_one_line(
    person: Person, place: Path, image: Path, options: tuple[str, ...]
) -> None:
    with qemu_io(image, person=person) as holder:
        refused = person.vdisk("mount", *options, image, place / "mnt", check=False)
        said = refused.stderr.decode()
        assert refused.returncode != 0
        assert said.count("\n") == 1
        assert said.startswith(f"vdisk: {image}: ")
        assert f"qemu-io (pid {holder.pid})" in said
        assert not (place / "mnt").exists()


def test_a_disk_that_qemu_only_reads_is_mounted_read_only_and_not_writable(
    person: Person, place: Path, image: Path, mounts: Mounts
) -> None:
    with qemu_io(image, "-r", person=person) as holder:
        mounted = mounts(image, options=("-r",))
        assert _part(person, mounted / "disk", 510, 2) == b"\x55\xaa"
        mounted.unmount()
        person.run("qemu-io", "-r", "-f", "raw", "-c", "read 0 512", image)
    assert holder.process.returncode == 0


def test_the_disk_is_qemu_s_again_as_soon_as_umount_returns(
    person: Person, image: Path, mounts: Mounts
) -> None:
    for turn in range(5):
        mounted = mounts(image)
        _fill(person, mounted / "disk", 3 * MIB, 4096, bytes([turn]))
        mounted.unmount()
        _qemu_io(person, image, f"read -P {turn} 3M 4k", f"write -P {turn + 100} 4M 4k")


def _qemu_io(person: Person, image: Path, *commands: str) -> None:
    words = [word for command in commands for word in ("-c", command)]
    told = person.run("qemu-io", "-f", "raw", *words, image)
    assert b"failed" not in told.stdout + told.stderr


def _fill(person: Person, file: Path, offset: int, length: int, value: bytes) -> None:
    """`length` bytes `value` from `offset` on, by one write after another of 1 MiB at most."""
    words = [f"of={file}", "bs=1M", "oflag=seek_bytes", f"seek={offset}", "conv=notrunc"]
    person.run("dd", *words, "iflag=fullblock", stdin=value * length)


def _part(person: Person, file: Path, offset: int, length: int) -> bytes:
    flags = ["iflag=skip_bytes,count_bytes", f"skip={offset}", f"count={length}"]
    return person.run("dd", f"if={file}", "bs=1M", *flags).stdout


def _hash(image: Path) -> str:
    with image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
