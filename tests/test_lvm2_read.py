"""What LVM2's own tools make, vdisk reads; and what it changes there, LVM2 still knows whole."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

import lvm2
from lvm2_images import HOST, MIB, TIME, blank, by_pv, commit, read_file, read_group, with_volumes
from vdisk.errors import Corrupt, NotPermitted, Unsupported
from vdisk.tables.lvm2 import (
    Group,
    Volume,
    VolumeMap,
    assemble,
    remove,
    rename,
    resize,
    set_tags,
    space,
)

pytestmark = lvm2.TAKES_ROOT


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    return blank(tmp_path / "a.img"), blank(tmp_path / "b.img", 80 * MIB)


def volume(group: Group, name: str) -> Volume:
    (found,) = [one for one in group.volumes() if one.name == name]
    return found


def assert_reads_the_same(tools: lvm2.Tools, *images: Path) -> Group:
    """Names, UUIDs, sizes, tags, places and free space are those that LVM2 reports."""
    group = read_group(*images)
    assert group.problems == ()
    rows = tools.volumes()
    assert {one.name for one in group.volumes()} == set(rows)
    for one in group.volumes():
        row = rows[one.name]
        assert (one.lv.id, str(one.size)) == (row["lv_uuid"], row["lv_size"])
        assert sorted(one.lv.tags) == sorted(filter(None, row["lv_tags"].split(",")))
        if one.lv.segments[0].type != "zero":
            assert (one.read_only is None) == (row["lv_attr"][1] == "w")
    (row,) = tools.report("vgs", columns="vg_size,vg_free,vg_tags,vg_seqno,vg_uuid,vg_extent_size")
    room = space(group.vg)
    assert row == {
        "vg_size": str(room.total), "vg_free": str(room.free), "vg_seqno": str(group.vg.seqno),
        "vg_tags": ",".join(group.vg.tags), "vg_uuid": group.vg.id,
        "vg_extent_size": str(group.vg.extent_bytes),
    }  # fmt: skip
    numbers = {read_file(image).label.pv_id: number for number, image in enumerate(images)}
    keys = {pv.key: numbers[pv.id] for pv in group.vg.pvs}
    assert tools.places() == {
        lv.name: [
            f"{keys[taken.pv]}:{taken.first}-{taken.end - 1}"
            for segment in lv.segments
            for taken in segment.ranges()
        ]
        for lv in group.vg.lvs
    }
    return group


def assert_maps_as_reported(tools: lvm2.Tools, group: Group, images: tuple[Path, ...]) -> None:
    """V of every linear volume, worked out again from the extents that `lvs` and `pvs` report."""
    rows = tools.report("pvs", columns="pv_uuid,pe_start")
    starts = {row["pv_uuid"]: int(row["pe_start"]) for row in rows}
    ids = [read_file(image).label.pv_id for image in images]
    extent = group.vg.extent_bytes
    for name, places in tools.places().items():
        expected = []
        for place in places:
            device, first, last = map(int, re.split("[:-]", place))
            base = starts[ids[device]]
            expected += [(ids[device], base + one * extent) for one in range(first, last + 1)]
        lv = group.vg.lv(name)
        assert lv is not None
        if any(len(segment.stripes) > 1 for segment in lv.segments):
            continue
        volume_map = VolumeMap(group.vg, lv)
        for number, place_of_extent in enumerate(expected):
            (run,) = volume_map.runs(number * extent, extent)
            assert (run.pv, run.offset) == place_of_extent


def test_volumes_of_all_plain_kinds(images: tuple[Path, Path]) -> None:
    """Linear, fragmented, striped, tagged, renamed, read-only; others removed; two drives."""
    with lvm2.attached(*images) as tools:
        tools.run("pvcreate", *tools.devices)
        tools.run("vgcreate", "-s1M", "--addtag", "group-tag", "v", *tools.devices)
        for name in ("a", "b", "c", "gone"):
            tools.create("v", name, "-L3M")
        tools.run("lvremove", "-f", "v/gone")
        tools.run("lvextend", "-L9M", "v/a")
        tools.run("lvextend", "-L40M", "v/b", tools.devices[0])
        tools.run("lvextend", "-L50M", "v/b", tools.devices[1])
        tools.create("v", "striped", "-L8M", "-i2", "-I64k", "--addtag", "x/y=1", "--addtag", "z")
        tools.run("lvrename", "v/c", "renamed")
        tools.create("v", "fixed", "-L1M", "-pr")
        tools.run("pvchange", "--addtag", "pv-tag", tools.devices[0])
        group = assert_reads_the_same(tools, *images)
        assert_maps_as_reported(tools, group, images)
        assert all(one.problem is None for one in group.volumes())
        assert len(group.vg.lv("b").segments) >= 3  # type: ignore[union-attr]
        tools.check("v")


def test_a_striped_volume_goes_to_its_stripes_in_turn(images: tuple[Path, Path]) -> None:
    """As dm-stripe: chunk k is on stripe k modulo n, at chunk k divided by n of it."""
    with lvm2.attached(*images) as tools:
        tools.run("vgcreate", "-s1M", "v", *tools.devices)
        tools.create("v", "s", "-L4M", "-i2", "-I64k")
        tools.run("lvextend", "-L+4M", "v/s")
        places = tools.places()["s"]
    group = read_group(*images)
    ids = [read_file(image).label.pv_id for image in images]
    chunk, extent = 64 << 10, MIB
    # LVM2 extends it in place, so that one segment has four extents on each drive.
    assert [place.partition(":")[0] for place in places] == ["0", "1"]
    firsts = [int(re.split("[:-]", place)[1]) for place in places]
    volume_map = VolumeMap(group.vg, volume(group, "s").lv)
    assert volume_map.size == 8 * MIB
    assert volume_map.window() is None
    runs = list(volume_map.runs(0, 8 * MIB))
    assert len(runs) == 8 * MIB // chunk
    for number, run in enumerate(runs):
        column, row = number % 2, number // 2
        expected = MIB + firsts[column] * extent + row * chunk
        assert (run.guest_offset, run.length) == (number * chunk, chunk)
        assert (run.pv, run.offset) == (ids[column], expected)
    (first, second) = volume_map.runs(chunk - 100, 300)
    assert (first.length, second.length) == (100, 200)
    assert first.offset == MIB + firsts[0] * extent + chunk - 100
    assert (second.pv, second.offset) == (ids[1], MIB + firsts[1] * extent)


def lines(text: str) -> Counter[str]:
    """The lines of a metadata text: arrays on one line, comments and blank lines left out."""
    text = re.sub(r"[ \t]*=[ \t]*", " = ", text.replace("\t", " "))
    text = re.sub(r"\[\s+", "[", re.sub(r",\s+", ", ", re.sub(r"\s+\]", "]", text)))
    found = (re.sub(r"\s*#.*", "", line).strip() for line in text.split("\n"))
    return Counter(line for line in found if line)


def assert_only_added(before: str, after: str, *changed: str) -> None:
    """Every line of `before` is in `after`, but for those that begin with a word of `changed`."""
    lost = lines(before) - lines(after)
    expected = ("seqno", "description", "creation_host", "creation_time", *changed)
    assert not [line for line in lost if not line.startswith(expected)]


def test_nothing_that_lvm2_wrote_is_lost_when_vdisk_changes_the_group(
    images: tuple[Path, Path]
) -> None:
    with lvm2.attached(*images) as tools:
        tools.run("pvcreate", "--pvmetadatacopies", "2", tools.devices[0])
        tools.run("pvcreate", "--bootloaderareasize", "1m", tools.devices[1])
        tools.run("vgcreate", "-s1M", "-l100", "-p7", "--alloc", "cling", "v", *tools.devices)
        tools.create("v", "a", "-L3M", "--addtag", "t", "-r", "256", "--alloc", "contiguous")
        tools.create("v", "s", "-L4M", "-i2")
        tools.create("v", "zeros", "--type", "zero", "-L1M")
        tools.create("v", "b", "-L3M", "-My", "--major", "253", "--minor", "77")
        before = tools.metadata()
        group = assert_reads_the_same(tools, *images)
        vg = with_volumes(group.vg, new=5 * MIB)
        group = commit(group, rename(vg, "b", "other"), by_pv(*images))
        tools.check("v")
        assert_reads_the_same(tools, *images)
        assert_only_added(before, tools.metadata(), "b {")
        assert tools.metadata(0) == tools.metadata(1)
        group = commit(group, remove(resize(group.vg, "a", MIB), ["s"]), by_pv(*images))
        tools.check("v")
        assert_reads_the_same(tools, *images)
        tools.run("lvremove", "-f", "v/new")
        assert_reads_the_same(tools, *images)


UUID_START = "AAAAAA-0000-0000-0000-0000-0000"
OTHER_KINDS = """
root { id = "1" STATUS_V
    segment_count = 1
    segment1 { start_extent = 0 extent_count = 4 type = "striped" stripe_count = 1
        stripes = [ "pv0", 0 ] } }
