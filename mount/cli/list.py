"""`vdisk list`: the live mounts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from mount import live
from mount.unmount import is_dead
from vdisk.cli.console import print_json, print_table
from vdisk.cli.params import examples, json_option
from vdisk.units import format_size

_HEADERS = ("SOURCE", "DISK", "SIZE", "GEOMETRY", "MOUNTPOINT", "PID", "STATE", "SERVER")
_RIGHT = frozenset({2, 5})


@click.command(
    "list",
    epilog=examples("vdisk list", "vdisk list --json | jq -r '.[].mountpoint'"),
)
@json_option
def list_(as_json: bool) -> None:
    """List the live mounts, a line a disk.

    The state is rw or ro, or dead where the process that served the mount is gone:
    `vdisk umount` cleans that up. The server is followed by +passthrough where the kernel gives
    readers of the disk the host file itself. Of other users' mounts, only root is shown the disks.
    """
    mounts = [described(mount) for mount in live.mounts()]
    if as_json:
        print_json(mounts)
        return
    rows = [row for mount in mounts for row in _rows(mount)]
    if rows:
        print_table(_HEADERS, rows, right=_RIGHT)


def described(mount: live.Mount) -> dict[str, Any]:
    """What `vdisk list --json` prints of a mount."""
    return {
        "source": mount.source,
        "mountpoint": mount.mountpoint,
        "pid": mount.pid,
        "read_only": mount.read_only,
        "state": "dead" if is_dead(mount) else "ro" if mount.read_only else "rw",
        "server": mount.server,
        "disks": mount.disks,
    }


def _rows(mount: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    pid = "-" if mount["pid"] is None else str(mount["pid"])
    after = (mount["mountpoint"], pid, mount["state"])
    server = mount["server"] or "-"
    for disk in mount["disks"]:
        size = format_size(disk["size_bytes"]).replace(" ", "")
        carried = server + ("+passthrough" if disk.get("passthrough") else "")
        yield disk["host_file"], disk["name"], size, disk["geometry"] or "-", *after, carried
    if not mount["disks"]:
        yield mount["source"], "-", "-", "-", *after, server
