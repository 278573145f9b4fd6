"""When a server looks for the next request before it sleeps, and when it does not."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio

from mount.busy_poll import LONGEST_NS, BusyPoll, usable_processors
from mount.pyfuse3_loop import EagerWait

POLL_NS = 1_000  # What one look takes on the clock below.


class Clock:
    """Time that passes only as the test says, and by POLL_NS for each time it is asked."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += POLL_NS
        return self.now


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def sleeps(poll: BusyPoll, clock: Clock, nanoseconds: int) -> int:
    """A wait that ends by sleeping; for how long it was looked before."""
    before = clock.now
    assert not poll.finds_one()
    looked = clock.now - before
    clock.now += nanoseconds
    poll.slept()
    return looked


def test_it_looks_longer_while_requests_follow_each_other_closely(pipe: tuple[int, int]) -> None:
    clock = Clock()
    poll = BusyPoll(pipe[0], processors=2, clock=clock)
    looked = [sleeps(poll, clock, 20_000) for _ in range(8)]
    assert looked[0] <= 2 * POLL_NS  # Nothing is known yet, so nothing is spent.
    assert looked == sorted(looked)
    assert LONGEST_NS <= looked[-1] <= LONGEST_NS + 4 * POLL_NS


def test_it_stops_looking_when_requests_become_rare(pipe: tuple[int, int]) -> None:
    clock = Clock()
    poll = BusyPoll(pipe[0], processors=2, clock=clock)
    for _ in range(8):
        sleeps(poll, clock, 20_000)
    looked = [sleeps(poll, clock, 5_000_000) for _ in range(8)]
    assert looked[-1] <= 2 * POLL_NS


def test_with_one_processor_it_never_looks(pipe: tuple[int, int]) -> None:
    """Whoever is to make the request needs the processor for it."""
    clock = Clock()
    poll = BusyPoll(pipe[0], processors=1, clock=clock)
    assert max(sleeps(poll, clock, 20_000) for _ in range(8)) <= 2 * POLL_NS


def test_what_is_there_is_found_at_once(pipe: tuple[int, int]) -> None:
    poll = BusyPoll(pipe[0], processors=1)
    assert not poll.finds_one()
    os.write(pipe[1], b"x")
    assert poll.finds_one()


@pytest.mark.parametrize(
    ("text", "processors"),
    [
        ("max 100000\n", 4), ("400000 100000\n", 4), ("150000 100000\n", 1), ("50000 100000\n", 1),
        ("", 4), ("nonsense\n", 4), ("100000 0\n", 4),
    ],
)  # fmt: skip
def test_a_limit_of_the_container_counts(
    text: str, processors: int, tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    limit = os.path.join(tmp_path, "cpu.max")
    with open(limit, "w") as file:
        file.write(text)
    assert usable_processors(limit) == processors


def test_without_a_limit_the_processors_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3})
    assert usable_processors("/nonexistent") == 2


class Loop:
    """pyfuse3's loop, as far as it matters here: what waits, and when it starts another task.

    As in `_session_loop` and `_wait_fuse_readable` of pyfuse3 3.5.
    """

    def __init__(self, device: int, wait: EagerWait | None = None) -> None:
        self.device = device
        self.tasks = self.most = 0
        self.waiting = 0
        self.answered = 0
        self.empty_reads = 0
        self.lock = trio.Lock()
        self.slow = False

    async def patient(self) -> bool:
        self.waiting += 1
        try:
            async with self.lock:
                await trio.lowlevel.wait_readable(self.device)
        finally:
            self.waiting -= 1
        return True

    async def run(self, nursery: trio.Nursery, eager: EagerWait, until: int) -> None:
        while True:
            await eager()
            try:
                os.read(self.device, 1)
            except BlockingIOError:
                self.empty_reads += 1
                continue
            if not self.waiting:
                self.tasks += 1
                self.most = max(self.most, self.tasks)
                nursery.start_soon(self.run, nursery, eager, until)
            if self.slow:
                await trio.lowlevel.checkpoint()
            self.answered += 1
            if self.answered == until:
                nursery.cancel_scope.cancel()


@pytest.mark.parametrize("slow", [False, True], ids=["in line", "with a wait in each"])
async def test_pyfuse3_does_not_gather_tasks(pipe: tuple[int, int], slow: bool) -> None:
    """It starts one whenever none waits, and ends them only when more than twenty do."""
    device, client = pipe
    os.set_blocking(device, False)
    os.set_blocking(client, False)
    loop = Loop(device)
    loop.slow = slow
    eager = EagerWait(device, loop.patient, BusyPoll(device, processors=2))
    requests = 20_000
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            os.write(client, bytes(requests))
            nursery.start_soon(loop.run, nursery, eager, requests)
    assert loop.answered == requests
    assert loop.most <= (2 if not slow else 1000)
    assert loop.empty_reads == 0


async def test_pyfuse3_lets_other_tasks_have_their_turn(pipe: tuple[int, int]) -> None:
    device, client = pipe
    loop = Loop(device)
    eager = EagerWait(device, loop.patient, BusyPoll(device, processors=2))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            os.write(client, bytes(10_000))
            nursery.start_soon(loop.run, nursery, eager, 10_000)
    assert turns >= 100
