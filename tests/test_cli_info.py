"""`vdisk info` and `vdisk chs`, against sfdisk, sgdisk, parted and the addresses of an MBR."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli import done, output, refused
from harness import Person, make_image, sfdisk

MIB = 1 << 20


def described(*words: str | Path) -> dict[str, Any]:
    found = json.loads(done("info", "--json", *words))
    assert isinstance(found, dict)
    return found


def test_json_has_the_keys_that_are_promised(tmp_path: Path) -> None:
    image = make_image(tmp_path / "d.img", 10 * MIB)
    sfdisk(image, "label: dos\nstart=2048,size=2048,bootable\n")
    found = described(image)
    assert {
        "address", "format", "size_bytes", "sector_size", "geometry", "unaddressed_sectors",
        "allocated_bytes", "partitions",
    } <= found.keys()  # fmt: skip
    assert {"cylinders", "heads", "sectors_per_track", "source"} <= found["geometry"].keys()
    assert {
        "number", "start_lba", "sectors", "type", "name", "bootable"
    } <= found["partitions"][0].keys()
    assert found["address"] == str(image)
    assert found["format"] == "raw"
    assert found["size_bytes"] == image.stat().st_size
    assert found["allocated_bytes"] == image.stat().st_blocks * 512
    # 20480 sectors are 20 cylinders of 1008, and 320 sectors more.
    assert (found["geometry"]["cylinders"], found["unaddressed_sectors"]) == (20, 320)


@pytest.mark.parametrize("label", ["dos", "gpt"])
def test_partitions_are_those_of_sfdisk(label: str, tmp_path: Path) -> None:
    image = make_image(tmp_path / "d.img", 64 * MIB)
    script = f"label: {label}\nsize=8M,bootable\nsize=4M,type=U\nsize=16M\n"
    if label == "gpt":
        script = 'label: gpt\nsize=8M,name="first one"\nsize=4M,type=U\nsize=16M\n'
    sfdisk(image, script)
    found = described(image)
    table = json.loads(output("sfdisk", "--json", image))["partitiontable"]
    assert found["table"]["disk_id"].lower() == table["id"].lower()
    assert [(p["start_lba"], p["sectors"], p["name"]) for p in found["partitions"]] == [
        (p["start"], p["size"], p.get("name", "")) for p in table["partitions"]
    ]
    assert [p["bootable"] for p in found["partitions"]] == [
        p.get("bootable", False) for p in table["partitions"]
    ]


def test_a_partition_is_a_disk(tmp_path: Path) -> None:
    image = make_image(tmp_path / "d.img", 10 * MIB)
    sfdisk(image, "label: dos\nstart=2048,size=4096\n")
    assert described(image / "p1")["size_bytes"] == 4096 * 512
    assert "it has: 1" in refused("info", image / "p2")
    assert "partitions are p1" in refused("info", image / "p01")


def test_text_says_which_source_of_the_geometry_won_and_what_the_others_said(
    tmp_path: Path,
) -> None:
    image = tmp_path / "d.img"
    done("create", image, "--chs", "100/4/17")
    lines = done("info", image).splitlines()
    assert any("100/4/17 (source: stored)" in line for line in lines)
    won = {line.split()[0]: line.split()[1] for line in lines if line.startswith("  ")}
    assert won["stored"] == "100/4/17"
    assert won["given"] == won["mbr"] == won["bpb"] == "-"
    # 6800 sectors by 16 heads and 63 sectors.
    assert won["profile"] == "6/16/63"


def test_text_shows_a_hostile_partition_name_as_one_line(tmp_path: Path) -> None:
    image = make_image(tmp_path / "d.img", 10 * MIB)
    output("sgdisk", "-n", "1:2048:4095", "-c", "1:a\x1b]0;b\x07\x1b[2J", image)
    text = done("info", image)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\\x1b[2J" in text


def test_info_works_while_somebody_writes(mounts: Any, place: Path, person: Person) -> None:
    image = make_image(place / "d.img", 2 * MIB, person)
    mounts(image)
    for command in ("info", "map", "chs"):
        person.vdisk(command, image)


# chs


def test_addresses_of_an_mbr(tmp_path: Path) -> None:
    # sfdisk writes each partition's C/H/S beside its LBA, by the geometry it is told.
    image = make_image(tmp_path / "d.img", 100 * MIB)
    sfdisk(image, "label: dos\nstart=2048,size=4000\nstart=9999,size=77777\n",
           "--no-tell-kernel", "--color=never")  # fmt: skip
    sector = image.read_bytes()[:512]
    for at in (446, 462):
        head, packed, low = sector[at + 1], sector[at + 2], sector[at + 3]
        address = f"{low | (packed & 0xC0) << 2}/{head}/{packed & 0x3F}"
        lba = int.from_bytes(sector[at + 8 : at + 12], "little")
        assert done("chs", "12/255/63", address).split() == [str(lba)]
        assert done("chs", "12/255/63", str(lba)).split() == [address]
        # The MBR's entries agree with one geometry, which is the disk's then.
        assert done("chs", image, address, str(lba)).split() == [str(lba), address]


def test_the_corners_of_the_int13_geometry() -> None:
    # 1024/255/63 ends at LBA 16450559: 8422686720 bytes, the 8.4 GB limit.
    addresses = ["0/0/1", "0/0/63", "0/1/1", "1/0/1", "1023/254/63"]
    lbas = ["0", "62", "63", "16065", "16450559"]
    assert done("chs", "1024/255/63", *addresses).split() == lbas
    assert done("chs", "1024/255/63", *lbas).split() == addresses
    assert done("chs", "--size", "8422686720", "--profile", "bios").strip() == "1024/255/63"


@pytest.mark.parametrize("place", ["1024/0/1", "0/255/1", "0/0/64", "16450560"])
def test_what_is_not_in_the_geometry_is_refused(place: str) -> None:
    assert "1024/255/63" in refused("chs", "1024/255/63", place)


@pytest.mark.parametrize("place", ["0/0/0", "x", "0/0", "-", "9" * 30, "1/2/3/4"])
def test_what_is_no_address_is_refused(place: str) -> None:
    refused("chs", "1024/255/63", place)


def test_json_has_all_three(tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    done("create", image, "--chs", "10/2/8", "--sector-size", "1024")
    assert json.loads(done("chs", "--json", image, "1/1/3", "0")) == [
        {"lba": 26, "chs": "1/1/3", "guest_offset": 26 * 1024},
        {"lba": 0, "chs": "0/0/1", "guest_offset": 0},
    ]
    assert json.loads(done("chs", "--json", image)) == {
        "cylinders": 10, "heads": 2, "sectors_per_track": 8, "sector_size": 1024, "sectors": 160,
        "size_bytes": 163840,
    }  # fmt: skip


def test_others_say_what_the_tools_say(tmp_path: Path) -> None:
    image = make_image(tmp_path / "d.img", 504 * MIB)
    rows = json.loads(done("chs", "--json", "--others", image))
    said = {row["by"]: row["geometry"] for row in rows}
    parted = output("parted", "-s", "-m", image, "mklabel", "msdos", "unit", "chs", "print")
    # "path:8063,3,31:…", the last address.
    last = [int(n) for n in parted.splitlines()[1].split(":")[1].split(",")]
    assert said["parted"] == "/".join(str(n + 1) for n in last)
    assert said["profile ata"] == "1024/16/63"
    geometry = output("sfdisk", "-g", image).partition(":")[2].split()
    assert said["fdisk, sfdisk"] == f"{geometry[0]}/{geometry[2]}/{geometry[4]}"
