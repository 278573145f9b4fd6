"""What is measured, and fio, which measures it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

FIO_GRACE_SECONDS = 60
"""How long fio may take beyond the time it was given before it is stopped and counted as failed."""


class FioFailed(Exception):
    """fio could not do its work; the text is what it said."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the table.  `block_bytes` is the size of each read or write."""

    operation: str
    """fio's word: read, write, randread, randwrite."""
    block_bytes: int
    threads: int

    @property
    def name(self) -> str:
        """Such as "randread-4k-16", as options and the JSON file have it."""
        size = "1m" if self.block_bytes == 1 << 20 else f"{self.block_bytes >> 10}k"
        return f"{self.operation}-{size}-{self.threads}"

    @property
    def label(self) -> str:
        """Such as "4 KiB random read, 16 threads"."""
        size = "1 MiB" if self.block_bytes == 1 << 20 else f"{self.block_bytes >> 10} KiB"
        order = "random" if self.is_random else "sequential"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{size} {order} {self.direction}, {threads}"

    @property
    def is_random(self) -> bool:
        """Whether the blocks come in random order."""
        return self.operation.startswith("rand")

    @property
    def direction(self) -> str:
        """read or write."""
        return self.operation.removeprefix("rand")

    @property
    def unit(self) -> str:
        """What the figures count, each second."""
        return "IOPS" if self.is_random else "MiB/s"


WORKLOADS = [
    Workload(operation, block_bytes, threads)
    for threads in (1, 16)
    for operation, block_bytes in (
        ("read", 1 << 20),
        ("write", 1 << 20),
        ("randread", 4096),
        ("randwrite", 4096),
    )
]
"""All rows, in the table's order."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run of fio gave: `value` in the workload's unit, and the bytes it moved."""

    value: float
    moved_bytes: int


def arguments(
    workload: Workload, path: Path, *, size_bytes: int, seconds: float, drop_pages: bool
) -> list[str]:
    """fio's command line for `workload` on `path`.

    Each thread has a part of the file to itself: no thread finds in the cache what another one
    has just read.  With `drop_pages`, fio drops the kernel's pages of its part before it starts
    and each time it comes round to the beginning; and a random run takes each block once before
    any a second time.  So a read is never answered from pages that an earlier read left.
    """
    part = size_bytes // workload.threads // workload.block_bytes * workload.block_bytes
    return [
        *("fio", "--name=bench", "--output-format=json", f"--filename={path}"),
        *(f"--rw={workload.operation}", f"--bs={workload.block_bytes}"),
        *("--thread", f"--numjobs={workload.threads}", "--group_reporting"),
        *("--ioengine=psync", "--direct=0", f"--invalidate={int(drop_pages)}"),
        *("--time_based", f"--runtime={round(seconds * 1000)}ms"),
        *(f"--size={part}", f"--offset_increment={part}", "--fallocate=none"),
        # Buffers of random bytes, so that nothing gains from recognising zeros; the same for all.
        *("--refill_buffers=0", "--randrepeat=1", "--allow_file_create=0"),
    ]


def run_fio(
    workload: Workload, path: Path, *, size_bytes: int, seconds: float, drop_pages: bool
) -> Sample:
    """Run `workload` on `path` for `seconds`.  FioFailed with what fio said where it fails."""
    command = arguments(
        workload, path, size_bytes=size_bytes, seconds=seconds, drop_pages=drop_pages
    )
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=seconds + FIO_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        raise FioFailed(f"fio did not end within {FIO_GRACE_SECONDS} s of its time") from None
    finally:
        # However this ends (Ctrl-C too), no fio goes on.  It is no child of the terminal.
        if process.poll() is None:
            process.kill()
            process.communicate()
    return _sample(workload, process.returncode, output, errors)


def _sample(workload: Workload, status: int, output: str, errors: str) -> Sample:
    said = errors.strip().splitlines()
    try:
        # fio writes its warnings before the JSON, to the same place.
        job = json.loads(output[output.index("{") :])["jobs"][0]
    except (ValueError, LookupError):
        raise FioFailed(said[-1] if said else f"fio ended with status {status}") from None
    if status != 0 or job["error"]:
        raise FioFailed(said[-1] if said else f"fio met error {job['error']}, status {status}")
    figures = job[workload.direction]
    value = figures["iops"] if workload.is_random else figures["bw_bytes"] / (1 << 20)
    return Sample(value, figures["io_bytes"])
