"""`vdisk create` and `vdisk resize`: sizes by stat and qemu-img, records by getfattr."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

import qemu
from cli import WITHOUT_ATTRIBUTES, done, output, refused, vdisk
from harness import make_image, sfdisk

MIB = 1 << 20


def record(image: Path, name: str) -> str:
    attribute = f"user.vdisk.{name}"
    return output("getfattr", "--absolute-names", "--only-values", "-n", attribute, image)


def qemu_size(image: Path) -> int:
    """What qemu-img says of a raw image's size."""
    said = json.loads(output("qemu-img", "info", "-f", "raw", "--output=json", image))
    size = said["virtual-size"]
    assert isinstance(size, int)
    return size


# Sizes by arithmetic, floppies and drive types by their own definitions, the rest by the profile's.
@pytest.mark.parametrize(
    ("words", "size", "geometry"),
    [
        (["--size", "1G"], 1 << 30, "2080/16/63 512"),
        (["--size", "1GB"], 1_000_000_000, "1937/16/63 512"),
        (["--size", "0x100000"], MIB, "2/16/63 512"),
        (["--chs", "615/4/17"], 615 * 4 * 17 * 512, "615/4/17 512"),
        (["--chs", "10/2/8", "--sector-size", "1024"], 10 * 2 * 8 * 1024, "10/2/8 1024"),
        (["--size", "1G", "--chs", "1024/16/63"], 1 << 30, "1024/16/63 512"),
        (["--size", "504M", "--profile", "bios"], 504 * MIB, "1024/16/63 512"),
        (["--profile", "1.44M"], 1_474_560, "80/2/18 512"),
        (["--profile", "2880k"], 2_949_120, "80/2/36 512"),
        (["--profile", "1.23M"], 1_261_568, "77/2/8 1024"),
        (["--size", "1474560"], 1_474_560, "80/2/18 512"),  # Exactly a floppy is one.
        (["--size", "1T", "--sector-size", "4096"], 1 << 40, "266305/16/63 4096"),
    ],
)
def test_size_and_record(words: list[str], size: int, geometry: str, tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    done("create", image, *words)
    assert image.stat().st_size == size == qemu_size(image)
    assert image.stat().st_blocks == 0
    assert record(image, "format") == "raw"
    assert record(image, "geometry") == geometry


def test_a_size_is_rounded_up_to_whole_sectors_and_that_is_told(tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    ended = vdisk("create", image, "--size", "20MB")
    assert ended.returncode == 0
    assert image.stat().st_size == 20_000_256
    assert b"20000256" in ended.stderr


def test_the_umask_counts(tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    vdisk("create", image, "--size", "1M", before="import os; os.umask(0o077)\n")
    assert image.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "0"], "at least one sector"),
        (["--size", "1M", "--chs", "1024/16/63"], "2/16/63 would fit"),
        (["--size", "1M", "--profile", "1.44M"], "1474560"),
        (["--profile", "ata"], "--size"),
        (["--profile", "1.44M", "--sector-size", "4096"], "512"),
    ],
)
def test_what_makes_no_disk_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    assert said in refused("create", tmp_path / "d.img", *words)
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_exists_is_overwritten(tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    image.write_bytes(b"precious")
    (tmp_path / "link.img").symlink_to("nowhere")
    assert "already exists" in refused("create", image, "--size", "1M")
    assert "already exists" in refused("create", tmp_path / "link.img", "--size", "1M")
    assert "already exists" in refused("create", tmp_path, "--size", "1M")
    assert image.read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_missing_folder_or_a_file_in_its_place_is_named(tmp_path: Path) -> None:
    make_image(tmp_path / "d.img", MIB)
    text = refused("create", tmp_path / "no" / "d.img", "--size", "1M")
    assert f"{tmp_path / 'no'}: no such folder" in text
    assert "no folder" in refused("create", tmp_path / "d.img" / "p1", "--size", "1M")


def test_a_name_of_another_format_is_refused(tmp_path: Path) -> None:
    # Raw bytes in a file called .qcow are what somebody else opens as qcow one day.
    image = tmp_path / "d.qcow"
    assert "d.img" in refused("create", image, "--size", "1M")
    done("create", image, "--size", "1M", "--format", "raw")
    assert qemu_size(image) == MIB


def test_a_block_device_is_refused() -> None:
    devices = [f"/dev/{name}" for name in os.listdir("/sys/block") if Path("/dev", name).exists()]
    for device in devices[:1]:
        assert "is a disk already" in refused("create", device, "--size", "1M")


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    limit = "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
    limit += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    text = refused("create", tmp_path / "d.img", "--size", "1M", before=limit)
    assert "File too large" in text
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_attributes_is_warned_about(tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    ended = vdisk("create", image, "--chs", "10/2/8", "--sector-size", "1024",
                  before=WITHOUT_ATTRIBUTES)  # fmt: skip
    assert ended.returncode == 0
    warning = ended.stderr.decode()
    assert warning.startswith("vdisk: warning: ")
    assert "--chs 10/2/8 --sector-size 1024" in warning
    assert image.stat().st_size == 10 * 2 * 8 * 1024


# Resize


def test_resize_keeps_heads_and_sectors_of_the_record(tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    done("create", image, "--chs", "100/4/17")
    done("resize", image, "10M")
    assert qemu_size(image) == 10 * MIB
    assert record(image, "geometry") == "301/4/17 512"  # 20480 sectors // 68.
    done("resize", image, "+1M")
    assert qemu_size(image) == 11 * MIB
    done("resize", image, "--", "-2M")
    assert qemu_size(image) == 9 * MIB


def test_resize_rounds_up_to_whole_sectors(tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    done("create", image, "--size", "1M", "--sector-size", "4096")
    done("resize", image, str(2 * MIB + 1))
    assert image.stat().st_size == 2 * MIB + 4096


def test_an_empty_file_gets_a_size(tmp_path: Path) -> None:
    (tmp_path / "d.img").touch()
    done("resize", tmp_path / "d.img", "1M")
    assert qemu_size(tmp_path / "d.img") == MIB


def test_shrinking_asks_where_data_would_go(tmp_path: Path) -> None:
    image = make_image(tmp_path / "d.img", 8 * MIB)
    output("qemu-io", "-f", "raw", "-c", "write -P 7 5M 64K", image)
    before = image.read_bytes()
    done("resize", image, "6M")  # Nothing but a hole is lost.
    assert "64 KiB of data" in refused("resize", image, "5M")
    assert "data" in refused("resize", image, "--", "-1M")
    assert image.read_bytes() == before[: 6 * MIB]
    done("resize", "--force", image, "5M")
    assert image.read_bytes() == before[: 5 * MIB]


def test_shrinking_asks_where_a_partition_would_go(tmp_path: Path) -> None:
    image = make_image(tmp_path / "d.img", 8 * MIB)
    sfdisk(image, "label: dos\nstart=2048,size=2048\nstart=8192,size=4096\n")
    text = refused("resize", image, "5M")
    assert "partition 2" in text
    assert "partition 1" not in text


@pytest.mark.parametrize(
    ("size", "said"), [("0", "at least one sector"), ("-2M", "leaves nothing"), ("7E", "resize")]
)
def test_resize_to_what_is_no_disk_is_refused(size: str, said: str, tmp_path: Path) -> None:
    image = make_image(tmp_path / "d.img", MIB)
    text = refused("resize", image, "--", size)
    assert said in text
    assert str(image) in text
    assert image.stat().st_size == MIB


def test_a_partition_is_not_resized(tmp_path: Path) -> None:
    image = make_image(tmp_path / "d.img", 8 * MIB)
    sfdisk(image, "label: dos\nstart=2048,size=2048\n")
    assert "cannot be resized by itself" in refused("resize", image / "p1", "2M")


def test_a_disk_in_use_is_not_resized(tmp_path: Path) -> None:
    image = make_image(tmp_path / "d.img", MIB)
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"read 0 512\n")
        holder.stdin.flush()
        holder.stdout.readline()  # It answers, so it has the image and its lock.
        assert f"pid {holder.pid}" in refused("resize", image, "2M")
        holder.stdin.close()
    assert image.stat().st_size == MIB


def test_options_may_be_written_as_qemu_writes_them(tmp_path: Path) -> None:
    one, other = tmp_path / "one.qcow2", tmp_path / "other.qcow2"
    options = "cluster_size=4K,lazy_refcounts=on,compression_type=zstd"
    done("create", one, "--size", "1M", "-o", options)
    qemu.qemu("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, other, "1M")
    details = [qemu.info(path, "qcow2")["format-specific"] for path in (one, other)]
    assert details[0] == details[1]
    assert qemu.info(one, "qcow2")["cluster-size"] == 4096
