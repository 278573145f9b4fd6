"""One writer or many readers an image, and QEMU obeys the same locks: both directions, for real."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from holders import qemu_io, vdisk_holder
from vdisk.disk import Disk
from vdisk.errors import Busy
from vdisk.host import HostFile
from vdisk.open import open_disk
from vdisk.options import OpenOptions

REFUSED_BY_QEMU = r"Failed to get .* lock"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def opened(image: Path, *, writable: bool) -> Disk:
    return open_disk(image, writable=writable, options=OpenOptions(format="raw"))


def qemu(*words: str | Path) -> subprocess.CompletedProcess[str]:
    line = [str(word) for word in words]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("writable", [True, False], ids=["to write", "to read"])
def test_what_qemu_io_writes_to_is_refused_and_the_holder_named(
    image: Path, writable: bool
) -> None:
    with qemu_io(image) as holder, pytest.raises(Busy) as refusal:
        opened(image, writable=writable)
    assert f"qemu-io (pid {holder.pid})" in str(refusal.value)
    assert str(image) in str(refusal.value)


def test_readers_share_with_readers_in_qemu_io(image: Path) -> None:
    with qemu_io(image, "-r"), opened(image, writable=False) as disk:
        assert disk.read(0, 512) == bytes(512)
        assert qemu("qemu-io", "-r", "-f", "raw", "-c", "read 0 512", image).returncode == 0


def test_the_disk_is_free_when_qemu_io_has_ended(image: Path) -> None:
    with qemu_io(image), pytest.raises(Busy):
        opened(image, writable=True)
    opened(image, writable=True).close()


@pytest.mark.parametrize(
    "command",
    [
        "qemu-io -f raw -c 'write 0 512' {}",
        "qemu-img resize -f raw {} +1M",
        "qemu-img convert -f raw -O raw {} {}.copy",
    ],
)
def test_qemu_is_refused_while_vdisk_may_write(image: Path, command: str) -> None:
    line = shlex.split(command.replace("{}", str(image)))
    with opened(image, writable=True):
        done = qemu(*line)
        assert re.search(REFUSED_BY_QEMU, done.stderr), done
        assert done.returncode != 0
    assert image.read_bytes() == bytes(1 << 20)
    assert qemu(*line).returncode == 0


def test_qemu_img_may_look_when_it_says_that_it_only_looks(image: Path) -> None:
    """-U, as with an image that a running VM has open."""
    with opened(image, writable=True) as disk:
        disk.write(0, b"x" * 4096)
        done = qemu("qemu-img", "info", "-U", image)
        assert done.returncode == 0, done
        assert "virtual size: 1 MiB" in done.stdout
        copy = image.with_suffix(".copy")
        done = qemu("qemu-img", "convert", "-U", "-f", "raw", "-O", "raw", image, copy)
        assert done.returncode == 0, done
        assert copy.read_bytes()[:4097] == b"x" * 4096 + b"\0"


def test_qemu_may_read_and_not_write_what_vdisk_reads(image: Path) -> None:
    with opened(image, writable=False):
        assert qemu("qemu-img", "info", image).returncode == 0
        assert qemu("qemu-io", "-r", "-f", "raw", "-c", "read 0 512", image).returncode == 0
        done = qemu("qemu-io", "-f", "raw", "-c", "write 0 512", image)
        assert re.search(REFUSED_BY_QEMU, done.stderr), done


@pytest.mark.parametrize("first", ["rw", "r"])
@pytest.mark.parametrize("second", ["rw", "r"])
def test_two_vdisks_share_only_for_reading(image: Path, first: str, second: str) -> None:
    with vdisk_holder(image, first) as holder:
        if first == second == "r":
            opened(image, writable=False).close()
            return
        with pytest.raises(Busy, match=rf"\(pid {holder.pid}\)"):
            opened(image, writable=second == "rw")


def test_a_killed_holder_holds_nothing(image: Path) -> None:
    with vdisk_holder(image) as vdisk:
        with pytest.raises(Busy):
            opened(image, writable=False)
        vdisk.kill()
        opened(image, writable=True).close()
    with qemu_io(image) as vm:
        vm.kill()
        opened(image, writable=True).close()


def test_the_same_process_is_refused_too_and_named_as_such(image: Path) -> None:
    with opened(image, writable=True), pytest.raises(Busy, match=rf"this process.*{os.getpid()}"):
        opened(image, writable=False)


def test_the_holder_that_is_in_the_way_is_named_and_no_bystander(image: Path) -> None:
    """Those that only look (-U) hold a lock as well, and are not the reason for the refusal."""
    with ExitStack() as stack:
        stack.enter_context(qemu_io(image, "-r", "-U"))
        holder = stack.enter_context(qemu_io(image))
        stack.enter_context(qemu_io(image, "-r", "-U"))
        with pytest.raises(Busy, match=rf"\(pid {holder.pid}\)"):
            opened(image, writable=False)


@pytest.mark.parametrize("other", ["a second name", "another file"])
def test_the_holder_is_known_by_the_file_and_not_by_its_name(
    image: Path, tmp_path: Path, other: str
) -> None:
    """A hard link is the same file; a file that took the name of a held one is another."""
    with vdisk_holder(image) as holder:
        if other == "a second name":
            (tmp_path / "link.img").hardlink_to(image)
            with pytest.raises(Busy, match=rf"\(pid {holder.pid}\)"):
                opened(tmp_path / "link.img", writable=True)
        else:
            image.rename(tmp_path / "moved.img")
            image.write_bytes(bytes(512))
            opened(image, writable=True).close()


def test_a_process_may_call_itself_anything(image: Path) -> None:
    """Bytes that are no text, and ones that would move the cursor, are shown and do no harm."""
    with vdisk_holder(image, comm=b"\xff\x1b[2J\n") as holder:
        with pytest.raises(Busy) as refusal:
            opened(image, writable=True)
        assert str(refusal.value).isprintable()
        assert f"(pid {holder.pid})" in str(refusal.value)


@pytest.mark.parametrize("held", ["rw", "r"])
def test_who_was_refused_holds_nothing(image: Path, held: str) -> None:
    """A refused attempt does not make the disk look taken to those that may have it."""
    with vdisk_holder(image, held):
        for writable in (True, False) if held == "rw" else (True,):
            with pytest.raises(Busy):
                opened(image, writable=writable)
        if held == "r":
            assert qemu("qemu-img", "info", image).returncode == 0
            opened(image, writable=False).close()
    assert qemu("qemu-io", "-f", "raw", "-c", "write 0 512", image).returncode == 0


def test_a_child_process_does_not_keep_the_lock(image: Path) -> None:
    """The lock lives as long as the descriptor's last copy: none may leak into a child."""
    disk = opened(image, writable=True)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    try:
        disk.close()
        assert qemu("qemu-img", "info", image).returncode == 0
    finally:
        child.communicate()