snap { id = "2" STATUS_V segment_count = 1
    segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1
        stripes = [ "pv0", 4 ] } }
snapshot0 { id = "3" STATUS_H segment_count = 1
    segment1 { start_extent = 0 extent_count = 4 type = "snapshot"
        chunk_size = 8 origin = "root" cow_store = "snap" } }
pool { id = "4" STATUS_V segment_count = 1
    segment1 { start_extent = 0 extent_count = 3 type = "thin-pool" metadata = "pool_tmeta"
        pool = "pool_tdata" transaction_id = 1 chunk_size = 128 discards = "passdown"
        zero_new_blocks = 1 } }
thin { id = "5" STATUS_V segment_count = 1
    segment1 { start_extent = 0 extent_count = 30 type = "thin" thin_pool = "pool"
        transaction_id = 0 device_id = 1 } }
lvol0_pmspare { id = "6" STATUS_H segment_count = 1
    segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1
        stripes = [ "pv0", 6 ] } }
pool_tmeta { id = "7" STATUS_H segment_count = 1
    segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1
        stripes = [ "pv1", 0 ] } }
pool_tdata { id = "8" STATUS_H segment_count = 1
    segment1 { start_extent = 0 extent_count = 3 type = "striped" stripe_count = 1
        stripes = [ "pv1", 1 ] } }
