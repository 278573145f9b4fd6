"""A host that does not answer holds up what is asked of its own disks, and nothing else.

Two disks are in one mount: `slow` lies on a file system that keeps requests waiting on command
(slow_host.py), `fast` on an ordinary one.
"""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import slow_host

from harness import MAIN, PATIENCE, Mounted, Person, make_image, mount

MIB = 1 << 20
PAGE = 4096
DEADLINE = 10.0
"""Seconds in which whatever does not need the slow host is answered."""
WORKERS = 64
"""The requests of one disk that are worked on at a time (mount/filesystem.py)."""
MANY = WORKERS + 20

# Requests so far from each other that the kernel does not make one of two.
STRIDE = 128 * 1024
SLOW_SIZE = MANY * STRIDE
FAST_SIZE = 2 * MIB
SLOW = Random(1).randbytes(SLOW_SIZE)
FAST = Random(2).randbytes(FAST_SIZE)
NEW = Random(3).randbytes(PAGE)

# Opens a file of the mount and says so; then, when its input has ended, makes so many requests at
# the same time, each at an offset of its own.
CLIENT = """
import json, mmap, os, sys
from threading import Thread
what, path, count, stride = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
fd = os.open(path, os.O_RDWR | (os.O_DIRECT if what == "read directly" else 0))
print("open", flush=True)
data = sys.stdin.buffer.read()
answers = [None] * count
def work(i):
    try:
        answers[i] = ask(i * stride)
    except OSError as error:
        answers[i] = error.strerror
def ask(at):
    if what == "read":
        return os.pread(fd, 4096, at).hex()
    if what == "read directly":
        page = mmap.mmap(-1, 4096)
        return page[:os.preadv(fd, [page], at)].hex()
    if what == "write":
        return os.pwrite(fd, data, at)
    return os.fsync(fd)
threads = [Thread(target=work, args=(i,)) for i in range(count)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(answers))
"""


