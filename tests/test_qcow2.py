"""qcow2: what qemu-img makes is read and written here, and the reverse, in every variant."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from test_vdi import scattered

import qemu
from cli import done
from model import host_folder
from qcow2_images import create, sound
from vdisk.disk import Disk
from vdisk.disk_geometry import resize_disk
from vdisk.errors import (
    Corrupt,
    Exists,
    InvalidArgument,
    InvalidFormat,
    NotPermitted,
    Unsupported,
)
from vdisk.extent import Kind
from vdisk.open import open_image
from vdisk.options import OpenOptions

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB

# As qemu-img calls them.
VARIANTS: dict[str, dict[str, object]] = {
    "as it comes": {},
    "version 2": {"compat": "0.10"},
    "smallest clusters, widest refcounts": {"cluster_size": 512, "refcount_bits": 64},
    "largest clusters": {"cluster_size": "2M"},
    "refcounts of one bit": {"cluster_size": "4K", "refcount_bits": 1},
    "subclusters": {"extended_l2": "on", "cluster_size": "16K"},
    "lazy refcounts": {"lazy_refcounts": "on"},
    "allocated": {"preallocation": "metadata"},
    "data file": {"data_file": "data.raw"},
    "raw data file": {"data_file": "data.raw", "data_file_raw": "on"},
}


SLOW = ("largest clusters", "refcounts of one bit", "lazy refcounts", "allocated", "data file")
EACH_VARIANT = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in VARIANTS
]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory: QEMU's tools, and our barriers, need not wait for a device."""
    with host_folder("memory") as folder:
        yield folder


def made_by_qemu(folder: Path, name: str, size: int = SIZE) -> Path:
    options = dict(VARIANTS[name])
    if "data_file" in options:
        options["data_file"] = folder / "data.raw"
    return qemu.create(folder / "d.qcow2", "qcow2", size, **options)


@pytest.mark.parametrize("name", EACH_VARIANT)
def test_an_image_of_qemu_is_read_mapped_and_written_in_place(tmp_path: Path, name: str) -> None:
    image = made_by_qemu(tmp_path, name)
    content = bytearray(SIZE)
    random = Random(name)
    for _ in range(2):
        qemu.scatter(image, "qcow2", content, random, 15)
        with open_image(image, writable=False) as disk:
            assert disk.read(0, SIZE) == content
            runs = [e for e in disk.image.map(0, SIZE) if e.kind is Kind.DATA]
            found = [(e.guest_offset, min(e.guest_end, SIZE), e.host_offset) for e in runs]
            assert found == qemu.data_runs(image, "qcow2")
        with open_image(image, writable=True) as disk:
            scattered(disk, content, random, 10)
        qemu.expect(image, "qcow2", content)
        sound(image)


def our_options(name: str) -> str:
    """The options of a variant as we call them."""
    options = {key.replace("_", "-"): value for key, value in VARIANTS[name].items()}
    return ",".join(f"{key}={value}" for key, value in options.items())


@pytest.mark.parametrize("name", EACH_VARIANT)
def test_an_image_made_written_and_resized_here_is_one_to_qemu(tmp_path: Path, name: str) -> None:
    image = tmp_path / "d.qcow2"
    create(image, SIZE, our_options(name))
    qemu.check(image, "qcow2")
    content = bytearray(SIZE)
    random = Random(name)
    for size in (SIZE, 7 * MIB + 512, 2 * MIB, 70 * MIB, 3 * MIB):
        with open_image(image, writable=True) as disk:
            resize_disk(disk, size)
            del content[size:]
            content.extend(bytes(size - len(content)))
            part = content[: 8 * MIB]
            scattered(disk, part, random, 5)
            content[: len(part)] = part
        sound(image)
        assert qemu.info(image, "qcow2")["virtual-size"] == size
    qemu.expect(image, "qcow2", content)
    if name == "raw data file":
        assert (tmp_path / "data.raw").read_bytes() == content


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("cluster", [1 << n for n in range(9, 22)])
def test_every_cluster_size_and_width_of_refcounts(
    tmp_path: Path, cluster: int, bits: int
) -> None:
    image = tmp_path / "d.qcow2"
    create(image, 5 * cluster + 4 * MIB, f"cluster-size={cluster},refcount-bits={bits}")
    content = bytearray(5 * cluster + 4 * MIB)
    random = Random(cluster)
    with open_image(image, writable=True) as disk:
        scattered(disk, content, random, 12)
    qemu.scatter(image, "qcow2", content, random, 5)
    with open_image(image, writable=True) as disk:
        scattered(disk, content, random, 5)
    sound(image)
    qemu.expect(image, "qcow2", content)


