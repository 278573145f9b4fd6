"""Sizes as people write them, and as they read them.

The notation is the one of losetup, fallocate and fdisk (util-linux, `lib/strutils.c`): a number,
and a letter that multiplies it.  It is kept in one place so that every command takes the same
sizes.
"""

from __future__ import annotations

import re

from vdisk.errors import InvalidArgument

SECTOR = 512
"""The usual bytes per sector, and the unit of every count in the facts about PC firmware."""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

SIZE_BYTES_MAX = (1 << 63) - 1
"""The largest size of a file that Linux can name (`off_t`); nothing larger is a size here."""

_LETTERS = "KMGTPEZY"
_ACCEPTED = (
    "a size is a number of bytes, or a number and a unit: K, M, G, T, P, E (or KiB, MiB …) are "
    "powers of 1024, KB, MB … powers of 1000; for instance 512, 64K, 1.5G, 20MB"
)
# Twenty digits hold every 64-bit number; a longer text is refused before it is made a number.
_DIGITS_MAX = 20
_SIZE = re.compile(
    r"""[ \t]* \+?
        (?: 0[xX](?P<hex>[0-9a-fA-F]+) | (?P<octal>0[0-7]*)(?![0-9]) | (?P<decimal>[1-9][0-9]*) )
        (?: (?: \.(?P<fraction>[0-9]*) )? (?P<letter>[KMGTPEZYkmgtpezy]) (?P<tail>i?[bB])? )?""",
    re.VERBOSE,
)


def parse_size(text: str) -> int:
    """The number of bytes `text` stands for, 0 to 2**63-1.

    As util-linux reads it: no unit is bytes; K, M, G, T, P, E (either case) and KiB, MiB …
    multiply by powers of 1024, KB, MB … by powers of 1000; `0x` starts a hexadecimal number and a
    leading 0 an octal one.  A fraction needs a unit ("1.5G") and is worked out exactly, then
    rounded down: util-linux 2.38 rounds digit by digit and makes 1310719 of 1.25M, where this
    gives 1310720.

    Raises InvalidArgument, naming the text, for anything else: a sign, junk, more than 2**63-1.
    """
    shown = repr(text if len(text) <= 40 else f"{text[:40]}…")
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidArgument(f"{shown} is not a size", hint=_ACCEPTED)
    if any(group is not None and len(group) > _DIGITS_MAX for group in match.groups()):
        raise InvalidArgument(f"{shown} has too many digits for a size", hint=_ACCEPTED)
    size_bytes = _scaled(match)
    if size_bytes > SIZE_BYTES_MAX:
        raise InvalidArgument(
            f"{shown} is too large: a size is at most {SIZE_BYTES_MAX} bytes (8 EiB less one)"
        )
    return size_bytes


def _scaled(match: re.Match[str]) -> int:
    """The whole part and the fraction of a matched size, each times its unit."""
    base = 1000 if match["tail"] in ("B", "b") else 1024
    power = _LETTERS.index(match["letter"].upper()) + 1 if match["letter"] else 0
    unit: int = base**power
    fraction = match["fraction"] or "0"
    part: int = int(fraction) * unit // 10 ** len(fraction)
    return _whole(match) * unit + part


def _whole(match: re.Match[str]) -> int:
    if match["hex"] is not None:
        return int(match["hex"], 16)
    if match["octal"] is not None:
        return int(match["octal"], 8)
    return int(match["decimal"])


def format_size(size_bytes: int) -> str:
    """`size_bytes` for a person: "512 bytes", "1 GiB", "1.5 MiB", "about 4.01 GiB".

    In the largest power of 1024 that is not above it, with two decimals at most.  Where those do
    not say the size exactly, "about" does.  `size_bytes` is not negative.
    """
    if size_bytes < KIB:
        return f"{size_bytes} byte" if size_bytes == 1 else f"{size_bytes} bytes"
    power = min((size_bytes.bit_length() - 1) // 10, len(_LETTERS))
    unit = KIB**power
    hundredths, rest = divmod(size_bytes * 100, unit)
    number = f"{hundredths // 100}.{hundredths % 100:02}".rstrip("0").rstrip(".")
    about = "about " if rest else ""
    return f"{about}{number} {_LETTERS[power - 1]}iB"
