"""Hostile images: opened or refused as the contract says, in little memory (`fuzz_formats`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli import environment
from fuzz_formats import REFUSALS, SEEDS, Seed, Subject, fuzz
from model import host_folder

REFUSED = {error.__name__ for error in REFUSALS}


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.name)
def test_a_mutated_image_opens_or_is_refused(seed: Seed) -> None:
    with host_folder("memory") as folder:
        met = fuzz(seed, folder, seed.count)
    assert sum(met.values()) == seed.count
    assert met["opened"] > seed.count // 20  # Or the mutations never come past the header.
    assert sum(met.get(error.__name__, 0) for error in REFUSALS) > seed.count // 20


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 5))
@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.name)
def test_many_more_mutated_images(seed: Seed, number: int) -> None:
    with host_folder("memory") as folder:
        fuzz(seed, folder, seed.slow_count or seed.count, number)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.name)
def test_what_a_fuzzer_makes_takes_the_place_of_headers_and_tables(seed: Seed) -> None:
    """What `fuzz_guided` relies on: its corpus begins with an image that is opened, and each input
    meets the image as it was made."""
    with host_folder("memory") as folder, Subject(seed, folder) as subject:
        path = folder / f"seed.{seed.format}"
        for content, expected in ((subject.content, {"opened"}), (b"", {"opened"}),
                                  (b"\xff" * len(subject.content), REFUSED)):  # fmt: skip
            change = subject.with_content(content)
            assert sum(map(len, change.values())) == len(content)
            assert subject.outcome(change, with_checksums=True) in expected
            assert path.read_bytes() == subject.original


_HUGE_VDI = """
import resource, struct, sys
from pathlib import Path
from vdisk.open import open_image
from vdisk.create import create_image, plan_disk
from vdisk.formats.base import problem_limit
path = Path(sys.argv[1])
create_image(path, plan_disk(size_bytes=1 << 20))
with path.open("r+b") as file:
    blocks = 1 << 26
    file.seek(0x158)
    file.write(struct.pack("<I", (1 << 20) + 4 * blocks))
    file.seek(0x170)
    file.write(struct.pack("<QIIII", blocks << 20, 1 << 20, 0, blocks, blocks))
    file.truncate((1 << 20) + 4 * blocks)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open_image(path, writable=True) as disk:
    disk.read(disk.size - 512, 512)
    next(disk.map(0, disk.size))
    try:
        disk.write(0, b"x")
    except Exception as error:
        print(type(error).__name__)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_the_largest_map_there_can_be_takes_little_memory(tmp_path: Path) -> None:
    """64 TiB of blocks, all in one place: 256 MiB of map that are not there but for holes."""
    ended = subprocess.run(
        [sys.executable, "-c", _HUGE_VDI, str(tmp_path / "d.vdi")], capture_output=True,
        text=True, check=True, env=environment(), timeout=60,
    )  # fmt: skip
    refusal, grown = ended.stdout.split()
    assert refusal == "Corrupt"
    assert int(grown) < 100 << 10
