"""The names of partition types are sfdisk's."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_unknown_types_have_no_name() -> None:
    assert partition_types.mbr_type_name(0x69) == ""
    assert partition_types.gpt_type_name("00000000-0000-0000-0000-000000000001") == ""
