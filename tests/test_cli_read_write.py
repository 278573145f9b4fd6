"""`vdisk read` and `vdisk write`, against dd, cmp and qemu-io."""

from __future__ import annotations

import subprocess
from pathlib import Path
from random import Random

import pytest

from cli import COMMAND, environment, output, refused, vdisk
from harness import PATIENCE, make_image, sfdisk

MIB = 1 << 20
SIZE = 3 * MIB + 512


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk of bytes that are nowhere the same, of a size that no power of two divides."""
    path = tmp_path / "d.img"
    path.write_bytes(Random(3).randbytes(SIZE))
    return path


def read(image: Path, *words: str) -> bytes:
    ended = vdisk("read", image, *words)
    assert (ended.returncode, ended.stderr) == (0, b"")
    return ended.stdout


def dd(image: Path, *words: str) -> bytes:
    return subprocess.run(
        ["dd", f"if={image}", "status=none", *words], check=True, capture_output=True
    ).stdout


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ([], ["bs=1M"]),
        (["--lba", "5"], ["bs=512", "skip=5", "count=1"]),
        (["--lba", "0", "--sectors", "100"], ["bs=512", "count=100"]),
        (["--lba", "6144", "--sectors", "1"], ["bs=512", "skip=6144"]),  # The last sector.
        (["--lba", "7", "--length", "100"], ["iflag=skip_bytes", "skip=3584", "bs=100", "count=1"]),
        (["--offset", "1M"], ["bs=1M", "skip=1"]),
        (["--offset", "1000", "--length", "2345"],
         ["iflag=skip_bytes", "skip=1000", "bs=2345", "count=1"]),
        (["--offset", "3"], ["iflag=skip_bytes", "skip=3", "bs=1M"]),
        (["--length", "0x200"], ["bs=512", "count=1"]),
        (["--length", "0"], ["count=0"]),
        (["--offset", str(SIZE)], ["count=0"]),
        (["--chs", "0/0/1"], ["bs=512", "count=1"]),
        # By 16 heads and 63 sectors: (1 * 16 + 2) * 63 + 3 - 1.
        (["--chs", "1/2/3", "--sectors", "2"], ["bs=512", "skip=1136", "count=2"]),
        # By 4 heads and 17 sectors: (1 * 4 + 2) * 17 + 3 - 1.
        (["--chs", "1/2/3", "--geometry", "90/4/17"], ["bs=512", "skip=104", "count=1"]),
        (["--lba", "1", "--sector-size", "4096"], ["bs=4096", "skip=1", "count=1"]),
    ],
)  # fmt: skip
def test_read_is_what_dd_reads(words: list[str], same: list[str], image: Path) -> None:
    assert read(image, *words) == dd(image, *same)


@pytest.mark.parametrize(
    "words",
    [
        ["--lba", "6145"],
        ["--lba", "6144", "--sectors", "2"],
        ["--offset", str(SIZE + 1)],
        ["--offset", str(SIZE - 1), "--length", "2"],
        ["--chs", "6/0/1"],
        ["--chs", "0/16/1"],
        ["--chs", "0/0/64"],
        ["--lba", str(2**63 - 1)],
        ["--sectors", str(2**63 - 1)],
    ],
)
def test_a_range_that_is_not_on_the_disk_moves_nothing(words: list[str], image: Path) -> None:
    before = image.read_bytes()
    ended = vdisk("read", image, *words)
    assert (ended.returncode, ended.stdout) == (1, b"")
    refused("write", image, *words, stdin=b"x" * 4096)
    if words[0] != "--offset" or "--length" in words:  # There is no more than the start to check.
        assert image.read_bytes() == before


def test_read_of_a_hole_is_zeros(tmp_path: Path) -> None:
    image = make_image(tmp_path / "d.img", 5 * MIB)
    assert read(image) == bytes(5 * MIB)


@pytest.mark.parametrize(
    ("words", "at", "count"),
    [
        ([], 0, SIZE),
        ([], 0, 12345),
        (["--lba", "5"], 5 * 512, 512),
        (["--lba", "5"], 5 * 512, 2 * MIB + 77),
        (["--offset", "1000", "--length", "2345"], 1000, 2345),
        (["--chs", "1/2/3"], 1136 * 512, 3 * 512),
        (["--chs", "1/2/3", "--geometry", "90/4/17", "--sectors", "2"], 104 * 512, 1024),
        (["--lba", "6144"], 6144 * 512, 512),
    ],
)
def test_write_changes_these_bytes_and_no_other(
    words: list[str], at: int, count: int, image: Path
) -> None:
    data = Random(4).randbytes(count)
    expected = bytearray(image.read_bytes())
    expected[at : at + count] = data
    ended = vdisk("write", image, *words, stdin=data)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
    assert image.read_bytes() == expected


def test_write_takes_no_more_than_the_length_from_its_input(image: Path) -> None:
    # As dd count=: what follows is the next program's.
    line = '"$@" write d.img --length 700 && cat > rest'
    with (image.parent / "in").open("wb") as file:
        file.write(b"a" * 700 + b"b" * 300)
    with (image.parent / "in").open("rb") as file:
        subprocess.run(["sh", "-c", line, "sh", *COMMAND], stdin=file, check=True,
                       cwd=image.parent, env=environment())  # fmt: skip
    assert (image.parent / "rest").read_bytes() == b"b" * 300
    assert image.read_bytes()[:701].count(b"a"[0]) >= 700


def test_input_past_the_end_writes_what_fits_and_fails(image: Path) -> None:
    text = refused("write", image, "--lba", "6143", stdin=b"z" * 1025)
    assert "first 1024 bytes" in text
    assert image.stat().st_size == SIZE
    assert image.read_bytes()[-1024:] == b"z" * 1024


def test_input_that_ends_early_fails(image: Path) -> None:
    assert "after 10 of 512 bytes" in refused("write", image, "--sectors", "1", stdin=b"z" * 10)


def test_input_that_comes_in_drops_is_one_stream(image: Path) -> None:
    line = f"(printf abc; sleep 0.1; printf def) | \"$@\" write {image} --offset 7"
    subprocess.run(["sh", "-c", line, "sh", *COMMAND], check=True, env=environment(),
                   timeout=PATIENCE)  # fmt: skip
    assert image.read_bytes()[7:13] == b"abcdef"


def test_a_partition_is_read_and_written_at_its_own_offsets(image: Path) -> None:
    sfdisk(image, "label: dos\nstart=2048,size=4096\n")
    assert read(image / "p1", "--lba", "1") == dd(image, "bs=512", "skip=2049", "count=1")
    assert vdisk("write", image / "p1", "--offset", "5", stdin=b"here").returncode == 0
    assert image.read_bytes()[2048 * 512 + 5 :][:4] == b"here"
    assert "past the end" in refused("write", image / "p1", stdin=bytes(4096 * 512 + 1))
    assert len(read(image / "p1")) == 4096 * 512


def test_qemu_reads_what_was_written_and_the_other_way_round(image: Path) -> None:
    vdisk("write", image, "--lba", "100", stdin=b"\x5a" * 4096)
    said = output("qemu-io", "-f", "raw", "-c", "read -P 0x5a 51200 4096", image)
    assert "verification failed" not in said
    output("qemu-io", "-f", "raw", "-c", "write -P 0x77 1M 4096", image)
    assert read(image, "--offset", "1M", "--length", "4096") == b"\x77" * 4096


def test_a_disk_that_a_vm_holds_is_neither_read_nor_written(image: Path) -> None:
    before = image.read_bytes()
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"read 0 512\n")
        holder.stdin.flush()
        holder.stdout.readline()
        assert "qemu-io" in refused("read", image)
        assert "qemu-io" in refused("write", image, stdin=b"x")
        holder.stdin.close()
    assert image.read_bytes() == before


def test_a_progress_bar_on_a_terminal_and_nowhere_else(tmp_path: Path) -> None:
    # script(1) gives a terminal; the bar comes only to what lasts, so the reader is held up.
    image = make_image(tmp_path / "d.img", 64 * MIB)
    program = " ".join([COMMAND[0], COMMAND[1], f"'{COMMAND[2]}'", "read", str(image)])
    line = f"{program} | (sleep 1.5; cat) | wc -c"
    drawn = subprocess.run(
        ["script", "-qec", line, "/dev/null"], capture_output=True, check=True,
        env=environment(TERM="xterm", COLUMNS="100"), timeout=PATIENCE, stdin=subprocess.DEVNULL,
    ).stdout  # fmt: skip
    assert b"reading" in drawn
    assert str(64 * MIB).encode() in drawn
    quiet = subprocess.run(["sh", "-c", line], capture_output=True, check=True, env=environment())
    assert quiet.stderr == b""
