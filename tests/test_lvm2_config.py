"""LVM2's configuration text, with lvmconfig as the witness; and what is refused, soon."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.errors import Corrupt
from vdisk.tables.lvm2.config import DEPTH_MAX, ITEMS_MAX, Section, parse, render

SECONDS_MAX = 10.0
"""For eight MiB of anything; it takes about one."""

KEYS = st.from_regex(r"[A-Za-z0-9_.+-]{1,8}", fullmatch=True)
STRINGS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
SCALARS = st.one_of(
    st.integers(-(1 << 63), (1 << 64) - 1),
    STRINGS,
    st.integers(-(10**6), 10**6).map(lambda thousandths: thousandths / 1000),
)
SECTIONS = st.recursive(
    st.dictionaries(KEYS, SCALARS | st.lists(SCALARS, max_size=4).map(tuple), max_size=4),
    lambda inner: st.dictionaries(KEYS, SCALARS | inner, max_size=4),
    max_leaves=8,
)


def depth(section: Section) -> int:
    return 1 + max((depth(one) for one in section.values() if isinstance(one, dict)), default=0)


@given(section=SECTIONS)
def test_what_is_printed_is_read_again(section: Section) -> None:
    if depth(section) <= DEPTH_MAX:
        assert parse(render(section)) == section


@given(text=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    try:
        section = parse(text)
    except Corrupt:
        return
    assert parse(render(section)) == section


PIECES = st.sampled_from(
    ["a", "b", " ", "\n", "{", "}", "=", "[", "]", ",", "#", '"', "'", "\\", "1", "-", ".", "x = 1"]
)


@given(text=st.lists(PIECES, max_size=40).map("".join))
def test_any_tokens_are_read_or_refused(text: str) -> None:
    test_any_bytes_are_read_or_refused.hypothesis.inner_test(text.encode())  # type: ignore[attr-defined]


WITNESSED = {
    "s": {
        "number": 4096,
        "negative": -1,
        "text": 'say "hello" to C:\\dir\\',
        "signs": "{ a = 1 } # [x] 'y'",
        "letters": "Grüße",
        "lines": "two\nlines",
        "empty": "",
        "array": ("a", 1, 'b"c'),
        "fraction": 2.5,
    }
}


def lvmconfig(folder: Path, text: str) -> str:
    """The section s as lvmconfig reads it from `text` and prints it."""
    (folder / "lvm.conf").touch()
    done = subprocess.run(
        ["lvmconfig", "--config", text, "s"],
        capture_output=True, check=True, timeout=30,
        env={**os.environ, "LVM_SYSTEM_DIR": str(folder), "LVM_SUPPRESS_FD_WARNINGS": "1",
             "PATH": "/usr/sbin:/sbin:/usr/bin:/bin"},
    )  # fmt: skip
    return done.stdout.decode()


def test_lvm2_reads_what_is_printed_and_is_read_when_it_prints(tmp_path: Path) -> None:
    printed = lvmconfig(tmp_path, render(WITNESSED).decode())
    assert {"s": parse(printed.encode())} == WITNESSED


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('s { a = "x\\"y" }', 'x"y'),
        ('s { a = "x\\\\y" }', "x\\y"),
        ('s { a = "x\\ny" }', "x\\ny"),
        ("s { a = 'x\\y' }", "x\\y"),
        ("s { a = [1,2,] }", (1, 2)),
        ("s { # one\n a = # two\n 1 # three\n }", 1),
        ("s{a=1}", 1),
        ('"s" { a = 1 }', 1),
        ('s { a = "# not a comment" }', "# not a comment"),
    ],
)
def test_forms_that_lvm2_never_prints_are_read_as_it_reads_them(
    tmp_path: Path, text: str, value: object
) -> None:
    assert parse(text.encode()) == {"s": {"a": value}}
    assert parse(lvmconfig(tmp_path, text).encode()) == {"a": value}


BROKEN = [
    "a", "a =", "a {", "}", "a = }", "= 1", "{ }", "a = [", "a = [1", 'a = "x', "a = 'x", "a = x",
    "a = [x]", "a = 1 2", "a = 1a", "a = 01", "a = 0x10", "a = 99999999999999999999",
    "a = 1 a = 2", "a { } a { }", "a/b = 1", "a = [[1]]", "a = [1 2]", "a = [1,,2]",
    "a = {}", "a = 1.2.3", "a = .", "[1]",
    "a = 18446744073709551616", "a = --1", "a,b = 1", "a = ,", "a = [,1]", "\x01 = 1",
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_text_of_a_volume_group_is_refused(text: str) -> None:
    with pytest.raises(Corrupt):
        parse(text.encode())


def test_a_text_ends_at_its_first_nul() -> None:
    assert parse(b"a = 1\n\0b = 2 } {") == {"a": 1}


SIZE = 8 << 20


@pytest.mark.parametrize(
    "text",
    [
        b" " * SIZE,
        b"#" * SIZE,
        b"#\n" * (SIZE // 2),
        b"{" * SIZE,
        b"a{" * (SIZE // 2),
        b'"' * SIZE,
        b"'" * (SIZE + 1),
        b'a="' + b"\\" * SIZE,
        b"a=[" * (SIZE // 3),
        b"a=[" + b"1," * (SIZE // 2),
        b"a=[" + b"," * SIZE,
        b"a=" + b"9" * SIZE,
        b"a=" + b"." * SIZE,
        b"a" * SIZE,
        b"=" * SIZE,
        b"a=[" + b'"",' * (SIZE // 3),
        b"a=[" + b'"\\' * (SIZE // 2),
        b"".join(b"a%d=1\n" % number for number in range(ITEMS_MAX + 10)),
        b"".join(b"a%d{" % number for number in range(100)),
    ],
    ids=range(19),
)
def test_hostile_texts_are_answered_soon(text: bytes) -> None:
    start = time.process_time()
    try:
        section = parse(text)
    except Corrupt:
        pass
    else:
        assert not section, "what passes the limits must be refused"
    assert time.process_time() - start < SECONDS_MAX
