"""What can be asked of a partition table, as plain values.

All the edits of one command are one `Edits`, and are done in this order, whatever the order in
which they were typed:

1. a new, empty table;
2. deletions, by the numbers that the table has before;
3. additions: `adds` in their order, then `extended`, then `logicals` in theirs;
4. types, names and bootable flags, by the numbers that the table has after that.

So a table can be made, filled and flagged by one command.
"""

from __future__ import annotations

from dataclasses import dataclass

from vdisk.partitioning.placing import Alignment
from vdisk.tables.partition import TableKind


@dataclass(frozen=True, slots=True)
class Add:
    """A partition to add, in the first free place that has room for it.

    `size_bytes` is rounded up to whole sectors; None is all of the largest free place.  `type` is
    whatever `partition_types` can read, None the usual one for Linux data.
    """

    size_bytes: int | None
    type: str | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Edits:
    """The edits of one command.  A pair is a partition's number and what it is to become.

    `extended` is an extended partition, whose type need not be given.  `align` is None for the
    usual alignment of a disk of that size.
    """

    new_table: TableKind | None = None
    deletes: tuple[int, ...] = ()
    adds: tuple[Add, ...] = ()
    extended: Add | None = None
    logicals: tuple[Add, ...] = ()
    types: tuple[tuple[int, str], ...] = ()
    names: tuple[tuple[int, str], ...] = ()
    bootables: tuple[tuple[int, bool], ...] = ()
    align: Alignment | None = None

    @property
    def adds_something(self) -> bool:
        """Whether a partition is to be added."""
        return bool(self.adds or self.logicals or self.extended is not None)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked for."""
        return not (
            self.new_table or self.deletes or self.adds_something
            or self.types or self.names or self.bootables
        )  # fmt: skip