def test_a_new_image_is_locked_from_the_start(tmp_path: Path) -> None:
    host = HostFile.create(tmp_path / "new.img")
    try:
        done = qemu("qemu-io", "-f", "raw", "-c", "read 0 0", host.path)
        assert re.search(REFUSED_BY_QEMU, done.stderr), done
    finally:
        host.close()


def test_looking_without_a_lock_is_possible_and_takes_none(image: Path) -> None:
    with qemu_io(image):
        host = HostFile.open(image, writable=False, lock=False)
        assert host.size() == 1 << 20
        host.close()
    host = HostFile.open(image, writable=False, lock=False)
    assert qemu("qemu-io", "-f", "raw", "-c", "write 0 512", image).returncode == 0
    host.close()


def test_a_file_system_without_locks_is_used_with_a_warning(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    with caplog.at_level(logging.WARNING), opened(image, writable=True) as disk:
        disk.write(0, b"x")
    assert str(image) in caplog.text


def test_of_many_writers_at_one_moment_one_at_most_gets_in(image: Path) -> None:
    """Eight processes start together, behind one pipe that is closed for all of them at once."""
    code = (
        "import sys; from vdisk.host import HostFile; from vdisk.errors import Busy\n"
        "sys.stdin.read()\n"
        "try: HostFile.open(sys.argv[1], writable=True)\n"
        "except Busy: print('busy', flush=True)\n"
        "else: print('in', flush=True); open(sys.argv[2]).read()\n"
    )
    gate, open_gate = os.pipe()
    stay, leave = os.pipe()
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(image), f"/dev/fd/{stay}"],
            stdin=gate, stdout=subprocess.PIPE, text=True, pass_fds=[stay],
            cwd=Path(__file__).parent.parent,
        )
        for _ in range(8)
    ]
    os.close(gate)
    os.close(open_gate)
    said = [child.stdout.readline() for child in children]  # type: ignore[union-attr]
    os.close(leave)
    for child in children:
        child.communicate(timeout=30)
    os.close(stay)
    assert set(said) <= {"in\n", "busy\n"}
    assert said.count("in\n") <= 1
