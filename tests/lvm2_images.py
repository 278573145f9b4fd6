"""Drives with volume groups for the tests: in files and in memory, and carrying steps out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from vdisk.tables.lvm2 import (
    Barrier,
    FoundPv,
    Group,
    NewVolume,
    Put,
    Step,
    VolumeGroup,
    Zero,
    assemble,
    create,
    new_drive,
    read_pv,
)

MIB = 1 << 20
TIME = 1_700_000_000
HOST = "test-host"


class Memory:
    """A drive's bytes in memory; a read outside them, or an empty one, fails."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = bytearray(data)

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert 0 < length <= len(self.data) - offset
        return bytes(self.data[offset : offset + length])

    def do(self, steps: Iterable[Step]) -> None:
        """Carry `steps` out, whatever physical volume they are for."""
        for step in steps:
            self.write(step)

    def write(self, step: Step) -> None:
        if isinstance(step, Barrier):
            return
        data = step.data if isinstance(step, Put) else bytes(step.length)
        assert 0 <= step.offset <= len(self.data) - len(data)
        self.data[step.offset : step.offset + len(data)] = data

    def pv(self) -> FoundPv:
        found = read_pv(self.read, len(self.data))
        assert found is not None
        return found

    def group(self) -> Group:
        """The only group on this drive alone."""
        (group,) = assemble([self.pv()])
        return group


def blank(path: Path, size: int = 64 * MIB) -> Path:
    """A sparse file of `size` bytes."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def read_file(path: Path) -> FoundPv:
    """The physical volume in the file `path`."""
    size = path.stat().st_size
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            assert 0 < length <= size - offset
            file.seek(offset)
            return file.read(length)

        found = read_pv(read, size)
    assert found is not None
    return found


def read_group(*paths: Path) -> Group:
    """The only group on the drives in these files."""
    (group,) = assemble(read_file(path) for path in paths)
    return group


def do(steps: Iterable[Step], files: Mapping[str, Path] | Path) -> None:
    """Carry `steps` out on the file of each physical volume, or all on one file."""
    for step in steps:
        if isinstance(step, Barrier):
            continue
        path = files if isinstance(files, Path) else files[step.pv]
        with path.open("r+b") as file:
            file.seek(step.offset)
            file.write(step.data if isinstance(step, Put) else bytes(step.length))


def by_pv(*paths: Path) -> dict[str, Path]:
    """The files by the UUID of the physical volume in each."""
    return {read_file(path).label.pv_id: path for path in paths}


def commit(group: Group, vg: VolumeGroup, files: Mapping[str, Path] | Path) -> Group:
    """Make `vg` the group on the drives; the group as it is read back, which is as foretold."""
    done = group.commit(vg, time=TIME, host=HOST)
    do(done.steps, files)
    paths = [files] if isinstance(files, Path) else list(files.values())
    found = read_group(*paths)
    assert found.vg == done.group.vg
    assert found.text == done.group.text
    return found


def drive(path: Path, size: int = 64 * MIB, name: str = "drive", **options: int) -> Group:
    """A new drive in a new file at `path`."""
    made = new_drive(size, name, time=TIME, host=HOST, **options)
    do(made.steps, blank(path, size))
    return read_group(path)


def memory_drive(size: int = 8 * MIB, **options: int) -> Memory:
    """A new drive in memory."""
    memory = Memory(bytes(size))
    memory.do(new_drive(size, "drive", time=TIME, host=HOST, **options).steps)
    return memory


def with_volumes(vg: VolumeGroup, **sizes: int) -> VolumeGroup:
    """`vg` with volumes of these names and sizes in bytes."""
    wanted = [NewVolume(name, size) for name, size in sizes.items()]
    return create(vg, wanted, time=TIME, host=HOST)


def writes(steps: Iterable[Step]) -> list[list[Put | Zero]]:
    """The writes of `steps`, those between two barriers together."""
    groups: list[list[Put | Zero]] = [[]]
    for step in steps:
        if isinstance(step, Barrier):
            groups.append([])
        else:
            groups[-1].append(step)
    return [group for group in groups if group]