mirrored { id = "9" STATUS_V segment_count = 1
    segment1 { start_extent = 0 extent_count = 2 type = "raid1" device_count = 2
        region_size = 1024
        raids = [ "mirrored_rmeta_0", "mirrored_rimage_0", "mirrored_rmeta_1",
        "mirrored_rimage_1" ] } }
mirrored_rmeta_0 { id = "10" STATUS_H segment_count = 1
    segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1
        stripes = [ "pv0", 7 ] } }
mirrored_rimage_0 { id = "11" STATUS_H segment_count = 1
    segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1
        stripes = [ "pv0", 8 ] } }
mirrored_rmeta_1 { id = "12" STATUS_H segment_count = 1
    segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1
        stripes = [ "pv1", 4 ] } }
mirrored_rimage_1 { id = "13" STATUS_H segment_count = 1
    segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1
        stripes = [ "pv1", 5 ] } }
plain { id = "14" STATUS_V segment_count = 1
    segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1
        stripes = [ "pv1", 7 ] } }
moving { id = "16" status = ["READ", "WRITE", "VISIBLE", "LOCKED"] flags = [] segment_count = 1
    segment1 { start_extent = 0 extent_count = 3 type = "striped" stripe_count = 1
        stripes = [ "pvmove0", 0 ] } }
pvmove0 { id = "17" status = ["READ", "WRITE", "PVMOVE", "LOCKED"] flags = []
    allocation_policy = "contiguous" segment_count = 1
    segment1 { start_extent = 0 extent_count = 3 type = "mirror" mirror_count = 2
        region_size = 1024 extents_moved = 0 mirrors = [ "pv0", 20, "pv1", 30 ] } }
cached { id = "18" STATUS_V segment_count = 1
    segment1 { start_extent = 0 extent_count = 2 type = "cache" cache_pool = "fast"
        origin = "cached_corig" } }
cached_corig { id = "19" STATUS_H segment_count = 1
    segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1
        stripes = [ "pv0", 30 ] } }
