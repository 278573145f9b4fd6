"""Any sequence of edits, on both kinds of table, against a plain list of partitions.

The model knows nothing of records and entries: only which partitions there are, and that a new one
lies in sectors that no other has.  Where a primary or GPT partition goes it works out by trying
every place there is.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from table_edits import applied, blank_bytes, geometry_of, planned, saved, table_of
from table_images import MIB, partx_rows, run, scan_bytes, sfdisk_rows
from vdisk.errors import InvalidArgument
from vdisk.partitioning.edits import Add, Edits
from vdisk.partitioning.steps import Put
from vdisk.tables import Partition

SIZE = 8 * MIB
STEP = 64 << 10
"""The alignment: 128 places on the disk."""

MBR_TYPES = {"83": "0x83", "swap": "0x82", "c": "0x0c"}
GPT_TYPES = {
    "linux": "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
    "swap": "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F",
    "esp": "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
}
SIZES = st.integers(1, 12).map(lambda n: n * (STEP // 2))


@dataclass(frozen=True)
class Known:
    """A partition as the model has it."""

    start: int
    sectors: int
    type: str
    bootable: bool = False
    name: str = ""


class Tables(RuleBasedStateMachine):
    """A disk whose table is edited again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = blank_bytes(SIZE)
        self.known: dict[int, Known] = {}

    @initialize(kind=st.sampled_from(["mbr", "gpt"]), sector_size=st.sampled_from([512, 4096]))
    def begin(self, kind: Any, sector_size: int) -> None:
        self.kind = kind
        self.geometry = geometry_of(SIZE, 16, 63 if sector_size == 512 else 16, sector_size)
        self.types = MBR_TYPES if kind == "mbr" else GPT_TYPES
        self.edit(Edits(kind))
        self.id = self.table().disk_id

    def table(self) -> Any:
        table = scan_bytes(self.disk, self.geometry.sector_size).table
        assert table is not None
        return table

    def partitions(self) -> dict[int, Partition]:
        return {p.number: p for p in self.table().partitions if p.kind != "extended"}

    def edit(self, edits: Edits) -> None:
        """Do it; and see that after each write there is a table without a fault."""
        change = planned(self.disk, edits, self.geometry)
        for step in change.steps:
            if isinstance(step, Put):
                self.disk[step.offset : step.end] = step.data
                table = scan_bytes(self.disk, self.geometry.sector_size).table
                assert table is None or not any(p.problem for p in table.partitions)
        assert self.disk == applied(self.disk, change.steps)

    def expected_start(self, sectors: int) -> int | None:
        """The first place that has room, by trying all of them."""
        unit, step = self.geometry.sector_size, STEP // self.geometry.sector_size
        entries = -(-16384 // unit)
        first, end = (2 + entries, SIZE // unit - 1 - entries) if self.kind == "gpt" else (
            1, SIZE // unit)  # fmt: skip
        used = [(p.start_lba, p.end_lba) for p in self.table().partitions if p.kind != "logical"]
        for start in range(step, end, step):
            last = start + sectors
            if start >= first and last <= end and not any(
                start < high and low < last for low, high in used
            ):
                return start
        return None

    def has_slot(self) -> bool:
        used = [p for p in self.table().partitions if p.kind != "logical"]
        return len(used) < (4 if self.kind == "mbr" else 128)

    @rule(size=SIZES, which=st.integers(0, 2), name=st.text("aé盘𐐷", max_size=9))
    def add(self, size: int, which: int, name: str) -> None:
        word, code = list(self.types.items())[which]
        sectors = -(-size // self.geometry.sector_size)
        before, expected = self.partitions(), None
        if self.has_slot():
            expected = self.expected_start(sectors)
        name = name if self.kind == "gpt" else ""
        edits = Edits(adds=(Add(size, word, name),), align=STEP)
        try:
            self.edit(edits)
        except InvalidArgument:
            assert expected is None
            return
        new = [p for n, p in self.partitions().items() if n not in before]
        assert len(new) == 1
        assert new[0].sectors == sectors
        assert expected is None or new[0].start_lba == expected
        self.known[new[0].number] = Known(new[0].start_lba, sectors, code, name=name)

    @precondition(lambda self: self.kind == "mbr")
    @rule(sizes=st.lists(SIZES, min_size=1, max_size=3))
    def add_logicals(self, sizes: list[int]) -> None:
        before = self.partitions()
        try:
            self.edit(Edits(logicals=tuple(Add(size) for size in sizes), align=STEP))
        except InvalidArgument:
            return
        new = [p for n, p in self.partitions().items() if n not in before]
        assert [p.sectors for p in new] == [-(-s // self.geometry.sector_size) for s in sizes]
        for p in new:
            self.known[p.number] = Known(p.start_lba, p.sectors, "0x83")

    @precondition(lambda self: self.known)
    @rule(data=st.data(), count=st.integers(1, 2))
    def delete(self, data: st.DataObject, count: int) -> None:
        numbers = data.draw(st.lists(st.sampled_from(sorted(self.known)), min_size=1,
                                     max_size=count, unique=True))  # fmt: skip
        self.edit(Edits(deletes=tuple(numbers)))
        kept = {n: one for n, one in sorted(self.known.items()) if n not in numbers}
        if self.kind == "mbr":  # Logical ones close ranks.
            primaries = {n: one for n, one in kept.items() if n < 5}
            logicals = [one for n, one in kept.items() if n >= 5]
            kept = primaries | dict(enumerate(logicals, 5))
        self.known = kept

    @precondition(lambda self: self.kind == "mbr" and len(self.partitions()) <
                  len(self.table().partitions))  # fmt: skip
    @rule()
    def delete_extended(self) -> None:
        (number,) = [p.number for p in self.table().partitions if p.kind == "extended"]
        self.edit(Edits(deletes=(number,)))
        self.known = {n: one for n, one in self.known.items() if n < 5}

    @precondition(lambda self: self.known)
    @rule(data=st.data(), which=st.integers(0, 2), on=st.booleans())
    def retype_and_flag(self, data: st.DataObject, which: int, on: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.known)))
        word, code = list(self.types.items())[which]
        self.edit(Edits(types=((number, word),), bootables=((number, on),)))
        if self.kind == "mbr" and on:
            self.known = {n: replace(one, bootable=False) for n, one in self.known.items()}
        self.known[number] = replace(self.known[number], type=code, bootable=on)

    @precondition(lambda self: self.kind == "gpt" and self.known)
    @rule(data=st.data(), name=st.text("b ßぶ", max_size=36))
    def rename(self, data: st.DataObject, name: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.known)))
        self.edit(Edits(names=((number, name),)))
        self.known[number] = replace(self.known[number], name=name)

    @invariant()
    def table_is_the_model(self) -> None:
        if not hasattr(self, "id"):
            return
        table = self.table()
        assert (table.kind, table.disk_id, table.problems) == (self.kind, self.id, ())
        found = {
            n: Known(p.start_lba, p.sectors, p.type, p.bootable, p.name)
            for n, p in self.partitions().items()
        }
        assert found == self.known
        assert not any(p.problem for p in table.partitions)

    def teardown(self) -> None:
        """Let others judge what has become of it."""
        if not hasattr(self, "id"):
            return
        with tempfile.TemporaryDirectory() as folder:
            image = saved(Path(folder) / "disk.img", self.disk)
            rows = [(n, p.start_lba, p.sectors) for n, p in self.partitions().items()]
            extended = {p.number for p in self.table().partitions if p.kind == "extended"}
            theirs = partx_rows(image, self.geometry.sector_size)
            assert [row for row in theirs if row[0] not in extended] == rows
            if self.geometry.sector_size == 512:
                assert [row for row in sfdisk_rows(image) if row[0] not in extended] == rows
                assert "No errors" in run("sfdisk", "--verify", image).stdout
                if self.kind == "gpt":
                    assert "No problems found" in run("sgdisk", "-v", image).stdout
            assert table_of(scan_bytes(self.disk, self.geometry.sector_size)) is not None


TestTables = Tables.TestCase
TestTables.settings = settings(
    max_examples=25, stateful_step_count=12, deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
