"""`vdisk mount --snapshot`: disks that are used as any, and images that stay as they are."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import qemu
from harness import Mounted, Person, refusal

MIB = 1 << 20


def test_an_image_is_used_and_stays_as_it_is(
    person: Person, place: Path, mounts: Callable[..., Mounted]
) -> None:
    """Partitioned, formatted, filled, resized; and then every byte, time and record is as it was.
    """
    image = place / "disk.vdi"
    person.run("qemu-img", "create", "-q", "-f", "vdi", image, "64M")
    person.run("qemu-io", "-f", "vdi", "-c", "write -q -P 7 1M 2M", image)
    os.utime(image, ns=(10**18, 10**18))
    before, status = image.read_bytes(), image.stat()
    mounted = mounts(image, options=("--snapshot",))
    disk = mounted / "disk"
    person.run("sfdisk", "-q", disk, stdin=b"2048,40960\n43008,+\n")
    person.run("mkfs.ext4", "-q", mounted / "disk.p1")
    person.run("mkfs.fat", mounted / "disk.p2")
    person.run("mcopy", "-i", mounted / "disk.p2", "/etc/os-release", "::here")
    person.run("truncate", "-s", "80M", disk)
    person.run("e2fsck", "-fn", mounted / "disk.p1")
    listed = person.run("mdir", "-b", "-i", mounted / "disk.p2", "::").stdout
    assert b"here" in listed

    def look() -> None:
        assert disk.stat().st_size == 80 * MIB
        assert disk.stat().st_mtime_ns != 10**18 or disk.stat().st_mode & 0o600
        with disk.open("rb") as file:
            file.seek(2 * MIB + MIB // 2)
            assert file.read(10) != b""

    person.does(look)
    # QEMU may read the image meanwhile, and not write it: both is what the lock says.
    qemu.qemu("qemu-io", "-r", "-f", "vdi", "-c", "read -q -P 7 1M 2M", image)
    write = ["qemu-io", "-f", "vdi", "-c", "write 0 512", str(image)]
    assert "lock" in subprocess.run(write, capture_output=True, text=True, check=False).stderr
    mounted.unmount()
    assert image.read_bytes() == before
    after = image.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (status.st_mtime_ns, status.st_ctime_ns)
    assert os.listxattr(image) == []


def test_a_folder_shows_its_disks_and_none_is_made_renamed_or_removed(
    person: Person, place: Path, mounts: Callable[..., Mounted]
) -> None:
    disks = place / "disks"
    person.run("mkdir", disks)
    for name in ("one.img", "two.img"):
        person.run("truncate", "-s", "1M", disks / name)
    mounted = mounts(disks, options=("-o", "snapshot"))
    one = mounted / "one"
    person.run("dd", "if=/dev/urandom", f"of={one}", "bs=64K", "count=4", "conv=notrunc")
    copy = person.run("dd", f"if={one}", "bs=64K", "count=4").stdout
    assert any(copy)
    for line in (["rm", one], ["mv", one, mounted / "three"],
                 ["cp", one, mounted / "new"]):  # fmt: skip
        assert person.run(*line, check=False).returncode != 0
    mounted.unmount()
    assert sorted(path.name for path in disks.iterdir()) == ["one.img", "two.img"]
    assert not any((disks / "one.img").read_bytes())


def test_what_excludes_each_other_is_said(person: Person, place: Path) -> None:
    person.run("truncate", "-s", "1M", place / "disk.img")
    for words in (["-r"], ["-o", "ro"], ["--create", "1M"]):
        said = refusal(
            person, "mount", "--snapshot", *words, place / "disk.img", place / "mnt", status=2
        )
        assert "excludes" in said
    assert not (place / "mnt").exists()