@pytest.mark.parametrize("mode", ["off", "metadata", "falloc", "full"])
@pytest.mark.parametrize("extended", ["off", "on"])
def test_what_is_allocated_at_once(tmp_path: Path, mode: str, extended: str) -> None:
    """QEMU's image of the same kind takes up as much, and maps the same.

    But for subclusters, which QEMU leaves to be allocated one by one.
    """
    words = {"preallocation": mode, "extended_l2": extended}
    theirs = qemu.create(tmp_path / "theirs.qcow2", "qcow2", SIZE, **words)
    ours = tmp_path / "ours.qcow2"
    create(ours, SIZE, f"preallocation={mode},extended-l2={extended}")
    sound(ours)
    assert (ours.stat().st_blocks * 512 >= SIZE) == (theirs.stat().st_blocks * 512 >= SIZE)
    if extended == "off":
        runs = [[run[:2] for run in qemu.data_runs(image, "qcow2")] for image in (ours, theirs)]
        assert runs[0] == runs[1]
    for image in (ours, theirs):
        with open_image(image, writable=True) as disk:
            disk.write(MIB - 3, b"across")
        qemu.expect(image, "qcow2", bytes(MIB - 3) + b"across" + bytes(SIZE - MIB - 3))
        sound(image)


def test_a_new_image_is_as_small_as_one_of_qemu(tmp_path: Path) -> None:
    theirs = qemu.create(tmp_path / "theirs.qcow2", "qcow2", 1 << 40)
    done("create", tmp_path / "ours.qcow2", "--size", "1T")
    assert (tmp_path / "ours.qcow2").stat().st_size <= theirs.stat().st_size + 64 * KIB


@pytest.mark.parametrize(("method", "cluster"), [("zlib", "2M"), ("zstd", "4K")])
def test_compressed_clusters_are_read_and_written_over(
    tmp_path: Path, method: str, cluster: str
) -> None:
    content = bytearray(SIZE)
    random = Random(method)
    for _ in range(60):
        at = random.randrange(SIZE - 60000)
        pattern = random.choice([b"text ", b"\0\0\1", random.randbytes(5)])
        content[at : at + 60000] = (pattern * 20000)[:60000]
    plain = tmp_path / "plain"
    plain.write_bytes(content)
    image = tmp_path / "d.qcow2"
    options = f"compression_type={method},cluster_size={cluster}"
    qemu.qemu("qemu-img", "convert", "-c", "-O", "qcow2", "-o", options, plain, image)
    with open_image(image, writable=True) as disk:
        assert Kind.COMPRESSED in {extent.kind for extent in disk.map(0, SIZE)}
        assert disk.read(0, SIZE) == content
        for _ in range(50):
            offset = random.randrange(SIZE)
            length = min(random.randrange(1, 9000), SIZE - offset)
            assert disk.read(offset, length) == content[offset : offset + length]
        scattered(disk, content, random, 8)
        disk.flush()
        assert disk.read(0, SIZE) == content
        assert list(disk.image.check()) == []
    sound(image)
    qemu.expect(image, "qcow2", content)


