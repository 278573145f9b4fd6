"""Commit and rebase of QCOW2 overlays: qemu-img sees the new parent, and the same bytes."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

import qemu
from cli import done, refused

SIZE = 6 << 20


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = qemu.create(tmp_path / "base.qcow2", "qcow2", SIZE)
    qemu.scatter(path, "qcow2", bytearray(SIZE), Random(1), 12)
    return path


@pytest.fixture(params=["compat=1.1", "compat=0.10", "cluster_size=4k,extended_l2=off"])
def overlay(base: Path, request: pytest.FixtureRequest) -> Path:
    path = base.with_name("overlay.qcow2")
    words = ["-q", "-f", "qcow2", "-F", "qcow2", "-b", base.name, "-o", request.param]
    qemu.qemu("qemu-img", "create", *words, path)
    orders = ["write -P 2 1M 1M", "write -P 3 5000 700", "write -P 0 3M 64k"]
    qemu.qemu("qemu-io", "-f", "qcow2", *(w for order in orders for w in ("-c", order)), path)
    return path


def content(path: Path) -> bytes:
    raw = path.with_name("raw")
    qemu.qemu("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
    return raw.read_bytes()


def features(path: Path) -> object:
    """What the header says beside the names, as qemu-img tells it."""
    told = qemu.info(path, "qcow2")
    return told["format-specific"], told["cluster-size"]


def test_a_commit_brings_all_into_the_parent(base: Path, overlay: Path) -> None:
    expected, kind = content(overlay), features(overlay)
    done("commit", overlay)
    assert content(base) == expected
    assert content(overlay) == expected
    assert features(overlay) == kind
    for path in (base, overlay):
        qemu.check(path, "qcow2")


@pytest.mark.parametrize("name", ["b", "another-base-with-a-longer-name.qcow2"])
def test_another_parent_is_put_beneath(base: Path, overlay: Path, name: str) -> None:
    expected, kind = content(overlay), features(overlay)
    other = base.with_name(name)
    other.write_bytes(base.read_bytes())
    qemu.qemu("qemu-io", "-f", "qcow2", "-c", "write -P 9 0 2M", other)
    done("rebase", overlay, "--parent", other)
    told = qemu.info(overlay, "qcow2")
    assert (told["backing-filename"], told["backing-filename-format"]) == (name, "qcow2")
    assert features(overlay) == kind
    assert content(overlay) == expected
    qemu.check(overlay, "qcow2")


def test_without_a_parent_it_holds_all_by_itself(base: Path, overlay: Path) -> None:
    expected, kind = content(overlay), features(overlay)
    done("rebase", overlay, "--no-parent")
    base.unlink()
    assert "backing-filename" not in qemu.info(overlay, "qcow2")
    assert content(overlay) == expected
    assert features(overlay) == kind
    qemu.check(overlay, "qcow2")


def test_a_name_that_has_no_room_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 250)
    folder.mkdir()
    far = qemu.create(folder / ("b" * 250), "qcow2", SIZE)
    qemu.create(tmp_path / "base", "qcow2", SIZE)
    overlay = tmp_path / "overlay.qcow2"
    words = ["-q", "-f", "qcow2", "-F", "qcow2", "-b", "base", "-o", "cluster_size=512"]
    qemu.qemu("qemu-img", "create", *words, overlay)
    before = overlay.read_bytes()
    said = refused("rebase", overlay, "--parent", far, "--allow-parent", folder)
    assert "no room" in said
    assert overlay.read_bytes() == before