fast { id = "20" STATUS_H segment_count = 1
    segment1 { start_extent = 0 extent_count = 2 type = "cache-pool" data = "fast_cdata"
        metadata = "fast_cmeta" chunk_size = 128 metadata_format = 2 cache_mode = "writethrough"
        policy = "smq" policy_settings { migration_threshold = 2048 } } }
fast_cdata { id = "21" STATUS_H segment_count = 1
    segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1
        stripes = [ "pv1", 20 ] } }
fast_cmeta { id = "22" STATUS_H segment_count = 1
    segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1
        stripes = [ "pv1", 22 ] } }
lost { id = "15" STATUS_V segment_count = 1
    segment1 { start_extent = 0 extent_count = 1 type = "error" } }
"""
"""Volumes of kinds that cannot be made without the kernel; LVM2 judges them on restoring."""


def other_kinds() -> str:
    text = re.sub(
        r'id = "(\d+)"', lambda one: f'id = "{UUID_START}-{one[1]:0>6}"', OTHER_KINDS
    )
    text = text.replace("STATUS_V", 'status = ["READ", "WRITE", "VISIBLE"] flags = []')
    return text.replace("STATUS_H", 'status = ["READ", "WRITE"] flags = []')


HISTORY = """
historical_logical_volumes {
old_thin { id = "AAAAAA-0000-0000-0000-0000-0000-000099" name = "old_thin"
    creation_time = 1500000000 removal_time = 1600000000 descendants = ["thin"] } }
