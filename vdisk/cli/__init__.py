"""The commands, a module each, that need nothing but `vdisk`.

`COMMANDS` is a table and not a list of functions, so that a command's module, and all that it
needs, is read only when that command is used.  `mount.cli` adds the commands of the mount to it
and is the one that builds the program.
"""

from __future__ import annotations

from vdisk.cli.group import Command

COMMANDS: dict[str, Command] = {
    "create": Command("vdisk.cli.create:create", "Make a new disk in a new file."),
    "info": Command("vdisk.cli.info:info", "Say what a disk is: size, geometry, partitions."),
    "chs": Command("vdisk.cli.chs:chs", "Turn C/H/S addresses into LBAs, and LBAs into C/H/S."),
    "read": Command("vdisk.cli.read:read", "Copy sectors or bytes to standard output."),
    "write": Command("vdisk.cli.write:write", "Copy standard input to sectors or bytes."),
    "map": Command("vdisk.cli.map:map_", "Show where a disk's bytes are in the host file."),
    "partition": Command(
        "vdisk.cli.partition:partition", "Show a disk's partition table, or change it."
    ),
    "resize": Command("vdisk.cli.resize:resize", "Make a disk larger or smaller."),
    "convert": Command("vdisk.cli.convert:convert", "Copy a disk to one of another format."),
    "compare": Command("vdisk.cli.compare:compare", "Say whether two disks hold the same."),
    "check": Command("vdisk.cli.check:check", "Look for damage in an image, and repair it."),
    "snapshot": Command("vdisk.cli.snapshot:snapshot", "Keep a disk's state, and go back to it."),
    "commit": Command("vdisk.cli.commit:commit", "Write an overlay's changes into its parent."),
    "rebase": Command("vdisk.cli.rebase:rebase", "Put another parent beneath an overlay."),
    "compact": Command("vdisk.cli.compact:compact", "Give back space that a disk does not need."),
    "completion": Command("vdisk.cli.completion:completion", "Print a shell's completion script."),
}
"""Each command's name, in the order of `vdisk --help`."""
