"""LVM2's configuration text: sections of values, read and printed.

    name {                          a section
        key = 4096                  a number, 64 bits, signed
        key = "text"                a string; \\" and \\\\ stand for " and \\
        key = 'text'                a string as it stands
        key = 0.5
        key = ["pv0", 0]            an array of any of these
        # to the end of the line
    }

What LVM2 writes as metadata is read, and what it accepts beyond that but never writes (bare words,
a key twice, a path as a key) is refused.  Reading takes time and memory in proportion to the text,
and stops at limits.  Source: LVM2 `libdm/libdm-config.c`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from decimal import Decimal
from itertools import chain, repeat
from typing import TypeAlias

from vdisk.errors import Corrupt

Scalar: TypeAlias = int | float | str
Value: TypeAlias = Scalar | tuple[Scalar, ...]
Section: TypeAlias = "dict[str, Value | Section]"
"""A section: its keys in the order of the text."""

DEPTH_MAX = 8
"""Sections inside one another; metadata has four levels."""

ITEMS_MAX = 500_000
"""Values and sections in a text; a volume has about twenty."""

_DIGITS_MAX = 20

# Spaces and comments, then a token; what fits none of the kinds is a token of one character.  Every
# repetition is possessive, so that no text makes the expression try twice.
_TOKEN = re.compile(
    r"""(?: \s++ | \#[^\n]*+ )*+
        ( [A-Za-z0-9_.+-]++ | [][{}=,] | "(?:[^"\\]|\\.)*+" | '[^']*+' | . | \Z )""",
    re.VERBOSE | re.DOTALL,
)
_KEY = re.compile(r"[A-Za-z0-9_.+-]+")
_INTEGER = re.compile(r"[+-]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+)")
_ESCAPED = re.compile(r"\\([\"\\])")
_TO_ESCAPE = re.compile(r"[\"\\]")
_END = ""


def parse(text: bytes) -> Section:
    """The sections and values of `text`, which ends at its first NUL.

    Bytes that are no UTF-8 survive being printed again.  Raises Corrupt, saying where, for what
    is no such text or passes a limit.
    """
    text, _, _ = text.partition(b"\0")
    return _Parser(text.decode("utf-8", "surrogateescape")).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        found = map(operator.itemgetter(1), _TOKEN.finditer(text))
        self._tokens: Iterator[str] = chain(found, repeat(_END))
        self._items = 0

    def parse(self) -> Section:
        root: Section = {}
        section, open_sections = root, [root]
        for token in self._tokens:
            if token == "}" and len(open_sections) > 1:
                open_sections.pop()
                section = open_sections[-1]
                continue
            if token == _END:
                break
            key = self._new_key(token, section)
            after = next(self._tokens)
            if after == "{":
                inner: Section = {}
                section[key] = section = inner
                open_sections.append(inner)
                if len(open_sections) > DEPTH_MAX:
                    raise _broken(f"more than {DEPTH_MAX} sections inside one another")
            elif after == "=":
                section[key] = self._value(next(self._tokens))
            else:
                raise _broken(f"{_shown(after)} follows the key {_shown(key)}")
        if len(open_sections) > 1:
            raise _broken("a section does not end")
        return root

    def _new_key(self, token: str, section: Section) -> str:
        self._count()
        key = token[1:-1] if token[0] == '"' and len(token) > 2 else token
        if _KEY.fullmatch(key) is None:
            raise _broken(f"{_shown(token)} stands where a key should be")
        if key in section:
            raise _broken(f"the key {_shown(key)} is there twice")
        return key

    def _value(self, token: str) -> Value:
        return self._array() if token == "[" else _scalar(token)

    def _array(self) -> tuple[Scalar, ...]:
        values: list[Scalar] = []
        for token in self._tokens:
            if token == "]":
                break
            self._count()
            values.append(_scalar(token))
            after = next(self._tokens)
            if after == "]":
                break
            if after != ",":
                raise _broken(f"{_shown(after)} follows a value in an array")
        return tuple(values)

    def _count(self) -> None:
        self._items += 1
        if self._items > ITEMS_MAX:
            raise _broken(f"more than {ITEMS_MAX} values")


def _scalar(token: str) -> Scalar:
    first = token[:1]
    if first == '"' and len(token) > 1:
        text = token[1:-1]
        return _ESCAPED.sub(r"\1", text) if "\\" in text else text
    if first == "'" and len(token) > 1:
        return token[1:-1]
    if len(token) <= _DIGITS_MAX and _INTEGER.fullmatch(token):
        number = int(token)
        if -(1 << 63) <= number < 1 << 64:
            return number
    elif len(token) <= _DIGITS_MAX and _FLOAT.fullmatch(token):
        return float(token)
    raise _broken(f"{_shown(token)} stands where a value should be")


def _shown(token: str) -> str:
    return repr(token if len(token) <= 40 else f"{token[:40]}…") if token else "the end"


def _broken(what: str) -> Corrupt:
    return Corrupt(f"its text makes no sense: {what}")


def render(section: Section) -> bytes:
    """The text of `section`, as LVM2 lays it out on disk: an item a line, nothing indented."""
    lines: list[str] = []
    _render_into(section, lines)
    return "".join(lines).encode("utf-8", "surrogateescape")


def _render_into(section: Section, lines: list[str]) -> None:
    for key, item in section.items():
        if isinstance(item, dict):
            lines.append(f"{key} {{\n")
            _render_into(item, lines)
            lines.append("}\n")
        elif isinstance(item, tuple):
            lines.append(f"{key} = [{', '.join(map(_rendered, item))}]\n")
        else:
            lines.append(f"{key} = {_rendered(item)}\n")


def _rendered(value: Scalar) -> str:
    if isinstance(value, str):
        return f'"{_TO_ESCAPE.sub(_escape, value)}"'
    if isinstance(value, float):
        digits = f"{Decimal(repr(value)):f}"
        return digits if "." in digits else f"{digits}.0"
    return str(value)


def _escape(match: re.Match[str]) -> str:
    return "\\" + match[0]
