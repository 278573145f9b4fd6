"""Folders full of files for file systems to hold, and the hashes that tell if they still do."""

from __future__ import annotations

import subprocess
from pathlib import Path
from random import Random

from harness import Person

FOLDERS = 50
FILES_A_FOLDER = 42
LARGE_BYTES = 6 << 20
LINKS = 10
_HASHES = r"""
cd "$0"
mine() { find . -name lost+found -prune -o -type "$@"; }
mine f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
mine l -printf '%p -> %l\n' | LC_ALL=C sort
"""


def make_tree(folder: Path, person: Person) -> Path:
    """2,100 files of up to 6,000 bytes, one of 6 MiB, one with a hole, and links; the same always.

    The folder belongs to `person`.
    """
    random = Random(2)
    for number in range(FOLDERS):
        below = folder / f"folder {number}"
        below.mkdir(parents=True)
        for file in range(FILES_A_FOLDER):
            (below / f"file-{file}").write_bytes(random.randbytes(random.randrange(6000)))
    (folder / "large").write_bytes(random.randbytes(LARGE_BYTES))
    with (folder / "holes").open("wb") as sparse:
        sparse.seek(3 << 20)
        sparse.write(b"the end")
    for number in range(LINKS):
        (folder / f"link-{number}").symlink_to(f"folder {number}/file-0")
    if person.name is not None:
        subprocess.run(["chown", "-hR", f"{person.name}:{person.name}", folder], check=True)
    return folder


def hashes(folder: Path, person: Person) -> bytes:
    """What sha256sum says of every file, and where every link points, sorted by name.

    A file system's own lost+found is not part of it.
    """
    return person.run("bash", "-o", "pipefail", "-ec", _HASHES, folder).stdout