class SlowHost:
    """The program of slow_host.py, with `folder` shown on `mountpoint`; and what it has told."""

    def __init__(self, person: Person, folder: Path, mountpoint: Path) -> None:
        words = person.vdisk_command(folder, mountpoint)
        words[words.index(MAIN)] = Path(slow_host.__file__).read_text()
        self.process = subprocess.Popen(
            person.command(*words), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._told: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()
        self.wait_for("mounted")

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._told.put(line.decode().strip())

    def wait_for(self, word: str, count: int = 1) -> None:
        """Returns when it has told `word` so many times: a kind of request that began to wait."""
        while count:
            count -= self.next_told() == word

    def next_told(self) -> str:
        """What it tells next."""
        try:
            return self._told.get(timeout=DEADLINE)
        except queue.Empty:
            raise AssertionError("the slow host was not asked") from None

    def hold(self, *kinds: str) -> None:
        """From now on, requests of these kinds wait."""
        self._command(f"hold {' '.join(kinds)}")

    def release(self) -> None:
        """Everything is answered again."""
        self._command("release")

    def _command(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n".encode())
        self.process.stdin.flush()
        self.wait_for(text.split()[0])

    def end(self) -> None:
        """No mount, no process.  It must have ended well."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        status = self.process.wait(timeout=PATIENCE)
        self._listener.join(timeout=PATIENCE)
        self.process.stdout.close()
        assert status == 0


class Client:
    """A program of `person`; whoever asks it for something is answered soon, or fails."""

    def __init__(self, person: Person, *words: str | Path) -> None:
        self.process = subprocess.Popen(
            person.command(*words), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def told(self, end: bytes | None = None) -> bytes:
        """What it prints: up to `end`, or all of it."""
        assert self.process.stdout is not None
        told = b""
        while end is None or not told.endswith(end):
            ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE)
            assert ready, f"not answered in time: {self.process.args!r}"
            more = os.read(self.process.stdout.fileno(), 1 << 20)
            if not more:
                break
            told += more
        return told

    def go(self, data: bytes) -> None:
        """Give it its input."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.close()

    def answers(self) -> list[object]:
        """What the requests of CLIENT were answered."""
        return list(json.loads(self.told()))

    def waits(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def end(self) -> None:
        """Killed if it still runs."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait(timeout=PATIENCE)
        self.process.stdin.close()
        self.process.stdout.close()


class Pair:
    """Both disks in one mount, and clients of theirs."""

    def __init__(self, person: Person, host: SlowHost, place: Path, mounted: Mounted) -> None:
        self.person = person
        self.host = host
        self.beneath = place / "beneath/slow.img"
        self.images = place / "images"
        self.mounted = mounted
        self._clients: list[Client] = []

    def __truediv__(self, name: str) -> Path:
        return self.mounted / name

    def start(self, *words: str | Path) -> Client:
        """A client that is ended at the end."""
        client = Client(self.person, *words)
        self._clients.append(client)
        return client

    def ready(self, what: str, path: Path, count: int = 1) -> Client:
        """A client that has opened `path` and has only to be told to go."""
        if what == "getattr":  # Not satisfied with an answer that the kernel has kept.
            return self.start("sh", "-c", f"read x; stat --cached=never -c [%s] {path}")
        client = self.start("python3", "-c", CLIENT, what, path, str(count), str(STRIDE))
        assert client.told(b"open\n") == b"open\n"
        return client

    def ask(self, what: str, path: Path, count: int = 1) -> Client:
        """A client that makes `count` requests at the same time."""
        client = self.ready(what, path, count)
        client.go(NEW)
        return client

    def run(self, *words: str | Path) -> bytes:
        """What a command prints that does not need the slow host.  It must end well, and soon."""
        client = self.start(*words)
        told = client.told()
        assert client.process.wait(timeout=DEADLINE) == 0, told
        return told

    def used(self) -> None:
        """Do everything once: what is found out about a host by trying is known then."""
        self.run("dd", f"if={self / 'slow'}", "of=/dev/null", "bs=4k", "count=1", "iflag=direct")
        # Of a page that no client asks for: it stays in the kernel's cache.
        write = ["dd", f"if={self.beneath}", f"of={self / 'slow'}", "conv=notrunc"]
        self.run(*write, "bs=4k", "count=1", "skip=8", "seek=8")
        self.run("ls", "-l", self.mounted.mountpoint)

    def fast_goes_on(self) -> None:
        """Everything that one does with the other disk is done, and done right."""
        fast = self / "fast"
        assert self.ask("getattr", fast).answers() == [FAST_SIZE]
        assert self.ask("write", fast, 4).answers() == [PAGE] * 4
        assert self.ask("fsync", fast).answers() == [None]
        assert self.ask("read directly", fast, 4).answers() == [NEW.hex()] * 4
        written = bytearray(FAST)
        for at in range(0, 4 * STRIDE, STRIDE):
            written[at : at + PAGE] = NEW
        assert self.run("cat", fast) == written
        assert self.run("cat", self / ".vdisk/fast/chs/0/0/1") == NEW[:512]
        names = self.run("ls", self / ".vdisk/fast").split()
        assert names == [b"chs", b"geometry", b"info", b"map"]
        listed = self.run(*self.person.vdisk_command("list"))
        assert os.fsencode(self.mounted.mountpoint) in listed

    def end(self) -> None:
        """All clients ended and reaped, and no mount, whatever waits."""
        self.host.release()
        for client in self._clients:
            client.end()
        self.mounted.end()


@pytest.fixture
def host(person: Person, place: Path) -> Iterator[SlowHost]:
    """slow.img on the slow host, in `place`/host; behind it is `place`/beneath."""
    person.run("mkdir", place / "beneath", place / "host", place / "images")
    make_image(place / "beneath/slow.img", SLOW_SIZE, person).write_bytes(SLOW)
    make_image(place / "images/fast.img", FAST_SIZE, person).write_bytes(FAST)
    made = SlowHost(person, place / "beneath", place / "host")
    yield made
    made.end()


MakePair = Callable[..., Pair]


@pytest.fixture
def pair(person: Person, place: Path, host: SlowHost) -> Iterator[MakePair]:
    """`pair(source, …)` mounts sources of `place` together."""
    made: list[Pair] = []

    def make(*sources: str) -> Pair:
        mounted = mount(person, [place / source for source in sources], place / "mnt")
        made.append(Pair(person, host, place, mounted))
        return made[-1]

    yield make
    for one in made:
        one.end()


IMAGES = ("images/fast.img", "host/slow.img")
REQUESTS = ["read", "read directly", "write", "fsync", "getattr"]


def kind(what: str) -> str:
    """The kind of request that the host sees."""
    return what.split()[0]


def answer(what: str, number: int = 0) -> object:
    """What request `number` of several on the slow disk is answered in the end."""
    page = SLOW[number * STRIDE :][:PAGE].hex()
    return {"read": page, "write": PAGE, "fsync": None, "getattr": SLOW_SIZE}[kind(what)]


def content(what: str, count: int = 1) -> bytes:
    """What is in the slow disk's image when so many requests are done."""
    expected = bytearray(SLOW)
    if what == "write":
        for at in range(0, count * STRIDE, STRIDE):
            expected[at : at + PAGE] = NEW
    return bytes(expected)


@pytest.mark.parametrize("what", REQUESTS)
def test_a_held_request_holds_up_no_other_disk(pair: MakePair, what: str) -> None:
    """And when it is released, it is answered as if nothing had been."""
    both = pair(*IMAGES)
    both.used()
    both.host.hold(kind(what))
    held = both.ask(what, both / "slow")
    both.host.wait_for(kind(what))
    both.fast_goes_on()
    if what != "getattr":  # To list a folder of disks is to look at each of them.
        assert both.run("ls", both.mounted.mountpoint).split() == [b"fast", b"slow"]
        assert both.run("stat", "--cached=never", "-c", "%s", both / "slow").strip().isdigit()
    assert held.waits()
    both.host.release()
    assert held.answers() == [answer(what)]
    assert both.beneath.read_bytes() == content(what)


EVERYTHING = ["lookup", "getattr", "open", "read", "write", "fsync", "statfs"]


@pytest.mark.parametrize("sources", [IMAGES, IMAGES[::-1]], ids=["fast first", "slow first"])
@pytest.mark.parametrize("what", REQUESTS)
def test_a_host_that_answers_nothing_holds_up_no_other_disk(
    pair: MakePair, what: str, sources: tuple[str, ...]
) -> None:
    """As a server that has gone away; and before anything was found out about it by trying.

    What is asked of it first may be something other than what the client asks for.
    """
    both = pair(*sources)
    held = both.ready(what, both / "slow")
    both.host.hold(*EVERYTHING)
    held.go(NEW)
    assert both.host.next_told() in EVERYTHING
    both.fast_goes_on()
    assert held.waits()
    both.host.release()
    assert held.answers() == [answer(what)]
    assert both.beneath.read_bytes() == content(what)


@pytest.mark.parametrize("what", ["read", "read directly", "write", "fsync"])
def test_more_held_requests_than_a_disk_has_workers_hold_up_no_other_disk(
    pair: MakePair, what: str
) -> None:
    both = pair(*IMAGES)
    both.used()
    both.host.hold(kind(what))
    held = both.ask(what, both / "slow", MANY)
    both.host.wait_for(kind(what))
    both.fast_goes_on()
    assert held.waits()
    both.host.release()
    assert held.answers() == [answer(what, number) for number in range(MANY)]
    assert both.beneath.read_bytes() == content(what, MANY)
