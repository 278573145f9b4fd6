"""Block devices for the tests, which only root can make."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import PATIENCE


@contextmanager
def loop_device(backing: Path, sector_size: int = 512, *options: str) -> Iterator[Path]:
    """A loop device over `backing`; `options` are more of losetup's."""
    line = ["losetup", "--find", "--show", f"--sector-size={sector_size}", *options, str(backing)]
    made = subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield Path(made)
    finally:
        subprocess.run(["losetup", "--detach", made], check=True)
        wait_for_detachment(backing)


@contextmanager
def loop_mounted(source: Path, where: Path, *options: str) -> Iterator[None]:
    """The file system in `source` mounted on the folder `where` by a loop device."""
    line = ["mount", "-o", ",".join(["loop", *options]), str(source), str(where)]
    subprocess.run(line, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(where)], check=True)
        wait_for_detachment(source)


def wait_for_detachment(backing: Path) -> None:
    """Until no loop device is over `backing`.

    One goes when the last who has the device open closes it, and any program that looks at the
    machine's devices has it open for a moment.
    """
    deadline = time.monotonic() + PATIENCE
    while str(backing) in _backing_files():
        assert time.monotonic() < deadline, f"a loop device stays on {backing}"
        time.sleep(0.01)


def _backing_files() -> Iterator[str]:
    for told in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            yield told.read_text().strip()
        except OSError:  # It went meanwhile.
            continue