"""


def restored(tools: lvm2.Tools, *more: str) -> str:
    """Two drives with a group "v" of the volumes above; the text as LVM2 wrote it."""
    tools.run("vgcreate", "-s1M", "v", *tools.devices)
    tools.create("v", "x", "-l1")
    text = tools.metadata()
    start = text.index("logical_volumes {")
    end = text.index("\n# Generated")
    file = tools.folder / "wanted"
    file.write_text(
        f"{text[:start]}logical_volumes {{{other_kinds()}}}{''.join(more)}}}{text[end:]}"
    )
    tools.run("vgcfgrestore", "--force", "-y", "-f", file, "v")
    return tools.metadata()


def test_other_kinds_are_listed_with_the_reason(images: tuple[Path, Path]) -> None:
    with lvm2.attached(*images) as tools:
        restored(tools)
        rows = tools.volumes()
    group = read_group(*images)
    found = {one.name: one for one in group.volumes()}
    assert set(found) == set(rows)
    for name, reason in {
        "snap": "snapshot", "pool": "thin", "thin": "thin", "mirrored": "raid1", "lost": "errors",
        "moving": "moved", "cached": "cache",
    }.items():  # fmt: skip
        assert reason in str(found[name].problem)
    assert found["root"].problem is None
    assert "snapshot" in str(found["root"].read_only)
    assert (found["plain"].problem, found["plain"].read_only) == (None, None)
    for name in ("root", "snap", "thin", "pool", "mirrored", "moving", "cached"):
        with pytest.raises(Unsupported):
            remove(group.vg, [name])
        with pytest.raises(Unsupported):
            rename(group.vg, name, "new")
        with pytest.raises(Unsupported):
            resize(group.vg, name, 20 * MIB)


def test_other_kinds_survive_a_change_beside_them(images: tuple[Path, Path]) -> None:
    with lvm2.attached(*images) as tools:
        before = restored(tools, HISTORY)
        assert "historical" in before
        columns = "lv_name,lv_uuid,lv_size,segtype,seg_pe_ranges,pool_lv,origin,devices"
        rows = tools.report("lvs", "-a", columns=columns)
        group = read_group(*images)
        # All extents that are free to vdisk are given out, and LVM2 finds no overlap.
        vg = with_volumes(group.vg, filler=space(group.vg).free)
        group = commit(group, set_tags(vg, "thin", ("seen",)), by_pv(*images))
        tools.check("v")
        after = tools.report("lvs", "-a", columns=columns)
        assert [row for row in after if row["lv_name"] != "filler"] == rows
        assert_only_added(before, tools.metadata())
        assert tools.report("vgs", columns="vg_free")[0]["vg_free"] == "0"


@pytest.mark.parametrize("present", [0, 1])
def test_a_group_of_which_a_drive_is_missing(images: tuple[Path, Path], present: int) -> None:
    """What lies on the drive that is there opens; the rest says why not; nothing is changed."""
    with lvm2.attached(*images) as tools:
        tools.run("vgcreate", "-s1M", "v", *tools.devices)
        for name, device in zip(["on0", "on1"], tools.devices, strict=True):
            tools.create("v", name, "-L3M", device)
        tools.create("v", "both", "-L4M", "-i2")
        missing = tools.report("pvs", columns="pv_name,pv_uuid")
    (missing_id,) = [
        row["pv_uuid"] for row in missing if row["pv_name"] == tools.devices[1 - present]
    ]
    group = read_group(images[present])
    assert group.missing == (missing_id,)
    found = {one.name: one.problem for one in group.volumes()}
    assert found[f"on{present}"] is None
    assert missing_id in str(found[f"on{1 - present}"])
    assert missing_id in str(found["both"])
    with pytest.raises(NotPermitted, match="missing"):
        group.commit(group.vg, time=TIME, host=HOST)


def test_a_group_that_was_exported_or_belongs_to_another_system_is_not_changed(
    images: tuple[Path, Path],
) -> None:
    other = 'local { extra_system_ids = ["other"] }'
    with lvm2.attached(images[0]) as tools:
        tools.run("vgcreate", "v", *tools.devices)
        tools.create("v", "a", "-l1")
        tools.run("vgexport", "v")
        exported = read_group(images[0])
        tools.run("vgimport", "v")
        tools.run("vgchange", "-y", "--config", other, "--systemid", "other", "v")
        foreign = read_group(images[0])
    assert "was exported" in str(exported.change_problem())
    assert "exported" in str(volume(exported, "a").read_only)
    assert "system" in str(foreign.change_problem())
    assert volume(foreign, "a").read_only is None
    for group in (exported, foreign):
        assert volume(group, "a").problem is None
        with pytest.raises(NotPermitted):
            group.commit(group.vg, time=TIME, host=HOST)


def test_a_drive_without_a_group_and_one_without_a_label(images: tuple[Path, Path]) -> None:
    with lvm2.attached(images[0]) as tools:
        tools.run("pvcreate", *tools.devices)
    assert assemble([read_file(images[0])]) == ()
    with pytest.raises(AssertionError):
        read_file(images[1])


def test_a_drive_without_metadata_areas_belongs_to_the_group_that_names_it(
    images: tuple[Path, Path]
) -> None:
    with lvm2.attached(*images) as tools:
        tools.run("pvcreate", tools.devices[0])
        tools.run("pvcreate", "--pvmetadatacopies", "0", tools.devices[1])
        tools.run("vgcreate", "v", *tools.devices)
        tools.create("v", "a", "-l1", tools.devices[1])
        group = assert_reads_the_same(tools, *images)
        assert volume(group, "a").problem is None
        group = commit(group, with_volumes(group.vg, b=1), by_pv(*images))
        tools.check("v")
        assert_reads_the_same(tools, *images)
    assert assemble([read_file(images[1])]) == ()


def test_an_ignored_area_is_neither_read_nor_written(images: tuple[Path, Path]) -> None:
    with lvm2.attached(*images) as tools:
        tools.run("vgcreate", "v", *tools.devices)
        tools.run("pvchange", "--metadataignore", "y", tools.devices[0])
        tools.create("v", "a", "-l1")
        group = assert_reads_the_same(tools, *images)
        group = commit(group, with_volumes(group.vg, b=1), by_pv(*images))
        assert_reads_the_same(tools, *images)
        tools.check("v")
        rows = tools.report("pvs", "--sort", "pv_name", columns="pv_mda_used_count")
        assert [row["pv_mda_used_count"] for row in rows] == ["0", "1"]


def test_two_copies_of_a_drive_at_once_are_refused(images: tuple[Path, Path]) -> None:
    with lvm2.attached(images[0]) as tools:
        tools.run("vgcreate", "v", *tools.devices)
    images[1].write_bytes(images[0].read_bytes())
    with pytest.raises(Corrupt, match="same UUID"):
        assemble([read_file(images[0]), read_file(images[1])])
