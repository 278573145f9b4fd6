"""LVM2's own tools and vdisk agree: drives made here, and groups that LVM2 made, in images.

The tools look through loop devices, without the kernel's device mapper, so that takes root.
"""

from __future__ import annotations

import json
import subprocess
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

import lvm2
from cli import done, refused, vdisk
from harness import Person, mount
from lvm2 import Tools, attached
from lvm2_images import MIB, blank
from vdisk.errors import Unsupported
from vdisk.open import open_disk

pytestmark = lvm2.TAKES_ROOT


def report(drive: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done("drive", "info", "--json", drive))
    return found


def check_agrees(drive: Path) -> None:
    """Every number that both say is the same."""
    ours = report(drive)
    with attached(drive) as tools:
        tools.check(ours["name"])
        (vg,) = tools.report(
            "vgs", columns="vg_name,vg_uuid,vg_extent_size,vg_extent_count,vg_free_count,vg_seqno,"
            "lv_count,vg_size,vg_free,vg_mda_count",
        )  # fmt: skip
        assert (vg["vg_name"], vg["vg_uuid"]) == (ours["name"], ours["uuid"])
        for theirs, mine in (
            ("vg_extent_size", ours["extent_bytes"]), ("vg_extent_count", ours["extents"]),
            ("vg_free_count", ours["free_extents"]), ("vg_seqno", ours["sequence_number"]),
            ("lv_count", len(ours["volumes"])), ("vg_size", ours["size_bytes"]),
            ("vg_free", ours["free_bytes"]), ("vg_mda_count", ours["metadata_copies"]),
        ):  # fmt: skip
            assert int(vg[theirs]) == mine, theirs
        columns = "pv_uuid,dev_size,pe_start,pv_pe_count,pv_pe_alloc_count"
        (pv,) = tools.report("pvs", columns=columns)
        (physical,) = ours["physical_volumes"]
        assert pv["pv_uuid"] == physical["uuid"]
        assert int(pv["dev_size"]) == physical["size_bytes"]
        assert int(pv["pe_start"]) == physical["first_extent_offset"]
        assert int(pv["pv_pe_count"]) == physical["extents"]
        assert int(pv["pv_pe_alloc_count"]) == physical["extents"] - physical["free_extents"]
        _check_volumes(tools, ours)


def _check_volumes(tools: Tools, ours: dict[str, Any]) -> None:
    theirs, places = tools.volumes(), tools.places()
    assert set(theirs) == {volume["name"] for volume in ours["volumes"]}
    for volume in ours["volumes"]:
        row = theirs[volume["name"]]
        assert row["lv_uuid"] == volume["uuid"]
        assert int(row["lv_size"]) == volume["size_bytes"]
        assert set(filter(None, row["lv_tags"].split(","))) == set(volume["tags"])
        runs = [stripe for segment in volume["segments"] for stripe in segment["stripes"]]
        ranges = [f"0:{run['first']}-{run['first'] + run['count'] - 1}" for run in runs]
        assert places[volume["name"]] == ranges
    mapped = [(run["first"], run["count"]) for run in ours["map"]]
    assert mapped[0][0] == 0
    assert all(a[0] + a[1] == b[0] for a, b in pairwise(mapped))
    assert sum(count for _, count in mapped) == ours["extents"]


