"""Extended attributes of a mounted disk, and its time of birth."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from harness import Person, make_image
from stores import MIB, Store

ONE_SERVER = "kernel"
UNSUPPORTED = errno.errorcode[errno.EOPNOTSUPP]
GEOMETRY, FORMAT = "user.vdisk.geometry", "user.vdisk.format"


def test_a_disks_attributes_say_what_vdisk_says(store: Store) -> None:
    disk = store.image("disk", bytes(1_474_560))
    assert sorted(store.person.does(lambda: os.listxattr(disk))) == [FORMAT, GEOMETRY]
    told = store.person.vdisk("chs", store.host / "disk.img").stdout.decode().strip()
    assert store.person.does(lambda: os.getxattr(disk, GEOMETRY)) == f"{told} 512".encode()
    assert store.person.does(lambda: os.getxattr(disk, FORMAT)) == b"raw"


def test_cp_a_gives_the_copy_the_geometry(store: Store) -> None:
    """And the record lies beside the copy's host file, for whoever opens it next."""
    disk = store.image("disk", bytes(2 * MIB))
    store.person.does(lambda: os.setxattr(disk, GEOMETRY, b"16/4/60 512"))
    shown = store.mnt / ".vdisk/disk/geometry"
    assert store.person.run("cat", shown).stdout.splitlines()[0] == b"16/4/60"
    store.person.run("cp", "-a", disk, store.mnt / "copy")
    # The kernel tells of the last close when it likes; an open waits for what is done then.
    store.person.run("head", "-c", "1", store.mnt / "copy")
    assert os.getxattr(store.host / "copy.img", GEOMETRY) == b"17/4/60 512"
    assert store.person.vdisk("chs", store.host / "copy.img").stdout == b"17/4/60\n"


def test_what_makes_no_sense_is_refused(store: Store) -> None:
    disk = store.partitioned("disk")
    part = store.mnt / "disk.p1"

    def met(path: Path, name: str, value: bytes) -> str | None:
        return store.errno_of(lambda: os.setxattr(path, name, value))

    assert met(disk, GEOMETRY, b"4000/16/63 512") == "EINVAL"
    assert met(disk, GEOMETRY, b"nonsense") == "EINVAL"
    assert met(disk, GEOMETRY, b"1/1/1 4096") == "EINVAL"
    assert met(disk, FORMAT, b"qcow2") == "EPERM"
    assert met(disk, FORMAT, b"raw") is None
    assert met(disk, "user.other", b"x") == UNSUPPORTED
    assert met(part, GEOMETRY, b"1/1/1 512") == UNSUPPORTED
    assert store.person.does(lambda: os.listxattr(part)) == []
    assert store.person.does(lambda: os.listxattr(store.mnt)) == []
    for name in ("user.other", "security.capability", "trusted.x"):
        assert store.errno_of(lambda n=name: os.getxattr(disk, n)) == "ENODATA", name


def test_a_geometry_that_is_removed_is_derived_again(store: Store) -> None:
    disk = store.image("disk", bytes(2 * MIB))
    before = store.person.does(lambda: os.getxattr(disk, GEOMETRY))
    store.person.does(lambda: os.setxattr(disk, GEOMETRY, b"16/4/60 512"))
    store.person.does(lambda: os.removexattr(disk, GEOMETRY))
    assert store.person.does(lambda: os.getxattr(disk, GEOMETRY)) == before


def test_a_disk_was_born_with_its_host_file(store: Store) -> None:
    disk = store.image("disk", bytes(512))
    ask = ["stat", "-c", "%W %w"]
    told = store.person.run(*ask, store.host / "disk.img").stdout
    assert store.person.run(*ask, disk).stdout == told
    assert int(told.split()[0]) > 0


def test_a_read_only_mount_changes_no_attribute(tmp_path: Path) -> None:
    from harness import mount

    image = make_image(tmp_path / "disk.img", MIB)
    mounted = mount(Person(), [image], tmp_path / "mnt", "-r")
    try:
        before = os.listxattr(image)
        assert Person().run(
            "setfattr", "-n", GEOMETRY, "-v", "2/2/2 512", mounted / "disk", check=False
        ).returncode
        assert os.getxattr(mounted / "disk", FORMAT) == b"raw"
        assert os.listxattr(image) == before
    finally:
        mounted.unmount()
