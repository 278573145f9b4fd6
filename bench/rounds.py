"""Rounds: each contender in turn on each workload, so that all meet the same machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.contenders import Contender, Served
from bench.place import Place, image_in, settle
from bench.process import ServerFailed
from bench.workload import FioFailed, Sample, Workload, run_fio

SERVED_SHARE_MIN = 0.9
"""Of the bytes fio moved, the share a server must have handled for its figure to be of it."""

Progress = Callable[[str], None]
"""Told what is measured now: the place, the round, the workload and the contender."""


@dataclass(slots=True)
class Results:
    """What was measured at one place.

    `figures` has a list for each (workload name, contender name), an item a round in which that
    contender ran.  A round is a key, so that figures of one round can be set side by side.
    """

    place: Place
    figures: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: every workload, `rounds` times, each time with every contender."""

    workloads: Sequence[Workload]
    contenders: Sequence[Contender]
    rounds: int
    seconds: float

    def order(self, number: int, row: int) -> list[Contender]:
        """The contenders in the order of round `number` on workload `row`: another one first
        each time, so that none gains from its place in line."""
        first = (number + row) % len(self.contenders)
        return [*self.contenders[first:], *self.contenders[:first]]

    @property
    def runs(self) -> int:
        """How many times fio is run at one place."""
        return len(self.workloads) * len(self.contenders) * self.rounds


def measure(plan: Plan, place: Place, progress: Progress) -> Results:
    """Carry out `plan` at `place`.

    A contender that fails is left out from there on; `failures` of the results says why.
    """
    results = Results(place)
    failed: set[str] = set()
    with image_in(place) as image:
        for number in range(plan.rounds):
            for row, workload in enumerate(plan.workloads):
                for contender in plan.order(number, row):
                    if contender.name in failed:
                        continue
                    progress(f"{place.name}, round {number + 1}: {workload.label}: "
                             f"{contender.label}")
                    try:
                        value = _run_once(plan, place, image, workload, contender)
                    except (ServerFailed, FioFailed, OSError) as error:
                        failed.add(contender.name)
                        results.failures.append(
                            f"{contender.label}, {workload.label}, {place.label}: {error}"
                        )
                        continue
                    key = (workload.name, contender.name)
                    results.figures.setdefault(key, {})[number] = value
    return results


def _run_once(
    plan: Plan, place: Place, image: Path, workload: Workload, contender: Contender
) -> float:
    settle(image, place)
    with (
        tempfile.TemporaryDirectory(prefix="vdisk-bench-serve-") as folder,
        contender.serve(image, Path(folder)) as served,
    ):
        # Pages of the host file are what makes a warm place warm; a cold one was emptied.
        before = _handled_bytes(served, workload)
        sample = run_fio(
            workload, served.path, size_bytes=place.size_bytes, seconds=plan.seconds,
            drop_pages=workload.direction == "read" and (served.own_pages or place.cold),
        )
        _check_served(sample, before, _handled_bytes(served, workload))
    return sample.value


def _handled_bytes(served: Served, workload: Workload) -> int | None:
    """Bytes the server has read or written in all, from /proc/PID/io; None where unknown."""
    if served.pid is None:
        return None
    try:
        lines = Path(f"/proc/{served.pid}/io").read_text().splitlines()
    except OSError:  # A server that changed its user is not ours to look at.
        return None
    counters = dict(line.split(": ") for line in lines)
    return int(counters["rchar" if workload.direction == "read" else "wchar"])


def _check_served(sample: Sample, before: int | None, after: int | None) -> None:
    if before is None or after is None:
        return
    share = (after - before) / max(sample.moved_bytes, 1)
    if share < SERVED_SHARE_MIN:
        raise ServerFailed(
            f"it handled only {share:.0%} of what fio moved: the kernel's cache answered the rest"
        )
