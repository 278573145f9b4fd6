"""Other programs that hold an image open: the real qemu-io, and another vdisk.

Each is known to hold the image when it has said so (qemu-io by its prompt), so nothing here waits
for a length of time.  All are ended with the `with` block.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import ROOT, Person

PROMPT = b"qemu-io> "

_VDISK = """
import sys
from vdisk.open import open_disk
if len(sys.argv) > 3:
    open("/proc/self/comm", "wb").write(bytes.fromhex(sys.argv[3]))
disk = open_disk(sys.argv[1], writable=sys.argv[2] == "rw")
print("open", flush=True)
sys.stdin.read()
disk.close()
"""


class Holder:
    """A process that holds an image until it is told to end, or killed."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=30)

    def end(self) -> None:
        """Let it end by itself: its standard input ends."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


@contextmanager
def qemu_io(image: Path, *options: str, person: Person | None = None) -> Iterator[Holder]:
    """qemu-io with `image` open: "-r" for reading only, "-U" to share with a writer."""
    command = (person or Person()).command("qemu-io", *options, "-f", "raw", image)
    with _held(command, PROMPT) as holder:
        yield holder


@contextmanager
def vdisk_holder(image: Path, how: str = "rw", comm: bytes = b"") -> Iterator[Holder]:
    """Another vdisk with `image` open, "rw" or "r"; `comm` is what the process calls itself."""
    name = [comm.hex()] if comm else []
    with _held([sys.executable, "-c", _VDISK, str(image), how, *name], b"open\n") as holder:
        yield holder


@contextmanager
def _held(command: list[str], sign: bytes) -> Iterator[Holder]:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT
    )
    holder = Holder(process)
    try:
        assert process.stdout is not None
        said = b""
        while not said.endswith(sign):
            more = os.read(process.stdout.fileno(), 4096)
            assert more, f"{command} ended: {said.decode(errors='replace')}"
            said += more
        yield holder
    finally:
        holder.end()