def test_compressed_data_that_is_damaged_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"some text " * (MIB // 10) + bytes(6))
    image = tmp_path / "d.qcow2"
    qemu.qemu("qemu-img", "convert", "-c", "-O", "qcow2", plain, image)
    with open_image(image, writable=True) as disk:
        (place,) = (e.host_offset for e in disk.map(64 * KIB, 10))
        assert place is not None
        put(image, place, b"\xff" * 20)
        with pytest.raises(Corrupt, match="compressed data"):
            disk.read(64 * KIB, 10)
        assert disk.read(128 * KIB, 10) == plain.read_bytes()[128 * KIB : 128 * KIB + 10]


# Overlays


@pytest.mark.parametrize(
    ("options", "base_size"),
    [
        ("cluster-size=4K", MIB + 512), ("compat=0.10", 5 * MIB), ("extended-l2=on", 5 * MIB),
        pytest.param("cluster-size=4K", 5 * MIB, marks=pytest.mark.slow),
        pytest.param("compat=0.10", MIB + 512, marks=pytest.mark.slow),
        pytest.param("extended-l2=on", MIB + 512, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_an_overlay_of_another_size_than_its_parent_is_one_to_qemu(
    tmp_path: Path, options: str, base_size: int
) -> None:
    """Shorter and longer; made smaller and larger, none of the parent's bytes come back."""
    base = qemu.create(tmp_path / "base.qcow2", "qcow2", base_size)
    old = bytearray(base_size)
    qemu.scatter(base, "qcow2", old, Random(1), 30)
    before = base.read_bytes()
    image = tmp_path / "d.qcow2"
    create(image, 3 * MIB, options, base)
    assert qemu.info(image, "qcow2")["backing-filename-format"] == "qcow2"
    content = bytearray(old[: 3 * MIB].ljust(3 * MIB, b"\0"))
    random = Random(options)
    for size in (3 * MIB, MIB + 1024, 2 * MIB, 4 * MIB):
        with open_image(image, writable=True) as disk:
            resize_disk(disk, size)
            del content[size:]
            content.extend(bytes(size - len(content)))
            assert disk.read(0, size) == content
            small = content[:]
            for _ in range(6):
                offset = random.randrange(size)
                length = min(random.randrange(1, 70000), size - offset)
                block = random.choice([random.randbytes(length), bytes(length)])
                change = disk.write if any(block) else random.choice([disk.zero, disk.discard])
                change(offset, block if any(block) else length)  # type: ignore[operator]
                small[offset : offset + length] = block
            content = small
        sound(image)
        qemu.expect(image, "qcow2", content)
    assert base.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "format_name"),
    [("base.img", "raw"), ("base.vdi", "vdi"), ("a:b.qcow2", "qcow2")],
)
def test_a_parent_of_any_format_is_named_with_its_format(
    tmp_path: Path, name: str, format_name: str
) -> None:
    """Never to be guessed from what a guest may have written; a colon is no protocol."""
    base = tmp_path / name
    done("create", base, "--size", "1M")
    with open_image(base, writable=True) as disk:
        disk.write(5000, b"from the parent")
    image = tmp_path / "d.qcow2"
    done("create", image, "--parent", base)
    info = qemu.info(image, "qcow2")
    assert info["backing-filename-format"] == format_name
    with open_image(image, writable=True) as disk:
        disk.write(0, b"over it")
        content = disk.read(0, MIB)
        assert content[5000:5015] == b"from the parent"
    qemu.expect(image, "qcow2", content)


def test_a_chain_of_qemu_is_followed_inside_its_folder_only(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    base = qemu.create(tmp_path / "base.qcow2", "qcow2", MIB)
    qemu.qemu("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", base)
    image = inner / "d.qcow2"
    words = ["-F", "qcow2", "-b", "../base.qcow2"]
    qemu.qemu("qemu-img", "create", "-q", "-f", "qcow2", *words, image)
    with pytest.raises(NotPermitted, match="--allow-parent"):
        open_image(image, writable=False)
    allowing = OpenOptions(allow_parent=(tmp_path,))
    with open_image(image, writable=True, options=allowing) as disk:
        assert disk.read(0, 4) == b"\7" * 4
        disk.write(2, b"x")
        assert disk.read(0, 4) == b"\7\7x\7"


@pytest.mark.parametrize("backing", ["nbd:localhost:1", "json:{}", "fat:/etc"])
def test_a_parent_that_is_no_file_is_not_followed(tmp_path: Path, backing: str) -> None:
    image = qemu.create(tmp_path / "d.qcow2", "qcow2", MIB)
    qemu.qemu("qemu-img", "rebase", "-u", "-F", "raw", "-b", backing, image)
    with pytest.raises(Unsupported, match="not a file"):
        open_image(image, writable=False)


def test_a_parent_of_an_unknown_format_is_refused_by_name(tmp_path: Path) -> None:
    image = qemu.create(tmp_path / "d.qcow2", "qcow2", MIB)
    (tmp_path / "base").write_bytes(bytes(MIB))
    qemu.qemu("qemu-img", "rebase", "-u", "-F", "luks", "-b", "base", image)
    with pytest.raises(Unsupported, match="luks"):
        open_image(image, writable=False)


# Space


def test_what_is_discarded_is_given_back_to_the_host_and_used_again(tmp_path: Path) -> None:
    image = tmp_path / "d.qcow2"
    create(image, 64 * MIB)

    def used() -> int:
        return image.stat().st_blocks * 512 // MIB

    with open_image(image, writable=True) as disk:
        disk.write(0, b"x" * 32 * MIB)
        assert used() >= 32
        disk.discard(0, 24 * MIB)
        assert 8 <= used() <= 9
    with open_image(image, writable=True) as disk:
        disk.write(40 * MIB, b"y" * 20 * MIB)
        disk.write(0, b"z" * MIB)
        assert disk.read(40 * MIB, 5) == b"yyyyy"
        assert disk.read(MIB, 3) == bytes(3)
    assert image.stat().st_size <= 34 * MIB
    sound(image)


def test_zeros_are_a_flag_where_a_parent_is_beneath(tmp_path: Path) -> None:
    base = qemu.create(tmp_path / "base.qcow2", "qcow2", MIB)
    qemu.qemu("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", base)
    image = create(tmp_path / "d.qcow2", MIB, parent=base)
    with open_image(image, writable=True) as disk:
        disk.zero(64 * KIB, 128 * KIB)
        disk.discard(512 * KIB, 64 * KIB)
    rows = json.loads(qemu.qemu("qemu-img", "map", "--output=json", image))
    zeros = [(row["start"], row["length"]) for row in rows if row["zero"] and row["depth"] == 0]
    assert zeros == [(64 * KIB, 128 * KIB), (512 * KIB, 64 * KIB)]
    assert image.stat().st_size <= 6 * 64 * KIB
    sound(image)


def test_zero_clusters_of_qemu_that_have_a_place_are_written_in_it(tmp_path: Path) -> None:
    image = qemu.create(tmp_path / "d.qcow2", "qcow2", MIB)
    commands = ["write -P 7 0 256k", "write -z 64k 128k", "flush"]
    qemu.qemu("qemu-io", "-f", "qcow2", *[w for c in commands for w in ("-c", c)], image)
    content = bytearray(b"\7" * 256 * KIB + bytes(768 * KIB))
    content[64 * KIB : 192 * KIB] = bytes(128 * KIB)
    before = image.stat().st_size
    with open_image(image, writable=True) as disk:
        assert disk.read(0, MIB) == content
        disk.write(70 * KIB, b"new")
        content[70 * KIB : 70 * KIB + 3] = b"new"
        assert disk.read(0, MIB) == content
    assert image.stat().st_size == before
    sound(image)
    qemu.expect(image, "qcow2", content)


# Features


def header_of(image: Path) -> bytes:
    return image.read_bytes()[:112]


def put(image: Path, at: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_stale_refcounts_are_made_anew_before_the_first_write(tmp_path: Path) -> None:
    """QEMU is ended in the middle: with lazy refcounts, those of what it wrote are missing."""
    image = qemu.create(tmp_path / "d.qcow2", "qcow2", SIZE, lazy_refcounts="on")
    commands = ["write -P 5 0 1M", "flush", "write -P 6 3M 64k", "flush", "abort"]
    words = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "qcow2", *words, image], capture_output=True, check=False)
    assert header_of(image)[79] & 1, "QEMU has left its mark"
    content = bytearray(SIZE)
    content[:MIB] = b"\5" * MIB
    content[3 * MIB : 3 * MIB + 64 * KIB] = b"\6" * 64 * KIB
    with open_image(image, writable=False) as disk:
        assert any("not closed" in problem.message for problem in disk.image.check())
        assert disk.read(0, SIZE) == content
    assert header_of(image)[79] & 1, "a reader changes nothing"
    with open_image(image, writable=True) as disk:
        scattered(disk, content, Random(2), 6)
        assert list(disk.image.check()) == []
    assert not header_of(image)[79] & 1
    sound(image)
    qemu.expect(image, "qcow2", content)


def test_an_image_marked_as_corrupt_is_read_only_until_it_is_repaired(tmp_path: Path) -> None:
    image = qemu.create(tmp_path / "d.qcow2", "qcow2", SIZE)
    content = bytearray(SIZE)
    qemu.scatter(image, "qcow2", content, Random(1), 5)
    put(image, 72, struct.pack(">Q", 2))
    with open_image(image, writable=True) as disk:
        assert disk.read(0, SIZE) == content
        with pytest.raises(Corrupt, match="marked as corrupt"):
            disk.write(0, b"x")
        assert [problem.message for problem in disk.repair()] == ["the image is marked as corrupt"]
        disk.write(0, b"x")
    sound(image)


def test_a_free_cluster_that_is_none_is_not_given_away(tmp_path: Path) -> None:
    """Refcounts that are 0 for an L2 table: writing there would destroy it; QEMU's iotest 060."""
    image = qemu.create(tmp_path / "d.qcow2", "qcow2", 1 << 30)
    qemu.qemu("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", image)
    content = image.read_bytes()
    (l1,) = struct.unpack_from(">Q", content, 40)
    (l2,) = struct.unpack_from(">Q", content, l1)
    cluster = (l2 & ~(1 << 63)) // (64 * KIB)
    put(image, 2 * 64 * KIB + 2 * cluster, bytes(2))
    with open_image(image, writable=True) as disk:
        with pytest.raises(Corrupt, match="L2 table lies in clusters that are counted as free"):
            disk.write(600 * MIB, b"x")
        assert disk.read(0, 3) == b"\7\7\7"
    assert header_of(image)[79] & 2, "it is marked, as QEMU does"
    with open_image(image, writable=True) as disk:
        assert len(list(disk.repair())) == 2
        disk.write(600 * MIB, b"x")
    sound(image)


def test_features_that_are_lost_by_writing_are_off_afterwards(tmp_path: Path) -> None:
    """A bitmap that nobody has kept up to date says what is not true; a bit that nobody knows too.
    """
    image = qemu.create(tmp_path / "d.qcow2", "qcow2", SIZE)
    qemu.qemu("qemu-img", "bitmap", "--add", image, "changes")
    put(image, 88, struct.pack(">Q", 1 | 1 << 40))
    with open_image(image, writable=False) as disk:
        assert list(disk.image.check()) == []
    with open_image(image, writable=True) as disk:
        disk.write(0, b"x")
    assert header_of(image)[88:96] == bytes(8)
    with open_image(image, writable=True) as disk:
        list(disk.repair())  # What the bitmap used is a leak now.
    sound(image)


def test_what_this_version_does_not_know_is_refused_by_its_name(tmp_path: Path) -> None:
    image = qemu.create(tmp_path / "d.qcow2", "qcow2", MIB)
    content = image.read_bytes()
    put(image, content.index(b"extended L2 entries") - 1, b"\x11the future\0")
    put(image, 72, struct.pack(">Q", 1 << 17 | 1 << 33))
    with pytest.raises(Unsupported, match="the future, feature 33"):
        open_image(image, writable=False)
    for number, method in ((1, "AES"), (2, "LUKS")):
        path = qemu.create(tmp_path / f"{number}.qcow2", "qcow2", MIB)
        put(path, 32, struct.pack(">I", number))
        with pytest.raises(Unsupported, match=f"encrypted .{method}"):
            open_image(path, writable=False)


def test_a_data_file_is_a_file_of_its_own_in_the_same_folder(tmp_path: Path) -> None:
    image = tmp_path / "d.qcow2"
    create(image, 4 * MIB, "data-file=d.raw,data-file-raw=on")
    with open_image(image, writable=True) as disk:
        disk.write(MIB + 5, b"into the data file")
        disk.discard(2 * MIB, MIB)
        assert [host.path.name for host in disk.image.hosts()] == ["d.qcow2", "d.raw"]
    assert (tmp_path / "d.raw").read_bytes()[MIB + 5 :][:18] == b"into the data file"
    assert qemu.info(image, "qcow2")["format-specific"]["data"]["data-file-raw"]
    sound(image)
    with pytest.raises(Exists):
        create(tmp_path / "e.qcow2", MIB, "data-file=d.raw")
    assert not (tmp_path / "e.qcow2").exists()
    (tmp_path / "moved").mkdir()
    for name in ("d.qcow2", "d.raw"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    with open_image(tmp_path / "moved/d.qcow2", writable=False) as disk:
        assert disk.read(MIB + 5, 4) == b"into"


def test_a_data_file_that_lies_elsewhere_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    image = qemu.create(tmp_path / "inner/d.qcow2", "qcow2", MIB, data_file=tmp_path / "d.raw")
    with pytest.raises(NotPermitted, match="--allow-parent"):
        open_image(image, writable=True)
    with open_image(image, writable=True, options=OpenOptions(allow_parent=(tmp_path,))) as disk:
        disk.write(0, b"x")
    qemu.check(image, "qcow2")


@pytest.mark.parametrize(
    "options",
    ["cluster-size=3K", "cluster-size=4M", "compat=0.10,extended-l2=on", "extended-l2=on,"
     "cluster-size=8K", "data-file-raw=on", "data-file=../x", "compat=0.10,refcount-bits=1",
     "refcount-bits=3", "preallocation=some", "data-file=x,compression-type=zstd"],
)  # fmt: skip
def test_options_that_cannot_be_are_refused_and_leave_nothing(
    tmp_path: Path, options: str
) -> None:
    with pytest.raises(InvalidArgument):
        create(tmp_path / "d.qcow2", MIB, options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("at", "code", "value", "error"),
    [
        (0, ">I", 0x51464900, InvalidFormat),
        (4, ">I", 1, Unsupported),
        (4, ">I", 4, Unsupported),
        (16, ">I", 5000, Corrupt),
        (20, ">I", 8, Corrupt),
        (20, ">I", 22, Corrupt),
        (24, ">Q", 1 << 63, Corrupt),
        (24, ">Q", 1 << 60, Corrupt),
        (36, ">I", 0xFFFFFFFF, Corrupt),
        (40, ">Q", 0, Corrupt),
        (40, ">Q", 512, Corrupt),
        (40, ">Q", 1 << 62, Corrupt),
        (48, ">Q", 0, Corrupt),
        (48, ">Q", 1 << 62, Corrupt),
        (56, ">I", 0, Corrupt),
        (56, ">I", 0xFFFFFFFF, Corrupt),
        (60, ">I", 65537, Corrupt),
        (64, ">Q", 1, InvalidArgument),
        (96, ">I", 7, Corrupt),
        (100, ">I", 96, Corrupt),
        (100, ">I", 0xFFFFFFF8, Corrupt),
        (104, ">B", 1, Corrupt),
        (104, ">B", 9, Unsupported),
    ],
)
def test_a_header_that_cannot_be_right_is_refused(
    tmp_path: Path, at: int, code: str, value: int, error: type[Exception]
) -> None:
    image = qemu.create(tmp_path / "d.qcow2", "qcow2", SIZE)
    content = bytearray(image.read_bytes())
    struct.pack_into(code, content, at, value)
    if at == 16:
        struct.pack_into(">Q", content, 8, 600)
    image.write_bytes(content)
    if error is InvalidArgument:  # Nothing is there that would be read by it.
        open_image(image, writable=False, options=OpenOptions(format="qcow2")).close()
        return
    with pytest.raises(error):
        open_image(image, writable=False, options=OpenOptions(format="qcow2"))


def test_two_tebibytes_open_at_once_and_in_little_memory(tmp_path: Path) -> None:
    image = tmp_path / "d.qcow2"
    create(image, 2 << 40)
    with open_image(image, writable=True) as disk:
        disk.write((2 << 40) - 3, b"end")
        assert disk.read((2 << 40) - 4, 4) == b"\0end"
        assert disk.try_read_into((2 << 40) - 4, memoryview(bytearray(4)))
        assert next(e.length for e in disk.map(0, 2 << 40)) == (2 << 40) - 64 * KIB
    sound(image)
    assert os.stat(image).st_blocks * 512 < MIB


def test_prompt_reads_and_writes_are_those_of_one_allocated_run() -> None:
    with host_folder("memory") as folder:
        image = folder / "d.qcow2"
        create(image, MIB)
        check_promptness(image)


def check_promptness(image: Path) -> None:
    buffer = memoryview(bytearray(100))

    def tried(disk: Disk, offset: int) -> bool:
        return disk.try_write(offset, b"x" * 100)

    with open_image(image, writable=True) as disk:
        assert not tried(disk, 0)
        disk.write(0, b"a" * 64 * KIB)
        assert tried(disk, 64 * KIB - 100)
        assert not tried(disk, 64 * KIB - 50)
        assert not tried(disk, 64 * KIB)
        assert disk.try_read_into(64 * KIB - 100, buffer)
        assert bytes(buffer) == b"x" * 100
        assert disk.try_read_into(500 * KIB, buffer)
        assert bytes(buffer) == bytes(100)
