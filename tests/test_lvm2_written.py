"""What vdisk writes, LVM2 reads: the label, the areas, the text and every number in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lvm2
from lvm2_images import HOST, MIB, TIME, commit, drive, read_file, read_group, with_volumes
from vdisk.errors import InvalidArgument, NoSpace
from vdisk.geometry import Geometry
from vdisk.tables.lvm2 import (
    NewVolume,
    VolumeGroup,
    check_tag,
    check_volume_name,
    create,
    geometry_of,
    remove,
    rename,
    resize,
    set_tags,
    space,
    with_geometry,
)
from vdisk.tables.lvm2.ring import text_bytes_max

pytestmark = lvm2.TAKES_ROOT


def expected_places(vg: VolumeGroup) -> dict[str, list[str]]:
    """What `Tools.places` says of `vg`; its last extents are inclusive."""
    numbers = {pv.key: number for number, pv in enumerate(vg.pvs)}
    return {
        lv.name: [
            f"{numbers[taken.pv]}:{taken.first}-{taken.end - 1}"
            for segment in lv.segments
            for taken in segment.ranges()
        ]
        for lv in vg.lvs
    }


def assert_same(tools: lvm2.Tools, image: Path) -> None:
    """`pvs`, `vgs` and `lvs` agree with what vdisk reads, in every number."""
    group = read_group(image)
    vg, pv, found = group.vg, group.vg.pvs[0], read_file(image)
    tools.check(vg.name)
    assert tools.metadata() == group.text.rstrip(b"\0").decode()
    columns = (
        "vg_name,vg_uuid,vg_seqno,vg_extent_size,vg_size,vg_free,lv_count,pv_count,vg_mda_count,"
        "vg_extent_count,vg_free_count"
    )
    (row,) = tools.report("vgs", columns=columns)
    room = space(vg)
    assert row == {
        "vg_name": vg.name, "vg_uuid": vg.id, "vg_seqno": str(vg.seqno), "pv_count": "1",
        "vg_extent_size": str(vg.extent_bytes), "vg_size": str(room.total),
        "vg_free": str(room.free), "lv_count": str(len(vg.lvs)), "vg_mda_count": "2",
        "vg_extent_count": str(pv.pe_count), "vg_free_count": str(room.free // vg.extent_bytes),
    }  # fmt: skip
    (row,) = tools.report(
        "pvs", columns="pv_uuid,dev_size,pe_start,pv_size,pv_pe_count,pv_mda_count,pv_mda_size"
    )
    assert row == {
        "pv_uuid": pv.id, "dev_size": str(found.label.device_size),
        "pe_start": str(pv.pe_start * 512), "pv_size": str(room.total),
        "pv_pe_count": str(pv.pe_count), "pv_mda_count": "2",
        "pv_mda_size": str(found.label.metadata_areas[0].length),
    }  # fmt: skip
    volumes = tools.volumes()
    assert list(volumes) == sorted(lv.name for lv in vg.lvs)
    for volume in group.volumes():
        row = volumes[volume.name]
        assert row["lv_uuid"] == volume.lv.id
        assert row["lv_size"] == str(volume.size)
        assert sorted(filter(None, row["lv_tags"].split(","))) == sorted(volume.lv.tags)
        assert row["lv_host"] == volume.lv.creation_host
        assert row["seg_count"] == str(len(volume.lv.segments))
    assert tools.places() == expected_places(vg)


@pytest.mark.parametrize(
    "size", [4 * MIB, 64 * MIB, 70_000_000, 100 * MIB + 512, 1 << 30, 3 << 30, 100 << 30, 1 << 40]
)
def test_an_empty_drive_of_any_size_is_accepted(tmp_path: Path, size: int) -> None:
    image = tmp_path / "drive.img"
    group = drive(image, size)
    with lvm2.attached(image) as tools:
        assert_same(tools, image)
        # What is lost is the two metadata areas and less than an extent.
        lost = size - space(group.vg).total
        assert lost <= 2 * min(max(1 << 20, size // 1000 + (1 << 20)), 8 << 20) + 5 * MIB


def test_a_session_of_changes_agrees_in_every_number(tmp_path: Path) -> None:
    image = tmp_path / "drive.img"
    group = drive(image)
    tags = with_geometry((), Geometry(5, 16, 63), None)
    vg = create(group.vg, [NewVolume("alpha", 5 * MIB, tags), NewVolume("beta", 1)],
                time=TIME, host=HOST)  # fmt: skip
    group = commit(group, vg, image)
    vg = with_volumes(group.vg, gamma=3 * MIB, delta=7 * MIB)
    group = commit(group, vg, image)
    with lvm2.attached(image) as tools:
        assert_same(tools, image)
    # beta is between two others and grows behind gamma's hole and behind delta.
    vg = remove(group.vg, ["gamma"])
    vg = resize(vg, "beta", 9 * MIB)
    vg = resize(vg, "delta", 2 * MIB)
    vg = rename(vg, "alpha", "data.1+x")
    vg = set_tags(vg, "delta", ("a/b=c", "!:&#"))
    group = commit(group, vg, image)
    assert len(group.vg.lv("beta").segments) > 1  # type: ignore[union-attr]
    assert geometry_of(group.vg.lv("data.1+x").tags)[0] == Geometry(5, 16, 63)  # type: ignore[union-attr]
    with lvm2.attached(image) as tools:
        assert_same(tools, image)
        assert tools.run("lvs", "--noheadings", "-o", "lv_name", "@a/b=c").split() == ["delta"]


def test_a_thousand_volumes_in_one_commit_and_more_one_by_one(tmp_path: Path) -> None:
    """Enough commits for the text to go round the ring several times."""
    image = tmp_path / "drive.img"
    group = drive(image, 512 * MIB, extent_bytes=1 << 16)
    wanted = [NewVolume(f"d{number:04}", 1) for number in range(1, 1001)]
    group = commit(group, create(group.vg, wanted, time=TIME, host=HOST), image)
    assert group.vg.seqno == 2
    offsets = []
    for number in range(12):
        group = commit(group, with_volumes(group.vg, **{f"one{number}": 1}), image)
        location = group.pvs[0].areas[0].header.current
        assert location is not None
        offsets.append((location.offset, location.length))
    area = group.pvs[0].label.metadata_areas[0]
    assert any(offset + length > area.length for offset, length in offsets)
    with lvm2.attached(image) as tools:
        assert_same(tools, image)


def test_lvm2_goes_on_where_vdisk_stopped_and_vdisk_after_it(tmp_path: Path) -> None:
    """Each takes turns at the same drive; neither loses what the other made."""
    image = tmp_path / "drive.img"
    group = drive(image)
    for turn in range(3):
        group = commit(group, with_volumes(group.vg, **{f"ours{turn}": 2 * MIB}), image)
        with lvm2.attached(image) as tools:
            tools.create("drive", f"theirs{turn}", "-L1M")
            tools.run("lvextend", "-L+1M", f"drive/ours{turn}")
            assert_same(tools, image)
        group = read_group(image)
    assert len(group.vg.lvs) == 6


@pytest.mark.parametrize("copy", [0, 1])
def test_a_damaged_copy_is_repaired_by_the_next_commit(tmp_path: Path, copy: int) -> None:
    image = tmp_path / "drive.img"
    group = drive(image)
    group = commit(group, with_volumes(group.vg, a=1), image)
    with image.open("r+b") as file:
        file.seek(group.pvs[0].label.metadata_areas[copy].offset)
        file.write(bytes(100))
    group = read_group(image)
    assert [problem for problem in group.problems if "damaged" in problem]
    assert [lv.name for lv in group.vg.lvs] == ["a"]
    group = commit(group, with_volumes(group.vg, b=1), image)
    assert group.problems == ()
    with lvm2.attached(image) as tools:
        assert_same(tools, image)


NAMES = [
    "a", "+a", ".a", "...", "a..b", "0", "A_b.c+d-e", "lvol0", "x_tpool", "x_vpool", "_", "x" * 119,
    "snapshot", "snapshotx", "pvmove0", "a_mimage", "a_mimage2", "x_cdata", "x_cpool", "x_cvol",
    "x_wcorig", "x_imeta", "x_iorig", "x_vdata", "x_pmspare", "x_vorigin", "x_corig", "x_mlog",
    "x_rmeta", "x_rimage", "x_tdata", "x_tmeta", "x_cmeta", "x_cdata_", ".", "..", "-a", "a b",
    "a@b", "a/b", "ä", "x" * 120, "x" * 121, "x" * 128,
]  # fmt: skip


def test_names_are_taken_and_refused_as_by_lvcreate(tmp_path: Path) -> None:
    image = tmp_path / "drive.img"
    drive(image)
    with lvm2.attached(image) as tools:
        for name in NAMES:
            words = ("-an", "-Zn", "-Wn", "-l1", "-n", name, "drive")
            theirs = tools.tried("lvcreate", *words).returncode == 0
            try:
                check_volume_name(name, "drive")
                ours = True
            except InvalidArgument:
                ours = False
            assert ours == theirs, name


def test_tags_are_taken_and_refused_as_by_lvchange(tmp_path: Path) -> None:
    """But for a tag that begins with a hyphen, which LVM2 takes against its own manual."""
    image = tmp_path / "drive.img"
    group = drive(image)
    commit(group, with_volumes(group.vg, a=1), image)
    with lvm2.attached(image) as tools:
        for tag in ["a", "vdisk.geometry=1024/16/63", "A_z+.-/=!:&#9", "a b", "a,b", "ä", '"', ""]:
            theirs = tools.tried("lvchange", "--addtag", tag, "drive/a").returncode == 0
            try:
                check_tag(tag)
                ours = True
            except InvalidArgument:
                ours = False
            assert ours == theirs, tag


def test_a_drive_full_of_volumes_says_so_and_lvm2_agrees_on_the_limit(tmp_path: Path) -> None:
    """The metadata area fills before the extents do; what was there stays."""
    image = tmp_path / "drive.img"
    group = drive(image, 256 * MIB, extent_bytes=1024)
    tag = "x" * 1000
    for start in range(0, 400, 50):
        wanted = [NewVolume(f"v{start + n}", 1, (tag,)) for n in range(50)]
        group = commit(group, create(group.vg, wanted, time=TIME, host=HOST), image)
    wanted = [NewVolume(f"w{n}", 1, (tag,)) for n in range(50)]
    vg = create(group.vg, wanted, time=TIME, host=HOST)
    with pytest.raises(NoSpace, match="metadata"):
        group.commit(vg, time=TIME, host=HOST)
    with lvm2.attached(image) as tools:
        assert_same(tools, image)
        words = [word for n in range(60) for word in ("--addtag", f"{n}{tag}")]
        refused = tools.tried("lvcreate", "-an", "-Zn", "-Wn", "-l1", "-n", "big", *words, "drive")
    found = re.search(r"exceeds maximum metadata size \((\d+) bytes\)", refused.stderr)
    assert found is not None, refused.stderr
    assert int(found[1]) == text_bytes_max(group.pvs[0].label.metadata_areas[0])
