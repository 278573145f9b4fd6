"""The names of partition types are sfdisk's."""

from __future__ import annotations

from pathlib import Path

import pytest

from table_images import MIB, blank, run, sfdisk_json
from vdisk.errors import InvalidArgument
from vdisk.tables import partition_types

DATA = Path(__file__).parent / "data"


def listed(label: str) -> dict[str, str]:
    """Types and names as `sfdisk --list-types` printed them."""
    lines = (DATA / f"sfdisk-types-{label}.txt").read_text().splitlines()
    rows = [line.split(maxsplit=1) for line in lines if not line.startswith("#")]
    return {code: name.strip() for code, name in rows}


def test_every_mbr_name_is_sfdisks() -> None:
    theirs = {int(code, 16): name for code, name in listed("dos").items()}
    ours = {code: partition_types.mbr_type_name(code) for code in range(256)}
    known = {code: name for code, name in ours.items() if name}
    assert len(known) > 40
    assert {code: theirs.get(code) for code in known} == known


def test_every_gpt_name_is_sfdisks() -> None:
    theirs = listed("gpt")
    known = {guid: partition_types.gpt_type_name(guid) for guid in theirs}
    known = {guid: name for guid, name in known.items() if name}
    assert len(known) == len(partition_types._GPT_NAMES) > 40
    assert known == {guid: theirs[guid] for guid in known}


@pytest.mark.parametrize("code", [0x00, 0x5, 0x83, 0xEE, 0xFF])
def test_mbr_type_is_two_digits(code: int) -> None:
    assert int(partition_types.mbr_type(code), 16) == code
    assert len(partition_types.mbr_type(code)) == 4


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("gpt", ["linux", "swap", "home", "uefi", "raid", "lvm", "L", "S", "H", "U", "R", "V"]),
        ("dos", ["linux", "swap", "uefi", "extended"]),
        ("dos", ["raid", "lvm", "E"]),
        ("dos", ["L", "S", "U", "X"]),
        ("dos", ["R", "V", "linuxex"]),
    ],
)
def test_aliases_are_sfdisks(tmp_path: Path, label: str, words: list[str]) -> None:
    image = blank(tmp_path / "disk.img", 32 * MIB)
    lines = "".join(f"size=1M, type={word}\n" for word in words)
    run("sfdisk", image, stdin=f"label: {label}\n{lines}")
    made = [one["type"].lower() for one in sfdisk_json(image)["partitions"]]
    if label == "gpt":
        assert [partition_types.parse_gpt_type(word).lower() for word in words] == made
    else:
        assert [f"{partition_types.parse_mbr_type(word):x}" for word in words] == made


def test_every_name_that_is_printed_can_be_typed() -> None:
    for code in range(256):
        name = partition_types.mbr_type_name(code)
        assert partition_types.parse_mbr_type(f"{code:02x}") == code
        assert partition_types.parse_mbr_type(f"0x{code:02X}") == code
        if name and name != "NTFS volume set":  # There are two of that name.
            assert partition_types.parse_mbr_type(name) == code
    for guid, name in partition_types._GPT_NAMES.items():
        assert partition_types.parse_gpt_type(name) == guid
        assert partition_types.parse_gpt_type(name.lower().replace(" ", "-")) == guid
        assert partition_types.parse_gpt_type(guid.lower()) == guid


@pytest.mark.parametrize("text", ["", "x", "100", "0x100", "-1", "8 3", "l", "0x"])
def test_what_is_no_type_is_refused(text: str) -> None:
    for parse in (partition_types.parse_mbr_type, partition_types.parse_gpt_type):
        with pytest.raises(InvalidArgument, match="is no type"):
            parse(text)


def test_unknown_types_have_no_name() -> None:
    assert partition_types.mbr_type_name(0x69) == ""
    assert partition_types.gpt_type_name("00000000-0000-0000-0000-000000000001") == ""
