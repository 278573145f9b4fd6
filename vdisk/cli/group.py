"""A group of commands that reads a command's module only when the command is used.

`vdisk --help`, and the completion of a command's name, print what the table says and import none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

BROKEN_PIPE_STATUS = 128 + 13
"""What a shell shows for a program that SIGPIPE ended, such as dd before `| head`."""


class Command(NamedTuple):
    """Where a command is ("module:attribute") and what it does, in one line."""

    target: str
    summary: str


class LazyGroup(click.Group):
    """The commands of a table, listed in its order."""

    def __init__(self, *, table: Mapping[str, Command], **settings: Any) -> None:
        super().__init__(**settings)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name].target.partition(":")
        found = getattr(import_module(module), attribute)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in self.table.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        options = click.Command.shell_complete(self, ctx, incomplete)
        return options + [
            CompletionItem(name, help=entry.summary)
            for name, entry in self.table.items()
            if name.startswith(incomplete)
        ]

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        with _quiet():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        import logging

        logging.basicConfig(format=f"{ctx.info_name}: %(message)s")
        with _quiet():
            return super().invoke(ctx)


@contextmanager
def _quiet() -> Iterator[None]:
    """Nobody reads on: that is no failure, and needs no message.  Click would end with 1."""
    try:
        yield
    except BrokenPipeError as error:
        raise click.exceptions.Exit(BROKEN_PIPE_STATUS) from error