def test_the_session_that_the_help_begins_with(tmp_path: Path) -> None:
    """A drive, volumes, a mount, the shell; and after it all, LVM2 agrees in every number."""
    drive, mnt, person = tmp_path / "drive.img", tmp_path / "mnt", Person()
    done("drive", "init", drive, "--size", "20G")
    done("create", f"{drive}/alpha", "--size", "160M", "--profile", "bios")
    done("create", f"{drive}/beta", "--chs", "1024/16/63")
    check_agrees(drive)
    mounted = mount(person, [drive], mnt)
    try:
        person.run("truncate", "-s", "1G", mnt / "gamma")
        with (mnt / "alpha").open("r+b") as file:
            file.write(Random(1).randbytes(5 * MIB))
        person.run("cp", mnt / "alpha", mnt / "alpha-copy")
        person.run("cmp", mnt / "alpha", mnt / "alpha-copy")
        person.run("mv", mnt / "beta", mnt / "data")
        person.run("rm", mnt / "alpha")
        assert sorted(p.name for p in mnt.iterdir()) == ["alpha-copy", "data", "gamma"]
        told = person.run("df", "-B1", "--output=size,avail", mnt).stdout.split()
        # Looks only, while it is mounted.
        found = report(drive)
        assert [int(word) for word in told[-2:]] == [found["size_bytes"], found["free_bytes"]]
        said = refused("resize", f"{drive}/gamma", "2G")
        assert "in use by" in said
    finally:
        mounted.unmount()
    done("resize", f"{drive}/gamma", "4G")
    check_agrees(drive)
    (gamma,) = (one for one in report(drive)["volumes"] if one["name"] == "gamma")
    assert len(gamma["segments"]) == 2  # Not only into a free neighbour.
    assert vdisk("read", f"{drive}/data", "--chs", "1023/15/63").stdout == bytes(512)


def test_what_lvm2_does_to_a_drive_is_seen_here(tmp_path: Path) -> None:
    """Extended, removed, renamed and tagged; then changed here again."""
    drive = tmp_path / "drive.img"
    done("drive", "init", drive, "--size", "256M")
    done("create", f"{drive}/a", f"{drive}/b", f"{drive}/c", "--size", "16M")
    done("write", f"{drive}/a", stdin=b"first")
    with attached(drive) as tools:
        tools.create("drive", "new", "-L", "8M")
        tools.run("lvextend", "-L", "+24M", "drive/a")
        tools.run("lvremove", "-f", "drive/b")
        tools.run("lvrename", "drive", "c", "d")
        tools.run("lvchange", "--addtag", "mine", "drive/d")
    check_agrees(drive)
    with open_disk(f"{drive}/a") as disk:
        assert (disk.size, disk.read(0, 5)) == (40 * MIB, b"first")
    done("resize", f"{drive}/a", "64M")
    done("remove", f"{drive}/new")
    check_agrees(drive)
    tags = {one["name"]: one["tags"] for one in report(drive)["volumes"]}
    assert "mine" in tags["d"]


def test_a_block_device_is_a_drive(tmp_path: Path) -> None:
    image, mnt, person = blank(tmp_path / "disk", 96 * MIB), tmp_path / "mnt", Person()
    with attached(image) as tools:
        (device,) = tools.devices
        done("drive", "init", device, "--name", "disks")
        done("create", f"{device}/a", f"{device}/b", "--size", "16M")
        mounted = mount(person, [Path(device)], mnt)
        try:
            assert "in use by" in refused("create", f"{device}/c", "--size", "16M")
            person.run("mkfs.ext4", "-q", mnt / "a")
            person.run("truncate", "-s", "32M", mnt / "c")
            person.run("cp", mnt / "a", mnt / "d")
            person.run("e2fsck", "-fn", mnt / "d")
            person.run("rm", mnt / "b")
        finally:
            mounted.unmount()
        found = json.loads(done("drive", "info", "--json", device))
        assert {one["name"]: one["size_bytes"] >> 20 for one in found["volumes"]} == {
            "a": 16, "c": 32, "d": 16,
        }  # fmt: skip
        tools.check("disks")


@pytest.fixture
def grouped(tmp_path: Path) -> Path:
    """A disk with a partition that LVM2 made a physical volume of, with volumes of many kinds."""
    image, part = tmp_path / "server.img", blank(tmp_path / "part", 120 * MIB)
    other = blank(tmp_path / "other", 64 * MIB)
    with attached(part, other) as tools:
        one, two = tools.devices
        tools.run("pvcreate", one, two)
        tools.run("vgcreate", "-s", "1M", "vg0", one, two)
        tools.create("vg0", "root", "-L", "20M", one)
        tools.create("vg0", "scattered", "-L", "8M", f"{one}:40-43", f"{one}:60-63")
        tools.create("vg0", "striped", "-L", "16M", "-i", "2", "-I", "64k")
        tools.create("vg0", "away", "-L", "8M", two)
    blank(image, 128 * MIB)
    subprocess.run(
        ["sfdisk", "-q", image], input=b"label: gpt\n,4M\n,120M,V\n", check=True
    )
    with image.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(part.read_bytes())
    return image


