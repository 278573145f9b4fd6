"""Power lost at any point of any change of a drive: the old group or the new one, and no old bytes.

What `test_lvm2_crash` shows of the steps of a commit, byte by byte, this shows of a drive at work:
with the zeros before a commit, what is given back after it, and guests that write meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from conformance import some_bytes
from drive_cases import EXTENT, drive_file
from lvm2_images import Memory, read_group
from model import host_folder
from recording import Log, RecordingHost
from vdisk.drive import Drive
from vdisk.open import open_drive
from vdisk.tables.lvm2 import NewVolume, VolumeMap

CRASHES = 4  # After each event, beside the plain kill.


class Recorded(RecordingHost):
    """Begins to record when it is opened; `opened` is the last one."""

    opened: Recorded

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, writable: bool, lock: bool = True) -> Recorded:
        host = super().open(path, writable=writable, lock=lock)
        host.log = Log(Path(path).read_bytes())
        cls.opened = host
        return host

    def give_back(self, offset: int, length: int) -> None:
        size = self.size()
        super().give_back(offset, length)
        self._note_zeros(offset, length, size)


Volumes = dict[str, bytes]
"""What each volume must hold, by its name."""

Step = Callable[[Drive, Volumes], None]


def _create(drive: Drive, volumes: Volumes) -> None:
    drive.create([NewVolume("b", 30 * EXTENT), NewVolume("c", 5 * EXTENT)])
    volumes |= {"b": bytes(30 * EXTENT), "c": bytes(5 * EXTENT)}


def _fill(drive: Drive, volumes: Volumes) -> None:
    """A guest at work, which the crashes leave alone: what it has not flushed may be anything."""
    for name, content in volumes.items():
        with drive.open(name) as disk:
            volumes[name] = some_bytes(len(content), len(name))
            disk.write(0, volumes[name])


def _grow(drive: Drive, volumes: Volumes) -> None:
    with drive.open("a") as disk:
        disk.resize(40 * EXTENT)
    volumes["a"] += bytes(20 * EXTENT)


def _shrink(drive: Drive, volumes: Volumes) -> None:
    with drive.open("a") as disk:
        disk.resize(10 * EXTENT)
    volumes["a"] = volumes["a"][: 10 * EXTENT]


def _remove(drive: Drive, volumes: Volumes) -> None:
    drive.remove(["b"])
    del volumes["b"]


def _replace(drive: Drive, volumes: Volumes) -> None:
    drive.rename("a", "c", replace=True)
    volumes["c"] = volumes.pop("a")


def _again(drive: Drive, volumes: Volumes) -> None:
    """In the place of what was removed."""
    drive.create([NewVolume("d", 60 * EXTENT)])
    volumes["d"] = bytes(60 * EXTENT)


STEPS: tuple[Step, ...] = (_create, _grow, _fill, _shrink, _remove, _replace, _again)


@pytest.fixture
def path() -> Iterator[Path]:
    """A drive with a volume, and old bytes on everything that is free."""
    with host_folder("memory") as folder:
        path = drive_file(folder / "drive.img")
        with closing(open_drive(path, writable=True)) as drive:
            drive.create([NewVolume("a", 20 * EXTENT)])
        pv = read_group(path).vg.pvs[0]
        with path.open("r+b") as file:
            os.pwrite(file.fileno(), some_bytes(pv.pe_count * EXTENT, 7), pv.pe_start * 512)
        yield path


def test_after_any_crash_the_group_is_old_or_new_and_its_volumes_are_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdisk.open.HostFile", Recorded)
    random = Random(11)
    with closing(open_drive(path, writable=True)) as drive:
        host = Recorded.opened
        with drive.open("a") as disk:
            volumes = {"a": disk.read(0, disk.size)}
        for step in STEPS:
            host.flush()
            begun, before = len(host.log.events), dict(volumes)
            step(drive, volumes)
            if step is _fill:
                continue
            for count in range(begun, len(host.log.events) + 1):
                for state in host.log.crash_states(count, random, CRASHES):
                    _check(state, before, volumes)


def _check(state: bytes, before: Volumes, after: Volumes) -> None:
    memory = Memory(state)
    vg = memory.group().vg
    found = {}
    for lv in vg.lvs:
        volume_map = VolumeMap(vg, lv)
        runs = volume_map.runs(0, volume_map.size)
        found[lv.name] = b"".join(memory.read(run.offset or 0, run.length) for run in runs)
    if found.keys() == before.keys() and found == before:
        return
    assert found == after
