"""Sizes: parse_size takes what fallocate (util-linux) takes, and format_size says what is true."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.errors import InvalidArgument
from vdisk.units import SIZE_BYTES_MAX, format_size, parse_size


def fallocate(text: str, folder: Path) -> int | None:
    """The size fallocate makes of `text`, punching so that no space is used; None if it refuses."""
    target = folder / "file"
    target.touch()
    result = subprocess.run(
        ["fallocate", "--punch-hole", "--length", text, target],
        capture_output=True,
        text=True,
        env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    return None if "invalid length" in result.stderr else result.returncode


ACCEPTED = [
    ("1", 1),
    ("512", 512),
    ("1K", 1024),
    ("1k", 1024),
    ("3KiB", 3072),
    ("3kiB", 3072),
    ("1Kib", 1024),
    ("64K", 65536),
    ("2M", 2097152),
    ("2MiB", 2097152),
    ("2MB", 2000000),
    ("2mb", 2000000),
    ("7KB", 7000),
    ("1.5K", 1536),
    ("1.5G", 1610612736),
    ("0.5M", 524288),
    ("1.5KB", 1500),
    ("10.K", 10240),
    ("1G", 1073741824),
    ("1GB", 1000000000),
    ("0x10", 16),
    ("0x10K", 16384),
    ("010", 8),
    ("+5", 5),
    (" 5", 5),
    ("1GiB", 1073741824),
]


@pytest.mark.parametrize(("text", "size"), ACCEPTED)
def test_a_size_is_what_fallocate_makes_of_it(text: str, size: int, tmp_path: Path) -> None:
    target = tmp_path / "file"
    if size <= 4 << 20:
        subprocess.run(["fallocate", "--length", text, target], check=True)
        assert target.stat().st_size == size
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1T", 1 << 40),
        ("1P", 1 << 50),
        ("7E", 7 << 60),
        ("1TB", 10**12),
        ("1PB", 10**15),
        ("9EB", 9 * 10**18),
    ],
)
def test_large_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "K",
        "-1",
        "-1K",
        "1 K",
        "1.5",
        "1.0",
        "512B",
        "512b",
        "1KIB",
        "1Ki",
        "1KBB",
        "1Q",
        "1.2.3K",
        "1e3",
        "abc",
        "0x",
        "1_000",
        "1,5K",
        "5 ",
        "09",
        "--5",
    ],
)
def test_what_fallocate_refuses_is_refused_by_name(text: str, tmp_path: Path) -> None:
    if text != "1.0":  # There util-linux takes the end of the text for a unit of 1024**9.
        assert fallocate(text, tmp_path) is None
    with pytest.raises(InvalidArgument, match="is not a size") as refused:
        parse_size(text)
    assert repr(text) in str(refused.value)
    assert "1024" in str(refused.value)


@pytest.mark.parametrize(
    "text", ["8E", "9223372036854775808", "0x8000000000000000", "1Z", "1Y", "9.3EB"]
)
def test_more_than_a_file_can_be_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="too large"):
        parse_size(text)


def test_the_largest_size_is_taken_and_nothing_is_zero() -> None:
    assert parse_size("9223372036854775807") == SIZE_BYTES_MAX
    assert parse_size("0") == parse_size("0K") == 0


def test_a_hostile_number_of_digits_is_refused_without_working_it_out() -> None:
    for text in ("9" * 100_000, "0." + "1" * 100_000 + "K", "0x" + "f" * 100_000, "x" * 100_000):
        with pytest.raises(InvalidArgument) as refused:
            parse_size(text)
        assert len(str(refused.value)) < 500


@pytest.mark.parametrize("text", ["٣", "1٣", "1K\n", "1\0", "¹"])
def test_only_ascii_digits_are_a_number(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_size(text)


def test_a_fraction_is_exact_where_util_linux_rounds_digit_by_digit() -> None:
    assert parse_size("1.25M") == 1280 * 1024
    assert parse_size("1.75K") == 1792
    assert parse_size("0.7KB") == 700


@given(st.integers(0, SIZE_BYTES_MAX))
def test_a_plain_number_is_itself(size: int) -> None:
    assert parse_size(str(size)) == size


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        size = parse_size(text)
    except InvalidArgument:
        return
    assert 0 <= size <= SIZE_BYTES_MAX


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (512, "512 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1 << 20, "1 MiB"),
        (1474560, "about 1.4 MiB"),
        (1 << 30, "1 GiB"),
        (3 << 29, "1.5 GiB"),
        ((1 << 30) - 1, "about 1023.99 MiB"),
        (1 << 40, "1 TiB"),
        (1 << 60, "1 EiB"),
        (SIZE_BYTES_MAX, "about 7.99 EiB"),
        (10**9, "about 953.67 MiB"),
    ],
)
def test_a_size_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(1024, SIZE_BYTES_MAX))
def test_a_size_for_people_is_exact_or_says_about(size: int) -> None:
    text = format_size(size)
    number, unit = text.removeprefix("about ").split()
    step = 1 << 10 * ("KMGTPE".index(unit[0]) + 1)
    told = round(float(number) * 100) * step
    assert 0 <= size * 100 - told < step
    assert text.startswith("about") == (told != size * 100)
    assert 1 <= float(number) < 1024
