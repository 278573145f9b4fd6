"""Whole QCOW2 images of compressed clusters: qemu-img finds nothing wrong and the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

import qemu
from cli import done, refused

MIB = 1 << 20
SIZE = 9 * MIB + 512


def filled(seed: object, size: int = SIZE) -> bytearray:
    """Random bytes, text and zeros in turn: what packs badly, well, and not at all."""
    random = Random(str(seed))
    content = bytearray(size)
    at = 0
    while at < size:
        length = min(random.randrange(1, 400_000), size - at)
        kind = random.randrange(4)
        if kind == 0:
            content[at : at + length] = random.randbytes(length)
        elif kind == 1:
            content[at : at + length] = (b"line %d\n" % at * (length // 7 + 1))[:length]
        elif kind == 2:
            content[at] = 1
        at += length
    return content


@pytest.mark.parametrize(
    "options",
    [
        "cluster-size=64K",
        "cluster-size=512,refcount-bits=64",  # Many refcount blocks, of 64 counts each.
        "cluster-size=1K,refcount-bits=1",  # None may share a cluster.
        "cluster-size=4K,refcount-bits=2",  # And three may.
        "cluster-size=2M",  # A cluster is more than a piece.
        "compression-type=zstd",
        "extended-l2=on,cluster-size=32K",
        "compat=0.10",
    ],
)
def test_a_compressed_image_is_sound_and_holds_the_same(tmp_path: Path, options: str) -> None:
    source, image = tmp_path / "source.img", tmp_path / "d.qcow2"
    content = filled(options)
    source.write_bytes(content)
    done("convert", "--compress", source, image, "-o", options)
    qemu.check(image, "qcow2")
    qemu.expect(image, "qcow2", content)
    counted = json.loads(qemu.qemu("qemu-img", "check", "--output=json", image))
    assert counted["compressed-clusters"] > 0
    assert done("check", image) == f"{image}: no problems found\n"
    done("compare", source, image)


def test_it_is_as_small_as_qemu_makes_it(tmp_path: Path) -> None:
    source, ours, theirs = (tmp_path / name for name in ("source.img", "a.qcow2", "b.qcow2"))
    source.write_bytes(filled("size"))
    done("convert", "--compress", source, ours)
    qemu.qemu("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", source, theirs)
    assert ours.stat().st_size <= theirs.stat().st_size * 1.05


def test_it_is_written_to_afterwards_as_any_other(tmp_path: Path) -> None:
    source, image = tmp_path / "source.img", tmp_path / "d.qcow2"
    content = filled("written")
    source.write_bytes(content)
    done("convert", "--compress", source, image)
    random = Random(1)
    for _ in range(6):
        at, length = random.randrange(SIZE - 70_000), random.randrange(1, 70_000)
        content[at : at + length] = block = random.randbytes(length)
        done("write", image, "--offset", str(at), "--length", str(length), stdin=block)
    qemu.check(image, "qcow2")
    qemu.expect(image, "qcow2", content)


def test_a_disk_of_zeros_has_no_clusters(tmp_path: Path) -> None:
    source, image = tmp_path / "source.img", tmp_path / "d.qcow2"
    source.write_bytes(bytes(MIB))
    done("convert", "--compress", source, image)
    qemu.check(image, "qcow2")
    qemu.expect(image, "qcow2", bytes(MIB))
    assert image.stat().st_size == 4 * 65536  # Header, L1 table, a refcount block and their table.


@pytest.mark.parametrize("option", ["data-file=d.raw", "preallocation=full"])
def test_what_cannot_be_compressed_is_refused(tmp_path: Path, option: str) -> None:
    source, image = tmp_path / "source.img", tmp_path / "d.qcow2"
    source.write_bytes(b"x" * MIB)
    refused("convert", "--compress", source, image, "-o", option)
    assert [path.name for path in tmp_path.iterdir()] == ["source.img"]
