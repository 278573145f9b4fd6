"""`vdisk snapshot` on images that keep snapshots inside; qemu-img sees the same ones."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import qemu
from cli import done, refused
from holders import vdisk_holder

SIZE = 4 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of QEMU's with snapshots "a" and "b", and something else since."""
    path = qemu.create(tmp_path / "d.qcow2", "qcow2", SIZE)
    for name, byte in (("a", 1), ("b", 2)):
        fill(path, byte)
        qemu.qemu("qemu-img", "snapshot", "-c", name, path)
    fill(path, 3)
    return path


def fill(path: Path, byte: int) -> None:
    qemu.qemu("qemu-io", "-f", "qcow2", "-c", f"write -P {byte} 64k 300k", path)


def theirs(path: Path) -> list[dict[str, Any]]:
    """The snapshots that qemu-img sees."""
    found: list[dict[str, Any]] = qemu.info(path, "qcow2").get("snapshots", [])
    return found


def byte_of(path: Path) -> int:
    """What `fill` has filled it with, as vdisk reads it."""
    (byte,) = set(done("read", path, "--offset", "64K", "--length", "300K").encode())
    return byte


def test_qemus_snapshots_are_listed_as_qemu_lists_them(image: Path) -> None:
    rows = json.loads(done("snapshot", image, "--list", "--json"))
    assert [(row["id"], row["name"], row["vm_state_bytes"]) for row in rows] == [
        (each["id"], each["name"], each["vm-state-size"]) for each in theirs(image)
    ]
    assert [datetime.fromisoformat(row["created"]).timestamp() for row in rows] == [
        each["date-sec"] for each in theirs(image)
    ]
    assert [row["size_bytes"] for row in rows] == [SIZE, SIZE]
    lines = done("snapshot", image, "--list").splitlines()
    assert [(line.split()[0], line.split()[-1]) for line in lines[1:]] == [("1", "a"), ("2", "b")]


def test_a_snapshot_is_created_applied_and_deleted(image: Path) -> None:
    assert done("snapshot", image, "--create", "c") == f"{image}: kept as c\n"
    assert [each["name"] for each in theirs(image)] == ["a", "b", "c"]
    for name, byte in (("a", 1), ("c", 3), ("2", 2)):  # "b" has the identifier 2.
        assert name in done("snapshot", image, "--apply", name)
        assert byte_of(image) == byte
        qemu.qemu("qemu-io", "-f", "qcow2", "-c", f"read -P {byte} 64k 300k", image)
    done("snapshot", image, "--delete", "a")
    qemu.check(image, "qcow2")
    assert [each["name"] for each in theirs(image)] == ["b", "c"]
    qemu.qemu("qemu-img", "snapshot", "-a", "c", image)
    assert byte_of(image) == 3


def test_an_image_without_snapshots_lists_none(tmp_path: Path) -> None:
    path = qemu.create(tmp_path / "d.qcow2", "qcow2", SIZE)
    assert done("snapshot", path, "--list") == ""
    assert json.loads(done("snapshot", path, "--list", "--json")) == []


def test_what_cannot_be_done_is_one_line_and_changes_nothing(image: Path) -> None:
    before = image.read_bytes()
    assert "has a snapshot 'a' already" in refused("snapshot", image, "--create", "a")
    for option in ("--apply", "--delete"):
        said = refused("snapshot", image, option, "nowhere")
        assert "has no snapshot 'nowhere'" in said
        assert "it has: a, b" in said
    assert "is not a name" in refused("snapshot", image, "--create", "")
    assert image.read_bytes() == before


def test_a_name_that_two_have_is_asked_back(image: Path) -> None:
    qemu.qemu("qemu-img", "snapshot", "-c", "a", image)
    assert "name one by its identifier: 1, 3" in refused("snapshot", image, "--apply", "a")
    done("snapshot", image, "--delete", "3")
    assert [each["id"] for each in theirs(image)] == ["1", "2"]


def test_an_image_in_use_is_left_alone(image: Path) -> None:
    before = image.read_bytes()
    with vdisk_holder(image):
        assert "in use" in refused("snapshot", image, "--create", "c")
    assert image.read_bytes() == before
