"""Drives on the command line: what is printed, asked and refused, and what is then there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import done, output, refused, vdisk
from lvm2_images import MIB, blank, read_group
from model import host_folder
from vdisk.open import open_disk


@pytest.fixture
def folder() -> Iterator[Path]:
    with host_folder("disk") as made:
        yield made


@pytest.fixture
def drive(folder: Path) -> Path:
    path = folder / "drive.img"
    said = done("drive", "init", path, "--size", "64M")
    assert said.startswith(f"{path}: drive drive, ")
    return path


def report(drive: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(done("drive", "info", "--json", drive))
    return found


def names(drive: Path) -> list[str]:
    return [lv.name for lv in read_group(drive).vg.lvs]


def test_volumes_are_made_by_size_geometry_and_profile(drive: Path) -> None:
    assert "10 MiB, geometry" in done("create", f"{drive}/alpha", "--size", "10M")
    said = vdisk("create", f"{drive}/beta", "--chs", "20/4/17").stdout.decode()
    assert "geometry 20/4/17" in said
    said = vdisk("create", f"{drive}/floppy", "--profile", "1.44M").stdout.decode()
    assert "geometry 80/2/18" in said
    for name, chs in (("beta", "20/4/17"), ("floppy", "80/2/18")):
        found = json.loads(done("info", "--json", f"{drive}/{name}"))
        assert found["geometry"]["source"] == "stored"
        geometry = found["geometry"]
        told = [geometry[key] for key in ("cylinders", "heads", "sectors_per_track")]
        assert "/".join(map(str, told)) == chs
        assert found["format"] == "lvm2"
        assert found["host_files"] == [str(drive)]


def test_many_volumes_are_one_commit(drive: Path) -> None:
    before = read_group(drive).vg.seqno
    done("create", *(f"{drive}/d{n}" for n in range(40)), "--size", "256K")
    group = read_group(drive)
    assert (group.vg.seqno, len(group.vg.lvs)) == (before + 1, 40)
    said = refused("create", f"{drive}/new", f"{drive}/d7", "--size", "256K")
    assert "there is a volume d7" in said
    done("remove", *(f"{drive}/d{n}" for n in range(40)))
    assert (read_group(drive).vg.seqno, names(drive)) == (before + 2, [])


def test_files_and_volumes_can_be_made_together(folder: Path, drive: Path) -> None:
    done("create", folder / "a.img", f"{drive}/b", folder / "c.vdi", "--size", "1M")
    assert names(drive) == ["b"]
    assert (folder / "a.img").stat().st_size == MIB
    assert json.loads(done("info", "--json", folder / "c.vdi"))["format"] == "vdi"
    said = refused("create", f"{drive}/x", "--size", "1M", "--format", "vdi")
    assert "has no format" in said


def test_a_full_drive_says_how_much_is_free(drive: Path) -> None:
    said = refused("create", f"{drive}/a", "--size", "1G")
    assert "62 MiB free" in said
    assert str(drive) in said


def test_bytes_go_in_and_come_out_of_volumes_and_their_partitions(
    folder: Path, drive: Path
) -> None:
    done("create", f"{drive}/a", "--size", "4M")
    done("partition", f"{drive}/a", "--table", "mbr", "--add", "1M", "--add", "1M")
    done("write", f"{drive}/a/p2", stdin=b"inside")
    with open_disk(f"{drive}/a/p2") as part:
        assert part.read(0, 6) == b"inside"
    found = json.loads(done("info", "--json", f"{drive}/a"))
    at = found["partitions"][1]["start_lba"] * 512
    read = vdisk("read", f"{drive}/a", "--offset", str(at), "--length", "6").stdout
    assert read == b"inside"
    rows = json.loads(done("map", "--json", f"{drive}/a/p2"))
    row = next(row for row in rows if row["kind"] == "data")
    with drive.open("rb") as file:
        file.seek(row["host_offset"])
        assert (row["guest_offset"], file.read(6)) == (0, b"inside")


def test_a_file_system_is_removed_only_with_force(folder: Path, drive: Path) -> None:
    copy = blank(folder / "fs.img", 8 * MIB)
    subprocess.run(["mkfs.ext4", "-q", copy], check=True)
    done("create", f"{drive}/a", "--size", "8M")
    done("write", f"{drive}/a", stdin=copy.read_bytes())
    said = refused("remove", f"{drive}/a")
    assert "an ext4 file system" in said
    assert "--force" in said
    said = refused("resize", f"{drive}/a", "4M")
    assert "an ext4 file system" in said
    said = refused("remove", copy)
    assert "an ext4 file system" in said
    assert copy.exists()
    assert names(drive) == ["a"]
    done("resize", "--force", f"{drive}/a", "4M")
    assert read_group(drive).vg.lvs[0].extents == 16
    done("remove", "--force", f"{drive}/a", copy)
    assert names(drive) == []
    assert not copy.exists()


def test_init_asks_before_it_overwrites(folder: Path, drive: Path) -> None:
    done("create", f"{drive}/a", "--size", "1M")
    said = refused("drive", "init", drive)
    assert "holds the drive drive (1 volume)" in said
    other = blank(folder / "fs.img", 16 * MIB)
    subprocess.run(["sfdisk", "-q", other], input=b"label: gpt\n,1M\n", check=True)
    before = other.read_bytes()
    said = refused("drive", "init", other)
    assert "a GPT partition table (1 partition)" in said
    vdi = folder / "disk.vdi"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vdi", vdi, "16M"], check=True)
    os.truncate(vdi, 16 * MIB)
    assert "a disk image (vdi)" in refused("drive", "init", vdi)
    assert other.read_bytes() == before
    done("drive", "init", "--force", other, "--name", "mine")
    assert read_group(other).vg.name == "mine"
    assert "cannot be named" in refused("drive", "init", folder / "new", "--size", "8M",
                                        "--name", "a b")
    assert not (folder / "new").exists()


def test_disks_are_renamed_where_they_are(folder: Path, drive: Path) -> None:
    done("create", f"{drive}/a", f"{drive}/b", folder / "x.img", "--size", "1M")
    done("rename", f"{drive}/a", "c")
    done("rename", f"{drive}/c", f"{drive}/d")
    assert sorted(names(drive)) == ["b", "d"]
    assert "is there already" in refused("rename", f"{drive}/d", "b")
    assert "where it is" in refused("rename", f"{drive}/d", folder / "y.img")
    assert "no such disk" in refused("rename", f"{drive}/missing", "z")
    done("rename", folder / "x.img", "y")
    assert (folder / "y.img").exists()
    assert "cannot be named" in refused("rename", "--", f"{drive}/d", "-d")


def test_a_partition_is_renamed_and_removed_in_its_table(drive: Path) -> None:
    done("create", f"{drive}/a", "--size", "8M")
    done("partition", f"{drive}/a", "--table", "gpt", "--add", "1M", "--add", "1M")
    done("rename", f"{drive}/a/p2", "boot")
    found = json.loads(done("info", "--json", f"{drive}/a"))["partitions"]
    assert [one["name"] for one in found] == ["", "boot"]
    done("remove", f"{drive}/a/p1")
    found = json.loads(done("info", "--json", f"{drive}/a"))["partitions"]
    assert [one["number"] for one in found] == [2]
    assert "cannot be resized" in refused("resize", f"{drive}/a/p2", "2M")


def test_a_copy_has_the_bytes_and_the_geometry(folder: Path, drive: Path) -> None:
    done("create", f"{drive}/a", "--chs", "8/16/64")
    done("write", f"{drive}/a", "--offset", "1M", stdin=b"some" * 1000)
    content = vdisk("read", f"{drive}/a").stdout
    for target in (f"{drive}/b", folder / "c.img", folder / "d.vdi"):
        done("copy", f"{drive}/a", target)
        assert vdisk("read", target).stdout == content
        assert done("chs", target).split()[0] == "8/16/64"
        assert "already" in refused("copy", f"{drive}/a", target)
    done("copy", folder / "d.vdi", f"{drive}/e")
    assert vdisk("read", f"{drive}/e").stdout == content
    output("qemu-img", "compare", folder / "c.img", folder / "d.vdi", "-f", "raw", "-F", "vdi")
    before = names(drive)
    assert "are needed" in refused("copy", drive, f"{drive}/whole")
    assert names(drive) == before


def test_a_copy_goes_from_and_to_partitions(folder: Path, drive: Path) -> None:
    done("create", f"{drive}/a", "--size", "8M")
    done("partition", f"{drive}/a", "--table", "gpt", "--add", "2M", "--add", "2M", "--add", "1M")
    image = blank(folder / "part.img", 2 * MIB)
    subprocess.run(["mkfs.ext2", "-q", image], check=True)
    done("copy", image, f"{drive}/a/p1")
    assert "an ext2 file system" in refused("copy", image, f"{drive}/a/p1")
    done("copy", f"{drive}/a/p1", f"{drive}/a/p2")
    done("copy", f"{drive}/a/p2", f"{drive}/b")
    done("copy", f"{drive}/b", folder / "back.img")
    output("cmp", "-n", str(2 * MIB), image, folder / "back.img")
    assert "has 1048576 bytes" in refused("copy", image, f"{drive}/a/p3")


def test_what_is_no_drive_is_refused_in_one_line(folder: Path, drive: Path) -> None:
    image = blank(folder / "image.img", 4 * MIB)
    assert "is no drive" in refused("drive", "info", image)
    assert "inside" in refused("create", f"{image}/x", "--size", "1M")
    assert "no volume 'x'" in refused("info", f"{drive}/x")
    assert "vdisk drive info" in refused("remove", f"{drive}/x/y")
    with drive.open("r+b") as file:  # The label's checksum.
        file.seek(512 + 100)
        file.write(b"x")
    assert "label in sector 1 is damaged" in refused("drive", "info", drive)


def test_with_one_good_copy_it_opens_and_says_so(drive: Path) -> None:
    done("create", f"{drive}/a", "--size", "1M")
    with drive.open("r+b") as file:
        file.seek(4096 + 100)
        file.write(b"damage")
    found = report(drive)
    assert found["problems"]
    assert "damaged" in done("drive", "info", drive)
    done("create", f"{drive}/b", "--size", "1M")
    assert report(drive)["problems"] == []
    assert names(drive) == ["a", "b"]


def test_info_names_the_volumes_on_an_image(drive: Path) -> None:
    done("create", f"{drive}/a", "--size", "1M")
    found = done("info", drive)
    assert "Volume group: drive" in found
    (group,) = json.loads(done("info", "--json", drive))["volume_groups"]
    assert [one["address"] for one in group["volumes"]] == [f"{drive}/a"]
