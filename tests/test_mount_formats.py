"""Mounted images of other formats, made by qemu-img: used as disks, then judged on the bare image.

What the guest wrote is taken out of the image by `qemu-img convert`, and there the file systems'
own checkers look at it.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import qemu
from devices import loop_mounted
from harness import Mounted, Person

MIB = 1 << 20

# The name vdisk has for a format, and how qemu-img is asked to make one.
FORMATS = {
    "vdi": "vdi",
    "vdi of fixed size": "vdi -o static=on",
    "qcow2": "qcow2",
    "vhd": "vpc -o force_size=on",
    "vhd of fixed size": "vpc -o subformat=fixed,force_size=on",
    "vhdx": "vhdx",
    "vmdk": "vmdk",
    "qed": "qed",
    "vmdk in flat files": "vmdk -o subformat=monolithicFlat",
}
UNCHECKED = ("vhd",)  # qemu-img has no check for these.
# To be tried with --slow only: used as a disk, they are as the fixed VDI is.
SLOW = ("vhd of fixed size", "vmdk in flat files", "qed")


def made(person: Person, place: Path, name: str) -> Path:
    """An empty image of 400 MiB."""
    words = FORMATS[name].split()
    path = place / f"disk.{name.split()[0]}"
    person.run("qemu-img", "create", "-q", "-f", *words, path, "400M")
    return path


@pytest.fixture(
    params=[pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FORMATS]
)
def image(request: pytest.FixtureRequest, person: Person, place: Path) -> Path:
    """An empty image of 400 MiB, as `made` makes it."""
    return made(person, place, request.param)


def plain(person: Person, image: Path) -> Path:
    """The raw bytes of an image, taken out by qemu-img; the image is checked on the way."""
    raw = image.with_name("plain.img")
    name = qemu.qemu_name(image.suffix[1:])
    if image.suffix[1:] not in UNCHECKED:
        person.run("qemu-img", "check", "-q", "-f", name, image)
    person.run("qemu-img", "convert", "-f", name, "-O", "raw", image, raw)
    return raw


@pytest.mark.parametrize("file_system", ["ext4", "xfs"])
def test_a_file_system_in_a_mounted_image_is_sound_in_the_image(
    person: Person, place: Path, mounts: Callable[..., Mounted], image: Path, file_system: str
) -> None:
    mounted = mounts(image)
    disk = mounted / "disk"
    tree = place / "tree"
    tree.mkdir()
    for number in range(60):
        (tree / f"file {number}").write_bytes(os.urandom(number * 3000))
    if person.is_root:
        person.run(f"mkfs.{file_system}", "-q", disk)
        files = place / "files"
        files.mkdir()
        with loop_mounted(disk, files):
            person.run("cp", "-r", tree, files)
            person.run("rm", files / "tree" / "file 7")
            person.run("diff", "-r", "-x", "file 7", tree, files / "tree")
    elif file_system == "ext4":
        person.run("mkfs.ext4", "-q", "-d", tree, disk)
    else:
        person.run("mkfs.xfs", "-q", disk)
    checker = ["e2fsck", "-fn"] if file_system == "ext4" else ["xfs_repair", "-n"]
    person.run(*checker, disk)
    mounted.unmount()
    person.run(*checker, plain(person, image))


@pytest.mark.parametrize("kind", FORMATS)
def test_what_a_mounted_image_shows_is_what_qemu_sees(
    person: Person, place: Path, mounts: Callable[..., Mounted], kind: str
) -> None:
    """Size, format and bytes; and the lock is the one QEMU takes."""
    image = made(person, place, kind)
    name = qemu.qemu_name(image.suffix[1:])
    write = ["-c", "write -P 7 5M 3M", "-c", "write -P 8 399M 1M"]
    person.run("qemu-io", "-f", name, *write, image)
    disk = mounts(image) / "disk"

    def look() -> None:
        with disk.open("rb") as file:
            file.seek(5 * MIB - 1)
            assert file.read(2) == b"\0\7"
            file.seek(399 * MIB)
            assert file.read() == b"\x08" * MIB
        assert disk.stat().st_size == 400 * MIB
        info = json.loads((disk.parent / ".vdisk/disk/info").read_text())
        assert info["format"] == image.suffix[1:]
        lines = (disk.parent / ".vdisk/disk/map").read_text().splitlines()
        start, _, rest = lines[-1].partition("..")
        assert int(start) <= 399 * MIB
        # In the image, or in one of its extents.
        assert rest.startswith(f"{400 * MIB} -> {image.with_suffix('')}")
        assert rest.endswith(" data")

    person.does(look)
    refused = subprocess.run(
        ["qemu-io", "-f", name, "-c", "write 0 512", str(image)], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "lock" in refused.stderr + refused.stdout


def test_a_disk_that_is_in_several_files_has_the_space_and_time_of_all_of_them(
    person: Person, place: Path, mounts: Callable[..., Mounted]
) -> None:
    image = place / "disk.vmdk"
    line = ["qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat"]
    person.run(*line, image, "20M")
    disk = mounts(image) / "disk"

    def look() -> None:
        before = disk.stat()
        with disk.open("r+b", buffering=0) as file:
            file.write(b"x" * MIB)
            os.fsync(file.fileno())
        after = disk.stat()
        assert before.st_blocks * 512 < MIB <= after.st_blocks * 512
        assert after.st_mtime_ns > before.st_mtime_ns
        assert after.st_size == 20 * MIB

    person.does(look)


def test_a_disk_that_is_only_read_looks_like_it(
    person: Person, place: Path, mounts: Callable[..., Mounted]
) -> None:
    plain, image = place / "plain.img", place / "disk.vmdk"
    person.run("sh", "-c", f"yes | head -c 3M > {plain}")
    line = ["qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    person.run(*line, plain, image)
    disk = mounts(image) / "disk"
    assert person.run("stat", "-c", "%a", disk).stdout == b"444\n"
    person.run("cmp", disk, plain)
    # Root is let through by the kernel, and told by the disk.
    told = person.run("dd", f"of={disk}", "if=/dev/zero", "count=1", "conv=notrunc", check=False)
    why = "Read-only file system" if person.is_root else "Permission denied"
    assert why.encode() in told.stderr


def test_a_daemon_that_is_killed_has_lost_no_write(
    person: Person, mounts: Callable[..., Mounted], image: Path
) -> None:
    """Every acknowledged write: an fsync of the mounted file hands them over, and then it dies."""
    mounted = mounts(image)
    content = bytearray(400 * MIB)
    places = (3 * MIB, 1 * MIB + 5, 200 * MIB, 399 * MIB + 77)
    for at in places:
        content[at : at + 20000] = b"kept" * 5000

    def write() -> None:
        with (mounted / "disk").open("r+b", buffering=0) as disk:
            for at in places:
                disk.seek(at)
                disk.write(b"kept" * 5000)
            os.fsync(disk.fileno())

    person.does(write)
    os.kill(mounted.pid, signal.SIGKILL)
    mounted.end()
    qemu.expect(image, image.suffix[1:], content, "-U")


def test_in_a_mounted_folder_images_of_every_format_are_disks(
    person: Person, place: Path, mounts: Callable[..., Mounted]
) -> None:
    disks = place / "disks"
    person.run("mkdir", disks)
    person.run("qemu-img", "create", "-q", "-f", "vdi", disks / "one.vdi", "20M")
    person.run("truncate", "-s", "1M", disks / "two.img")
    mounted = mounts(disks)
    assert sizes(person, mounted) == {"one": 20 * MIB, "two": MIB}
    person.run("truncate", "-s", "30M", mounted / "one")
    assert sizes(person, mounted) == {"one": 30 * MIB, "two": MIB}
    # What is made here is raw, and would be no VDI.
    assert person.run("cp", mounted / "two", mounted / "new.vdi", check=False).returncode != 0
    person.run("mv", mounted / "one", mounted / "three")
    assert sorted(path.name for path in disks.iterdir()) == ["three.vdi", "two.img"]
    mounted.unmount()
    person.run("qemu-img", "check", "-q", "-f", "vdi", disks / "three.vdi")
    assert qemu.info(disks / "three.vdi", "vdi")["virtual-size"] == 30 * MIB


def test_a_drive_of_a_pc98_is_mounted_with_its_sectors_of_256_bytes(
    person: Person, place: Path, mounts: Callable[..., Mounted]
) -> None:
    """The header's layout is Neko Project II kai's (`fdd/newdisk.c`)."""
    image = place / "drive.hdi"
    header = struct.pack("<8I", 0, 0, 4096, 310 * 4 * 33 * 256, 256, 33, 4, 310)
    person.does(partial(image.write_bytes, header.ljust(4096, b"\0") + bytes(310 * 4 * 33 * 256)))
    mounted = mounts(image)

    def use() -> None:
        assert (mounted / "drive").stat().st_size == 310 * 4 * 33 * 256
        folder = mounted / ".vdisk" / "drive"
        assert (folder / "geometry").read_text().startswith("310/4/33\n256 bytes per sector\n")
        sector = folder / "chs/2/3/33"
        assert sector.stat().st_size == 256
        with sector.open("r+b") as file:
            file.write(b"\x98" * 256)
        with (mounted / "drive").open("rb") as file:
            file.seek((12 * 33 - 1) * 256 - 1)
            assert file.read(258) == b"\0" + b"\x98" * 256 + b"\0"

    person.does(use)
    mounted.unmount()
    assert image.read_bytes().find(b"\x98" * 256) == 4096 + (12 * 33 - 1) * 256


def sizes(person: Person, mounted: Mounted) -> dict[str, int]:
    """What `stat` says of each disk, by name."""
    said = person.run("sh", "-c", f"cd {mounted.mountpoint} && stat -c '%n %s' *").stdout
    return {line.split()[0]: int(line.split()[1]) for line in said.decode().splitlines()}
