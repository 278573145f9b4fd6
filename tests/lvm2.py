"""LVM2's own tools on image files, kept apart from whatever LVM the machine has.

    with lvm2.attached(image, other) as tools:
        tools.run("vgcreate", "group", *tools.devices)
        tools.volumes()

Each image is a loop device while the tools look at it, which takes root (`TAKES_ROOT`).  The tools
get a configuration of their own: they see these devices and no other, keep no backups, and do
without the kernel's device mapper, so that volumes are made and are not activated.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devices import loop_device

TAKES_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a loop device")

_CONFIGURATION = """
devices {{
    dir = "/dev"
    scan = ["/dev"]
    filter = [{accepted}, "r|.*|"]
    global_filter = [{accepted}, "r|.*|"]
    use_devicesfile = 0
    obtain_device_list_from_udev = 0
    external_device_info_source = "none"
    hints = "none"
}}
global {{
    locking_dir = "{folder}/lock"
    use_lvmpolld = 0
    use_lvmlockd = 0
    event_activation = 0
}}
activation {{ udev_sync = 0 udev_rules = 0 monitoring = 0 }}
backup {{ backup = 0 archive = 0 }}
"""

_WITHOUT_DEVICE_MAPPER = (
    "lvchange", "lvconvert", "lvcreate", "lvextend", "lvreduce", "lvremove", "lvrename", "lvs",
    "pvchange", "pvcreate", "pvremove", "pvs", "vgcfgrestore", "vgchange", "vgck", "vgcreate",
    "vgexport", "vgextend", "vgimport", "vgreduce", "vgremove", "vgrename", "vgs",
)  # fmt: skip


@dataclass(frozen=True)
class Tools:
    """The tools, and the devices they see: one an image, in the images' order."""

    devices: tuple[str, ...]
    folder: Path

    def run(self, tool: str, *words: object, check: bool = True) -> str:
        """What `tool` prints on standard output; with `check` it must succeed."""
        return self.tried(tool, *words, check=check).stdout

    def tried(
        self, tool: str, *words: object, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """How `tool` ended, and what it printed."""
        options = ["--driverloaded", "n"] if tool in _WITHOUT_DEVICE_MAPPER else []
        done = subprocess.run(
            [tool, *options, *map(str, words)],
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            env={
                "PATH": "/usr/sbin:/sbin:/usr/bin:/bin",
                "LC_ALL": "C.UTF-8",
                "LVM_SYSTEM_DIR": str(self.folder),
                "LVM_SUPPRESS_FD_WARNINGS": "1",
            },
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{tool} {words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    def create(self, group: str, name: str, *words: object) -> None:
        """`lvcreate` without activating, zeroing or wiping, all of which take the kernel."""
        self.run("lvcreate", "-an", "-Zn", "-Wn", "-n", name, group, *words)

    def check(self, group: str, *, prepared: bool = False) -> None:
        """Fails unless `vgck` and `pvck` find nothing to say about the group and its devices.

        With `prepared`, a text may wait to be committed, as after a crash.
        """
        done = self.tried("vgck", group, check=True)
        said = [line for line in done.stderr.splitlines() if "Activation disabled" not in line]
        assert not said, done.stderr
        for device in self.devices:
            done = self.tried("pvck", device, check=True)
            assert not done.stderr, done.stderr
            headers = self.run("pvck", "--dump", "headers", device)
            found = [line for line in headers.splitlines() if "CHECK" in line]
            if prepared:
                found = [line for line in found if "for precommit not empty" not in line]
            assert not found, headers

    def metadata(self, number: int = 0) -> str:
        """The metadata text as `pvck` finds it on a device, and without the NUL that ends it."""
        found = self.folder / "text"
        self.run("pvck", "--dump", "metadata", "--file", found, self.devices[number])
        text = found.read_text()
        found.unlink()  # pvck leaves a file alone that is there already.
        return text

    def report(self, tool: str, *words: object, columns: str) -> list[dict[str, Any]]:
        """The rows of `pvs`, `vgs` or `lvs`; sizes are in bytes and without a unit."""
        done = self.run(
            tool, "--reportformat", "json", "--units", "b", "--nosuffix", "-o", columns, *words
        )
        (report,) = json.loads(done)["report"]
        (rows,) = report.values()
        found: list[dict[str, Any]] = rows
        return found

    def volumes(self, *words: object) -> dict[str, dict[str, Any]]:
        """Every volume that is not hidden, by name, as `lvs` reports it."""
        columns = "lv_name,lv_uuid,lv_size,lv_tags,lv_time,lv_host,seg_count,lv_attr"
        rows = self.report("lvs", *words, columns=columns)
        return {row["lv_name"]: row for row in rows}

    def places(self) -> dict[str, list[str]]:
        """Where each volume lies: "device number:first extent-last extent" of every stripe."""
        found: dict[str, list[str]] = {}
        rows = self.report("lvs", "--sort", "lv_name,seg_start_pe", columns="lv_name,seg_pe_ranges")
        for row in rows:
            for device in self.devices:
                number = str(self.devices.index(device))
                row["seg_pe_ranges"] = row["seg_pe_ranges"].replace(f"{device}:", f"{number}:")
            found.setdefault(row["lv_name"], []).extend(row["seg_pe_ranges"].split())
        return found


@contextmanager
def attached(*images: Path) -> Iterator[Tools]:
    """The tools, with `images` as the only devices that they know of."""
    with ExitStack() as stack:
        devices = tuple(str(stack.enter_context(loop_device(image))) for image in images)
        folder = Path(tempfile.mkdtemp(prefix="lvm2-"))
        stack.callback(shutil.rmtree, folder)
        accepted = ", ".join(f'"a|^{device}$|"' for device in devices)
        text = _CONFIGURATION.format(accepted=accepted, folder=folder)
        (folder / "lvm.conf").write_text(text)
        yield Tools(devices, folder)
