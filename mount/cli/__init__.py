"""The `vdisk` program: the commands of `vdisk.cli`, and those of the mount."""

from __future__ import annotations

from typing import NoReturn

import click

from vdisk import __version__
from vdisk.cli import COMMANDS
from vdisk.cli.group import Command, LazyGroup
from vdisk.cli.run import run_command

MOUNT_COMMANDS: dict[str, Command] = {
    "mount": Command("mount.cli.mount:mount", "Show disks and their parts as files in a folder."),
    "umount": Command("mount.cli.umount:umount", "End a mount; everything is on disk afterwards."),
    "list": Command("mount.cli.list:list_", "List the live mounts."),
}


def program() -> LazyGroup:
    """The group of all commands."""
    group = LazyGroup(
        name="vdisk",
        table={**MOUNT_COMMANDS, **COMMANDS},
        help="Virtual disks, as files that the shell can use.",
        epilog="\b\nExamples:\n"
        "  vdisk mount --create 1G disk.img mnt   # mnt/disk is the disk, mnt/disk.p1 a partition\n"
        "  vdisk umount mnt\n"
        "  vdisk COMMAND --help                   # each command has examples of its own",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    return click.version_option(__version__, "-V", "--version", prog_name="vdisk")(group)


def main() -> NoReturn:
    """The entry point of the `vdisk` command."""
    run_command(program(), "vdisk")
