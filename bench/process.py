"""Start and stop the programs that serve an image."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.interrupt import held

START_SECONDS = 20
STOP_SECONDS = 120  # It may have gigabytes to write before it can let go.
_POLL_SECONDS = 0.01


class ServerFailed(Exception):
    """A server did not start, or did not end, as it should; the text says why."""


def run(command: Sequence[str | Path], *, seconds: float = STOP_SECONDS) -> str:
    """Run `command` to its end; its standard output.

    ServerFailed with the last line it said where it ends with a status other than 0, or not
    within `seconds`.
    """
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds,
            check=False, start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise ServerFailed(f"{name} did not end within {seconds:g} s") from None
    if done.returncode != 0:
        raise ServerFailed(f"{name}: {_last_line(done.stderr) or f'status {done.returncode}'}")
    return done.stdout


@contextmanager
def running(
    command: Sequence[str | Path], log: Path, ready: Callable[[], bool]
) -> Iterator[subprocess.Popen[bytes]]:
    """Have `command` run, from when `ready()` says so to the end of the block.

    Ends it with SIGTERM.  What it says goes to `log`.  ServerFailed where it ends by itself
    before it is ready, or will not end.
    """
    with held():
        process = _start(command, log)
        try:
            _wait_until_ready(process, log, ready)
        except BaseException:
            _end(process)
            raise
    try:
        yield process
    finally:
        with held():
            _end(process)


def _start(command: Sequence[str | Path], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as said:
        # In a session of its own: Ctrl-C at the terminal is for us, and we end it in order.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        )


def _wait_until_ready(
    process: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool]
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None:
            said = _last_line(log.read_text(errors="replace"))
            raise ServerFailed(said or f"it ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise ServerFailed(f"it was not ready within {START_SECONDS} s")
        time.sleep(_POLL_SECONDS)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise ServerFailed(f"it did not end within {STOP_SECONDS} s and was killed") from None


def is_mounted(path: Path) -> bool:
    """Whether a file system is mounted on `path`, a folder or a file, and answers."""
    try:
        return os.stat(path).st_dev != os.stat(path.parent).st_dev
    except OSError:
        return False


def unmount_if_left(path: Path) -> None:
    """Take away a mount that its server left on `path`, dead or alive."""
    tool = "umount" if os.geteuid() == 0 else "fusermount3"
    lazy = ["-l"] if os.geteuid() == 0 else ["-u", "-z"]
    left = str(path) in _mountpoints()
    while left:
        subprocess.run([tool, *lazy, path], stderr=subprocess.DEVNULL, check=True)
        left = str(path) in _mountpoints()


def _mountpoints() -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return {line.split()[4] for line in lines}


def kill(pid: int) -> None:
    """End a process that is no child of ours, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
