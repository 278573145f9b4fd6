"""`vdisk partition`: what is typed, printed and refused; on files, mounts and devices."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cli import done, output, refused, vdisk
from devices import loop_device
from harness import Mounted, Person, make_image
from holders import vdisk_holder
from table_images import run, sfdisk_json, sfdisk_rows

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "d.img", 64 * MIB)


def noted(*words: str | Path) -> str:
    """The notes on standard error of a `vdisk partition` that must end well."""
    ended = vdisk("partition", *words)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr.decode()


# Showing


def test_without_an_edit_it_prints_the_table_as_info_does(image: Path) -> None:
    assert done("partition", image) == "No partition table.\n"
    run("sfdisk", image, stdin="label: gpt\nsize=8M,type=U,name=boot\nsize=9M\n")
    before = image.read_bytes()
    shown = done("partition", image)
    assert shown.startswith("Partition table: gpt ")
    assert shown in done("info", image)
    found = json.loads(done("partition", "--json", image))
    whole = json.loads(done("info", "--json", image))
    assert found == {"table": whole["table"], "partitions": whole["partitions"]}
    assert image.read_bytes() == before


def test_looking_works_while_somebody_writes_and_editing_does_not(image: Path) -> None:
    done("partition", image, "--table", "gpt")
    with vdisk_holder(image):
        done("partition", image)
        assert "in use" in refused("partition", image, "--add", "1M")
        assert "in use" in refused("partition", image, "--table", "mbr", "--force")


# Changing


def test_a_disk_is_partitioned_by_one_command(image: Path) -> None:
    shown = done(
        "partition", image, "--table", "gpt", "--add", "8M:esp:EFI", "--add", "4M:swap",
        "--add", "REST:Linux filesystem:a:b", "--bootable", "3", "--name", "2:swap space",
    )  # fmt: skip
    assert shown == done("partition", image)
    rows = sfdisk_json(image)["partitions"]
    assert [(row["start"], row["size"], row.get("name")) for row in rows] == [
        (2048, 16384, "EFI"), (18432, 8192, "swap space"), (26624, 131039 - 26624, "a:b")
    ]  # fmt: skip
    assert rows[2]["attrs"] == "LegacyBIOSBootable"
    assert "No problems found" in output("sgdisk", "-v", image)


def test_json_is_the_resulting_table(image: Path) -> None:
    words = ("--table", "mbr", "--add", "8M:fat16", "--add", "100%", "--bootable", "1:on", "--json")
    found = json.loads(done("partition", image, *words))
    assert found["table"]["kind"] == "mbr"
    assert [p["bootable"] for p in found["partitions"]] == [True, False]
    assert [(p["number"], p["start_lba"], p["sectors"]) for p in found["partitions"]] == (
        sfdisk_rows(image)
    )


def test_logicals_by_name_and_by_need(image: Path) -> None:
    done("partition", image, "--table", "mbr", "--add", "8M", "--extended", "rest",
         "--logical", "4M:swap", "--logical", "rest:0x8e")  # fmt: skip
    assert [(p["type"]) for p in sfdisk_json(image)["partitions"]] == ["83", "5", "82", "8e"]
    six = [word for _ in range(6) for word in ("--add", "2M")]
    notes = noted(image, "--table", "mbr", "--force", *six)
    assert "partition 4 is made an extended one" in notes
    assert [row[0] for row in sfdisk_rows(image)] == [1, 2, 3, 4, 5, 6, 7]


def test_numbers_are_those_before_for_delete_and_those_after_for_the_rest(image: Path) -> None:
    done("partition", image, "--table", "mbr", "--extended", "rest", *(
        word for _ in range(4) for word in ("--logical", "4M")))  # fmt: skip
    before = {n: start for n, start, _ in sfdisk_rows(image)}
    done("partition", image, "--type", "6:swap", "--delete", "6", "--delete", "5")
    rows = {int(p["node"].removeprefix(str(image))): p for p in sfdisk_json(image)["partitions"]}
    assert [rows[n]["start"] for n in (5, 6)] == [before[7], before[8]]
    assert [rows[n]["type"] for n in (5, 6)] == ["83", "82"]


@pytest.mark.parametrize(("align", "start"), [
    ("1MiB", 2048), ("64K", 128), ("8", 8), ("100s", 100), ("track", 17), ("cylinder", 17),
])  # fmt: skip
def test_alignments(tmp_path: Path, align: str, start: int) -> None:
    image = tmp_path / "old.img"
    done("create", image, "--chs", "615/4/17")
    done("partition", image, "--table", "mbr", "--add", "5M", "--add", "rest", "--align", align)
    first, second = sfdisk_rows(image)
    assert first[1] == start
    if align == "cylinder":
        assert (first[1] + first[2]) % 68 == second[1] % 68 == (second[1] + second[2]) % 68 == 0
    # The disk is of this geometry, and so are its addresses.
    opinions = json.loads(done("info", "--json", image))["geometry"]["opinions"]
    assert {o["source"]: o["geometry"] for o in opinions}["mbr"] == "615/4/17"


def test_a_given_geometry_is_the_one_of_the_addresses(image: Path) -> None:
    done("partition", image, "--table", "mbr", "--add", "rest", "--align", "cylinder",
         "--chs", "64/64/32")  # fmt: skip
    assert sfdisk_rows(image) == [(1, 32, 64 * 64 * 32 - 32)]
    assert "64 heads, 32 sectors" in output("sfdisk", "-g", image)


def test_sectors_of_4096_bytes(tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    done("create", image, "--size", "64M", "--sector-size", "4096")
    done("partition", image, "--table", "gpt", "--add", "8M", "--add", "rest", "--align", "2s")
    found = json.loads(done("partition", "--json", image))["partitions"]
    assert [(p["start_lba"], p["sectors"]) for p in found] == [(6, 2048), (2054, 16379 - 2054)]


# What is there already


@pytest.mark.parametrize(
    ("make", "name", "kind"),
    [
        (["mkfs.ext4", "-q"], "an ext4 file system", "mbr"),
        (["mkfs.fat"], "a FAT file system", "gpt"),
        (["mkswap"], "swap space", "gpt"),
        (["sgdisk", "-n", "1:0:0"], "a GPT partition table (1 partition)", "mbr"),
    ],
)
def test_a_new_table_over_something_needs_force(
    image: Path, make: list[str], name: str, kind: str
) -> None:
    output(*make, image)
    before = image.read_bytes()
    line = refused("partition", image, "--table", kind, "--add", "rest")
    assert f"holds {name}" in line
    assert "--force" in line
    assert image.read_bytes() == before
    assert name in noted(image, "--table", kind, "--add", "rest", "--force")
    # blkid finds the table, and nothing besides.
    found = output("blkid", "-p", "-o", "export", image)
    assert f"PTTYPE={'dos' if kind == 'mbr' else 'gpt'}" in found.splitlines()
    assert "TYPE=" not in found.replace("PTTYPE=", "")
    assert len(sfdisk_rows(image)) == 1


def test_repairs_are_said(image: Path) -> None:
    done("partition", image, "--table", "gpt", "--add", "8M")
    with image.open("r+b") as file:
        file.seek(512)
        file.write(bytes(512))
    assert "the primary GPT was damaged" in noted(image, "--name", "1:x")
    os.truncate(image, 80 * MIB)
    assert "the backup GPT is moved" in noted(image, "--add", "rest")
    assert noted(image, "--bootable", "1") == ""
    assert "No problems found" in output("sgdisk", "-v", image)


# What is refused


@pytest.mark.parametrize(
    "words",
    [
        ("--table", "bsd"), ("--add", "x"), ("--delete", "0"), ("--type", "1"),
        ("--bootable", "1:maybe"), ("--align", "x"), ("--table", "gpt", "--delete", "1"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_makes_no_sense_is_a_usage_error(image: Path, words: tuple[str, ...]) -> None:
    before = image.read_bytes()
    refused("partition", image, *words, status=2)
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--delete", "7"), "has no partition 7 (it has: 1, 2)"),
        (("--add", "1M", "--add", "1M", "--add", "1G"), "no free place has room"),
        (("--type", "1:zz"), "no type of an MBR partition"),
        (("--add", "rest", "--align", "700K", "--bootable", "9"), "has no partition 9"),
        (("--add", "1M", "--align", "1000K", "--chs", "9999/16/63"), "geometry"),
        (("--add", "1M", "--align", "0x201"), "whole sectors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_changes_nothing(
    image: Path, words: tuple[str, ...], said: str
) -> None:
    run("sfdisk", image, stdin="label: dos\n,8M\n,8M\n")
    before = image.read_bytes()
    line = refused("partition", image, *words)
    assert said in line
    assert str(image) in line
    assert image.read_bytes() == before


def test_a_partition_has_no_table(image: Path) -> None:
    done("partition", image, "--table", "mbr", "--add", "8M")
    for words in ((), ("--table", "gpt", "--force")):
        line = refused("partition", image / "p1", *words)
        assert "is a partition" in line
        assert f"name the disk: {image}" in line
    assert "no partition table" in refused("partition", make_image(image.parent / "e.img", MIB),
                                           "--add", "1K")  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small file system")
def test_a_full_host_leaves_the_old_table(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    output("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder)
    try:
        image = make_image(folder / "d.img", 8 * MIB)
        done("partition", image, "--table", "gpt", "--add", "1M")
        (folder / "filler").write_bytes(bytes(8192))
        before = done("partition", image)
        with (folder / "more").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        os.truncate(image, 16 * MIB)  # The backup would move to where there is no block.
        assert "No space left" in refused("partition", image, "--add", "1M")
        os.truncate(image, 8 * MIB)
        assert done("partition", image) == before
    finally:
        output("umount", folder)


# On a mount, and on a device


def test_a_mounted_disk_is_partitioned(
    mounts: Callable[..., Mounted], place: Path, person: Person
) -> None:
    mounted = mounts(make_image(place / "disk.img", 16 * MIB, person))
    whole = mounted / "disk"
    person.vdisk("partition", whole, "--table", "mbr", "--add", "4M", "--logical", "2M",
                 "--logical", "rest")  # fmt: skip
    listed = person.does(lambda: sorted(os.listdir(mounted.mountpoint)))
    assert listed == ["disk", "disk.p1", "disk.p5", "disk.p6"]
    sizes = person.does(lambda: [os.stat(mounted / f"disk.p{n}").st_size for n in (1, 5)])
    assert sizes == [4 * MIB, 2 * MIB]
    theirs = json.loads(person.run("sfdisk", "--json", whole).stdout)["partitiontable"]
    assert [row["size"] for row in theirs["partitions"]][2] == 2 * MIB // 512
    person.vdisk("partition", whole, "--delete", "5")
    listed = person.does(lambda: sorted(os.listdir(mounted.mountpoint)))
    assert listed == ["disk", "disk.p1", "disk.p5"]
    # The host file itself is the mount's.
    ended = person.vdisk("partition", place / "disk.img", "--delete", "1", check=False)
    assert ended.returncode == 1
    assert b"in use" in ended.stderr
    mounted.unmount()
    assert len(sfdisk_rows(place / "disk.img")) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a loop device")
def test_the_kernel_is_told_of_a_devices_new_table(image: Path) -> None:
    done("partition", image, "--table", "gpt", "--add", "8M")
    with loop_device(image, 512, "--partscan") as device:
        if not shown(device, 1):
            output("partx", "--add", device)
        assert shown(device, 1) == 8 * MIB // 512
        done("partition", device, "--delete", "1", "--add", "4M")
        # Some kernels have no code to read tables: then it must at least not be the old one.
        assert shown(device, 1) in (None, 4 * MIB // 512)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a loop device")
def test_a_partition_in_use_is_said(image: Path) -> None:
    done("partition", image, "--table", "gpt", "--add", "8M")
    with loop_device(image, 512, "--partscan") as device:
        if not shown(device, 1):
            output("partx", "--add", device)
        with node_of(device, 1, image.parent) as node, node.open("rb"):
            assert "the kernel goes on using the old table" in noted(device, "--name", "1:x")
        output("partx", "--delete", device)
    assert sfdisk_json(image)["partitions"][0]["name"] == "x"


def shown(device: Path, number: int) -> int | None:
    """The sectors of 512 bytes that the kernel gives partition `number` of `device`."""
    size = Path(f"/sys/class/block/{device.name}p{number}/size")
    return int(size.read_text()) if size.exists() else None


@contextmanager
def node_of(device: Path, number: int, folder: Path) -> Iterator[Path]:
    """A node for a partition of `device`, made in `folder`: not every system has a udev."""
    numbers = Path(f"/sys/class/block/{device.name}p{number}/dev").read_text().split(":")
    node = folder / "node"
    os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(int(numbers[0]), int(numbers[1])))
    yield node
    node.unlink()


def test_help_has_examples() -> None:
    text = done("partition", "--help")
    assert "Examples:" in text
    assert "--table gpt --add" in text