def test_groups_inside_images_are_listed_and_opened(grouped: Path) -> None:
    with open_disk(f"{grouped}/p2/root", writable=True) as disk:
        assert (disk.size, disk.address) == (20 * MIB, f"{grouped}/p2/root")
        disk.write(0, b"root" * 1000)
    (group,) = json.loads(done("info", "--json", grouped))["volume_groups"]
    found = {one["name"]: one["problem"] for one in group["volumes"]}
    assert found["root"] is found["scattered"] is None
    assert "is missing" in found["away"]
    assert "is missing" in found["striped"]
    assert any("missing" in problem for problem in group["problems"])
    assert "is missing" in refused("read", f"{grouped}/p2/away")
    said = refused("create", f"{grouped}/p2/new", "--size", "4M")
    assert "is missing" in said
    with pytest.raises(Unsupported, match="missing"):
        open_disk(f"{grouped}/p2/away")
    told = vdisk("info", grouped).stdout.decode()
    assert "cannot be opened: " in told
    assert json.loads(done("drive", "info", "--json", f"{grouped}/p2"))["name"] == "vg0"


def test_a_mounted_image_shows_the_volumes_on_it(grouped: Path, tmp_path: Path) -> None:
    """Beside the partitions; each view sees at once what is written by another."""
    content = Random(3).randbytes(8 * MIB)
    mnt, person = tmp_path / "mnt", Person()
    mounted = mount(person, [grouped], mnt)
    try:
        names = sorted(path.name for path in mnt.iterdir())
        assert names == ["server", "server.p1", "server.p2", "server.p2.root",
                         "server.p2.scattered"]  # fmt: skip
        volume = mnt / "server.p2.scattered"
        with (mnt / "server").open("rb", buffering=0) as whole:
            whole.seek(5 * MIB)
            whole.read(120 * MIB)  # Which the kernel now has in its cache.
            with volume.open("r+b", buffering=0) as part:
                part.write(content)
            whole.seek(0)
            image = whole.read(128 * MIB)
        for first, offset in ((40, 0), (60, 4 * MIB)):
            at = 5 * MIB + (1 + first) * MIB
            assert image[at : at + 4 * MIB] == content[offset : offset + 4 * MIB]
        with (mnt / "server").open("r+b", buffering=0) as whole:
            whole.seek(5 * MIB + 61 * MIB)
            whole.write(b"by the whole")
        with volume.open("rb", buffering=0) as part:
            part.seek(4 * MIB)
            assert part.read(12) == b"by the whole"
        person.run("mkfs.ext4", "-q", mnt / "server.p2.root")
        person.run("e2fsck", "-fn", mnt / "server.p2.root")
        for words in (["rm", volume], ["mv", volume, mnt / "other"], ["truncate", "-s1G", volume]):
            assert person.run(*words, check=False).returncode != 0
    finally:
        mounted.unmount()
    with open_disk(f"{grouped}/p2/scattered") as disk:
        expected = content[: 4 * MIB] + b"by the whole" + content[4 * MIB + 12 :]
        assert disk.read(0, 8 * MIB) == expected


def test_volumes_follow_the_metadata_as_it_is_rewritten(tmp_path: Path) -> None:
    """By LVM2, on a loop device of the mounted disk."""
    image, mnt, person = blank(tmp_path / "disk.img", 64 * MIB), tmp_path / "mnt", Person()
    mounted = mount(person, [image], mnt)
    try:
        with attached(mnt / "disk") as tools:
            tools.run("vgcreate", "vg", *tools.devices)
            tools.create("vg", "one", "-L", "8M")
            subprocess.run(["blockdev", "--flushbufs", *tools.devices], check=True)
            assert sorted(path.name for path in mnt.iterdir()) == ["disk", "disk.one"]
            tools.run("lvrename", "vg", "one", "two")
            subprocess.run(["blockdev", "--flushbufs", *tools.devices], check=True)
        assert sorted(path.name for path in mnt.iterdir()) == ["disk", "disk.two"]
    finally:
        mounted.unmount()
