"""What commands print: notes and warnings, JSON, tables, and bytes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

from vdisk.errors import DiskError, HostError, printable

STDIN, STDOUT = 0, 1


def note(text: str) -> None:
    """One line on standard error that is no error."""
    click.echo(f"{_program()}: {printable(text)}", err=True)


def warn(text: str) -> None:
    """One line on standard error about something that will surprise later on."""
    note(f"warning: {text}")


def _program() -> str:
    context = click.get_current_context(silent=True)
    return "vdisk" if context is None else context.find_root().info_name or "vdisk"


def print_json(value: Any) -> None:
    """`value` as indented JSON, in ASCII: a file name may be no text in any encoding."""
    click.echo(json.dumps(value, indent=2))


def print_json_rows(rows: Iterable[dict[str, Any]]) -> None:
    """A JSON list, a line an element, written while it is made."""
    mark = "["
    for row in rows:
        click.echo(f"{mark}\n  {json.dumps(row)}", nl=False)
        mark = ","
    click.echo("[]" if mark == "[" else "\n]")


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()
) -> None:
    """Rows under headers; the columns numbered in `right` (from 0) end at the same place.

    Drawn on a terminal, and elsewhere plain columns with two spaces between them, which awk takes
    apart as long as no cell has a space in it.
    """
    shown = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout is not None and sys.stdout.isatty():
        _draw_table(headers, shown, right)
    else:
        for line in columns(headers, shown, right=right):
            click.echo(line)


def columns(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()
) -> Iterator[str]:
    """The lines of a plain table."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        yield aligned(row, widths, right)


def aligned(row: Sequence[str], widths: Sequence[int], right: frozenset[int]) -> str:
    """One line of a plain table whose columns are as wide as `widths` says."""
    cells = (
        cell.rjust(width) if at in right else cell.ljust(width)
        for at, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join(cells).rstrip()


def _draw_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int]
) -> None:
    # Reading rich takes longer than most commands do.
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE)
    for at, header in enumerate(headers):
        table.add_column(header, justify="right" if at in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


# Bytes


def check_open(descriptor: int) -> None:
    """Refuse to move bytes through standard input or output where the caller closed it."""
    stream, name = {STDIN: (sys.stdin, "input"), STDOUT: (sys.stdout, "output")}[descriptor]
    if stream is None:
        raise DiskError(f"standard {name} is closed")


def write_out(data: memoryview) -> None:
    """All of `data` to standard output."""
    while data:
        try:
            count = os.write(STDOUT, data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise HostError.of(error, "write", "standard output") from error
        data = data[count:]


def read_in(buffer: memoryview) -> int:
    """Fill `buffer` from standard input; how many bytes there were, fewer only at its end."""
    filled = 0
    while filled < len(buffer):
        try:
            count = os.readv(STDIN, [buffer[filled:]])
        except OSError as error:
            raise HostError.of(error, "read", "standard input") from error
        if count == 0:
            break
        filled += count
    return filled
