"""A byte written through one view is what the next read through any other view returns.

On a real mount with the kernel's page cache in play, against a plain byte array.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from harness import Mounted, Person, make_image, mount, sfdisk

MIB = 1 << 20
SIZE = 6 * MIB
# (name below the mount, start, length): partitions by sfdisk below, the rest by 16 heads x 63.
VIEWS = [
    ("disk", 0, SIZE),
    ("disk.p1", 1 * MIB, 2 * MIB),
    ("disk.p2", 3 * MIB, 3 * MIB),
    (".vdisk/disk/chs/2/1/track", (2 * 16 + 1) * 63 * 512, 63 * 512),
    (".vdisk/disk/chs/6/cylinder", 6 * 16 * 63 * 512, 16 * 63 * 512),
    (".vdisk/disk/chs/6/3/5", ((6 * 16 + 3) * 63 + 4) * 512, 512),
]
TABLE = "label: dos\nstart=2048,size=4096\nstart=6144,size=6144\n"


@pytest.fixture(scope="module")
def shared_mount(server: str) -> Iterator[Mounted]:
    folder = Person().folder()
    image = make_image(folder / "disk.img", SIZE)
    sfdisk(image, TABLE)
    mounted = mount(Person(), [image], folder / "mnt", "--chs", "12/16/63")
    yield mounted
    mounted.end()
    shutil.rmtree(folder)


def views_machine(mounted: Mounted, image: Path) -> type[RuleBasedStateMachine]:
    class Views(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.model = bytearray(image.read_bytes())
            self.open: dict[int, int] = {}  # Each file descriptor's view.
            self.writers: set[int] = set()

        def one(self, data: st.DataObject, fds: Iterable[int]) -> int:
            return data.draw(st.sampled_from(sorted(fds)))

        @rule(view=st.integers(0, len(VIEWS) - 1))
        def open_view(self, view: int) -> None:
            fd = os.open(mounted / VIEWS[view][0], os.O_RDWR)
            self.open[fd] = view
            self.writers.add(fd)

        @rule(view=st.integers(0, len(VIEWS) - 1))
        def open_view_for_reading(self, view: int) -> None:
            self.open[os.open(mounted / VIEWS[view][0], os.O_RDONLY)] = view

        @precondition(lambda self: self.writers)
        @rule(data=st.data(), fill=st.integers(0, 255))
        def write(self, data: st.DataObject, fill: int) -> None:
            fd = self.one(data, self.writers)
            offset, block = self.drawn(fd, data, fill)
            assert os.pwrite(fd, block, offset) == len(block)

        @precondition(lambda self: self.writers)
        @rule(data=st.data(), fill=st.integers(0, 255))
        def store_through_memory(self, data: st.DataObject, fill: int) -> None:
            """Counts when it is flushed; a view without pages of its own cannot be mapped so."""
            fd = self.one(data, self.writers)
            try:
                memory = mmap.mmap(fd, VIEWS[self.open[fd]][2])
            except OSError:
                return
            with memory:
                offset, block = self.drawn(fd, data, fill)
                memory[offset : offset + len(block)] = block
                memory.flush()

        def drawn(self, fd: int, data: st.DataObject, fill: int) -> tuple[int, bytes]:
            """A place in the view and bytes for it, which the model has from now on."""
            _, start, length = VIEWS[self.open[fd]]
            low = MIB if start == 0 else 0  # Not over the partition table.
            offset = data.draw(st.integers(low, length - 1))
            count = min(data.draw(st.integers(1, 9000)), length - offset)
            block = bytes((fill + i) % 256 for i in range(count))
            self.model[start + offset : start + offset + count] = block
            return offset, block

        @precondition(lambda self: self.open)
        @rule(data=st.data())
        def read(self, data: st.DataObject) -> None:
            fd = self.one(data, self.open)
            _, start, length = VIEWS[self.open[fd]]
            offset = data.draw(st.integers(0, length - 1))
            count = min(data.draw(st.integers(1, 70000)), length - offset)
            assert os.pread(fd, count, offset) == self.model[start + offset :][:count]

        @precondition(lambda self: self.open)
        @rule(data=st.data())
        def look_through_memory(self, data: st.DataObject) -> None:
            fd = self.one(data, self.open)
            _, start, length = VIEWS[self.open[fd]]
            with mmap.mmap(fd, length, mmap.MAP_PRIVATE, mmap.PROT_READ) as memory:
                assert memory[:] == self.model[start : start + length]

        @precondition(lambda self: self.open)
        @rule(data=st.data())
        def close(self, data: st.DataObject) -> None:
            fd = self.one(data, self.open)
            del self.open[fd]
            self.writers.discard(fd)
            os.close(fd)

        @rule(view=st.integers(0, len(VIEWS) - 1))
        def read_anew(self, view: int) -> None:
            name, start, length = VIEWS[view]
            assert (mounted / name).read_bytes() == self.model[start : start + length]

        @invariant()
        def the_host_file_agrees(self) -> None:
            assert image.read_bytes() == self.model

        def teardown(self) -> None:
            for fd in self.open:
                os.close(fd)

    return Views


def test_every_view_reads_what_any_view_wrote(shared_mount: Mounted) -> None:
    machine = views_machine(shared_mount, shared_mount.mountpoint.parent / "disk.img")
    machine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
    machine.TestCase().runTest()


def test_writers_on_every_view_at_once_neither_hang_nor_differ(shared_mount: Mounted) -> None:
    """Overlapping writes through all views at once, one of them through shared memory.

    A daemon that waits for the kernel to drop a page which is locked by a write that waits for
    the daemon would never end.
    """
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(name: str, length: int, seed: int) -> None:
        random = Random(seed)
        fd = os.open(shared_mount / name, os.O_RDWR)
        try:
            while not stop.is_set():
                low = MIB if length == SIZE else 0
                offset = random.randrange(low, length)
                count = min(random.choice([512, 4096, 65536]), length - offset)
                if random.random() < 0.5:
                    os.pwrite(fd, random.randbytes(count), offset)
                else:
                    os.pread(fd, count, offset)
        except BaseException as error:
            failures.append(error)
        finally:
            os.close(fd)

    def scribble() -> None:
        random = Random(99)
        fd = os.open(shared_mount / "disk", os.O_RDWR)
        with contextlib.ExitStack() as ends:
            ends.callback(os.close, fd)
            memory = ends.enter_context(mmap.mmap(fd, SIZE))
            while not stop.is_set():
                at = random.randrange(MIB, SIZE - 8)
                memory[at : at + 8] = random.randbytes(8)
                if random.random() < 0.05:
                    memory.flush()

    # The whole disk is opened first, so it is the cached view and can be mapped.
    jobs = [threading.Thread(target=scribble, daemon=True)]
    jobs[0].start()
    jobs += [
        threading.Thread(target=work, args=(name, length, seed), daemon=True)
        for seed in range(2)
        for name, _, length in VIEWS
    ]
    for job in jobs[1:]:
        job.start()
    stop.wait(5)
    stop.set()
    for job in jobs:
        job.join(30)
    assert not any(job.is_alive() for job in jobs), "a writer hangs"
    assert not failures
    host = (shared_mount.mountpoint.parent / "disk.img").read_bytes()
    for name, start, length in VIEWS:
        assert (shared_mount / name).read_bytes() == host[start : start + length], name
