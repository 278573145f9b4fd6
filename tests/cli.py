"""What the tests of the command line share: running the real program, and judging how it ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from harness import MAIN, PATIENCE, ROOT

COMMAND = [sys.executable, "-c", MAIN]
# What a file system without user attributes answers, for a machine that has none at hand.
WITHOUT_ATTRIBUTES = """
import errno, os
def refuse(*arguments, **named):
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
os.setxattr = os.getxattr = refuse
"""


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, with the checkout on the path."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


def vdisk(
    *words: str | os.PathLike[str],
    stdin: bytes | None = None,
    cwd: Path | None = None,
    before: str = "",
) -> subprocess.CompletedProcess[bytes]:
    """Run `vdisk` to its end, whatever that is; `before` is Python that runs first."""
    return subprocess.run(
        [sys.executable, "-c", before + MAIN, *map(os.fspath, words)],
        input=b"" if stdin is None else stdin, capture_output=True, timeout=PATIENCE, cwd=cwd,
        env=environment(), check=False,
    )  # fmt: skip


def done(*words: str | os.PathLike[str], stdin: bytes | None = None) -> str:
    """The standard output of a `vdisk` that must end well and say nothing on standard error."""
    ended = vdisk(*words, stdin=stdin)
    assert (ended.returncode, ended.stderr.decode()) == (0, "")
    return ended.stdout.decode()


def refused(
    *words: str | os.PathLike[str], status: int = 1, stdin: bytes | None = None, before: str = ""
) -> str:
    """The one line on standard error of a `vdisk` that must end with `status`."""
    ended = vdisk(*words, stdin=stdin, before=before)
    text = ended.stderr.decode()
    assert ended.returncode == status, text
    assert text.startswith("vdisk: ")
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert "Traceback" not in text
    return text


def output(*words: str | os.PathLike[str]) -> str:
    """The standard output of another program, which must end well."""
    return subprocess.run(
        [os.fspath(word) for word in words], check=True, capture_output=True, text=True,
        timeout=PATIENCE,
    ).stdout  # fmt: skip
