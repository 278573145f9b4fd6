"""What the tests of a mounted disk share: running vdisk, as root or as an ordinary user."""

from __future__ import annotations

import functools
import json
import os
import pickle
import pwd
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
MAIN = "from mount.cli import main; main()"
USER = "vdisk-test"
PATIENCE = 60.0
"""Seconds after which a command that should have ended counts as hung."""

SERVERS = ("kernel", "pyfuse3")
"""The FUSE servers; what a test of mounts shows, it shows of each."""

T = TypeVar("T")


@dataclass
class _Chosen:
    server: str = "auto"


chosen = _Chosen()
"""The server that every `vdisk mount` of the tests is given; the fixture `server` sets it."""


@dataclass(frozen=True)
class Person:
    """Somebody who runs commands: root, or an ordinary user (then `name` is set)."""

    name: str | None = None

    @property
    def is_root(self) -> bool:
        """Whether commands run with all rights."""
        return self.name is None and os.geteuid() == 0

    def command(self, *words: str | os.PathLike[str]) -> list[str]:
        """`words` as a command line that runs as this person."""
        line = [os.fspath(word) for word in words]
        if self.name is None:
            return line
        return [
            "setpriv", f"--reuid={self.name}", f"--regid={self.name}", "--init-groups",
            "env", "HOME=/tmp", "XDG_RUNTIME_DIR=", *line,
        ]  # fmt: skip

    def run(
        self,
        *words: str | os.PathLike[str],
        check: bool = True,
        stdin: bytes | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end; with `check`, a failure is shown with all it printed."""
        done = subprocess.run(
            self.command(*words), input=stdin, stdin=None if stdin is not None else
            subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, cwd=cwd, check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{words} ended with {done.returncode}\n{done.stdout.decode(errors='replace')}"
                f"\n{done.stderr.decode(errors='replace')}"
            )
        return done

    def does(self, work: Callable[[], T]) -> T:
        """Do `work` as this person; what it returns or raises (both must be picklable).

        Nobody but its owner, not even root, may look into an ordinary user's mount.  So for an
        ordinary user this is a process of its own.
        """
        return work() if self.name is None else _in_child(self.name, work)

    def vdisk(
        self,
        *words: str | os.PathLike[str],
        check: bool = True,
        stdin: bytes | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the `vdisk` command."""
        return self.run(*self.vdisk_command(*words), check=check, stdin=stdin, cwd=cwd)

    def vdisk_command(self, *words: str | os.PathLike[str]) -> list[str]:
        """`vdisk …` as words for `run` or `command`."""
        python, path = _python_for_others() if self.name else (sys.executable, str(ROOT))
        if words and words[0] == "mount":
            words = ("mount", "--server", chosen.server, *words[1:])
        return ["env", f"PYTHONPATH={path}", python, "-c", MAIN, *map(os.fspath, words)]

    def folder(self) -> Path:
        """A new folder of this person's own, outside of root's home.  The caller removes it."""
        made = Path(tempfile.mkdtemp(prefix="vdisk-test-"))
        made.chmod(0o755)
        if self.name is not None:
            shutil.chown(made, self.name, self.name)
        return made


def _in_child(user: str, work: Callable[[], T]) -> T:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        signal.alarm(int(PATIENCE))
        with open(writer, "wb") as pipe:
            pickle.dump(_outcome(user, work), pipe)
        os._exit(0)  # The parent's buffers and exit handlers are not ours to run.
    os.close(writer)
    with open(reader, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert told, f"the child that acts as {user} ended with {status}"
    good, outcome = pickle.loads(told)
    if good:
        return outcome  # type: ignore[no-any-return]
    raise outcome


def _outcome(user: str, work: Callable[[], object]) -> tuple[bool, object]:
    try:
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
        return True, work()
    except BaseException as error:
        error.add_note(f"as {user}:\n{traceback.format_exc()}")
        return False, error


@functools.cache
def ordinary_user() -> Person:
    """The user the tests make for themselves when run as root; else whoever runs them."""
    if os.geteuid() != 0:
        return Person()
    try:
        pwd.getpwnam(USER)
    except KeyError:
        subprocess.run(
            ["useradd", "--system", "--user-group", "--no-create-home", USER], check=True
        )
    return Person(USER)


@functools.cache
def _python_for_others() -> tuple[str, str]:
    """A Python and a PYTHONPATH that a user can read who cannot enter the checkout."""
    base = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    sites = [sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]]
    wanted = [ROOT, *dict.fromkeys(Path(site) for site in sites)]
    if all(_open_to_all(path) for path in wanted):
        return str(base), ":".join(map(str, wanted))
    copy = Path(tempfile.mkdtemp(prefix="vdisk-test-code-"))
    copy.chmod(0o755)
    for package in ("vdisk", "mount"):
        shutil.copytree(ROOT / package, copy / package)
    for site in dict.fromkeys(sites):
        shutil.copytree(site, copy, dirs_exist_ok=True)
    import atexit

    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    return str(base), str(copy)


def _open_to_all(path: Path) -> bool:
    return all(part.stat().st_mode & 0o005 == 0o005 for part in (path, *path.parents))


@dataclass
class Mounted:
    """A live mount of the tests' own."""

    person: Person
    mountpoint: Path
    pid: int
    extra: dict[str, object] = field(default_factory=dict)

    def __truediv__(self, name: str) -> Path:
        return self.mountpoint / name

    def unmount(self) -> None:
        """`vdisk umount`; returns when the daemon is gone."""
        self.person.vdisk("umount", self.mountpoint)

    def is_mounted(self) -> bool:
        """Whether the kernel still has the mount."""
        return b" %b " % os.fsencode(self.mountpoint) in Path("/proc/self/mountinfo").read_bytes()

    def end(self) -> None:
        """Whatever state it is in: no mount, no daemon."""
        if self.is_mounted():
            self.person.vdisk("umount", "--lazy", self.mountpoint, check=False)
        subprocess.run(["umount", "-l", self.mountpoint], capture_output=True, check=False)
        subprocess.run(["kill", "-9", str(self.pid)], capture_output=True, check=False)


def mount(
    person: Person,
    sources: Sequence[Path],
    mountpoint: Path,
    *options: str,
) -> Mounted:
    """`vdisk mount`, in the background, its pid taken from the pid file."""
    pid_file = mountpoint.parent / f"{mountpoint.name}.pid"
    person.vdisk("mount", "--pid-file", pid_file, *options, *sources, mountpoint)
    return Mounted(person, mountpoint, int(pid_file.read_text()))


def make_image(path: Path, size: int, person: Person = Person()) -> Path:
    """A sparse file of zeros, which is a raw image."""
    with path.open("xb") as file:
        file.truncate(size)
    if person.name is not None:
        shutil.chown(path, person.name, person.name)
    return path


def sfdisk(disk: Path, script: str, *options: str, person: Person = Person()) -> None:
    """Write a partition table with sfdisk."""
    person.run("sfdisk", "--quiet", *options, disk, stdin=script.encode())


def refusal(
    person: Person, *words: str | os.PathLike[str], cwd: Path | None = None, status: int = 1
) -> str:
    """The one line on standard error of a `vdisk` that must fail with `status`."""
    ended = person.vdisk(*words, cwd=cwd, check=False)
    text = ended.stderr.decode()
    assert ended.returncode == status, (words, text)
    assert text.startswith("vdisk: "), text
    assert text.endswith("\n"), text
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    return text


def listed(person: Person, mountpoint: Path) -> dict[str, Any] | None:
    """What `vdisk list --json` tells `person` of one mount; None where it tells nothing."""
    rows = json.loads(person.vdisk("list", "--json").stdout)
    return next((row for row in rows if row["mountpoint"] == str(mountpoint)), None)


def wait_for_end(pid: int) -> None:
    """Returns when process `pid` has ended (it may still be a zombie); fails when it does not."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([process], [], [], PATIENCE)[0], f"process {pid} does not end"
    finally:
        os.close(process)
