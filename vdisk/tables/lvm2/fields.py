"""Taking the known keys out of a section, each of the right kind and inside its limits."""

from __future__ import annotations

from vdisk.errors import Corrupt
from vdisk.tables.lvm2.config import Section, Value
from vdisk.tables.lvm2.uuids import is_uuid

UINT32_MAX = (1 << 32) - 1
SECTORS_MAX = (1 << 54) - 1
"""The most sectors of a drive: a file has less than 2**63 bytes."""


class Fields:
    """A section of which keys are taken one by one; `extra` is what nobody took.

    `where` names the section for messages.  Every method raises Corrupt where the key is missing
    without a default, or its value is of another kind.
    """

    def __init__(self, section: Section, where: str) -> None:
        self.extra: Section = dict(section)
        self.where = where

    def integer(self, key: str, maximum: int = UINT32_MAX, *, minimum: int = 0) -> int:
        """A number from `minimum` to `maximum`."""
        value = self.extra.pop(key, None)
        if not isinstance(value, int) or not minimum <= value <= maximum:
            raise self.wrong(key, value, f"a number from {minimum} to {maximum}")
        return value

    def integer_or(self, key: str, default: int, maximum: int = UINT32_MAX) -> int:
        """A number from 0 to `maximum`, `default` where the key is missing."""
        return self.integer(key, maximum) if key in self.extra else default

    def text(self, key: str) -> str:
        """A string."""
        value = self.extra.pop(key, None)
        if not isinstance(value, str):
            raise self.wrong(key, value, "a string")
        return value

    def uuid(self, key: str = "id") -> str:
        """A UUID in its written form."""
        value = self.text(key)
        if not is_uuid(value):
            raise self.wrong(key, value, "a UUID")
        return value

    def words(self, key: str) -> tuple[str, ...]:
        """An array of strings; empty where the key is missing.  LVM2 takes a string for one."""
        value = self.extra.pop(key, ())
        values = value if isinstance(value, tuple) else (value,)
        words = tuple(one for one in values if isinstance(one, str))
        if len(words) != len(values):
            raise self.wrong(key, value, "an array of strings")
        return words

    def array(self, key: str) -> tuple[Value, ...]:
        """An array."""
        value = self.extra.pop(key, None)
        if not isinstance(value, tuple):
            raise self.wrong(key, value, "an array")
        return value

    def section(self, key: str) -> Section:
        """A section; empty where the key is missing."""
        value = self.extra.pop(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, value, "a section")
        return value

    def wrong(self, key: str, value: Value | Section | None, wanted: str) -> Corrupt:
        """The error that `key` has `value` and not what is `wanted`."""
        if value is None:
            return Corrupt(f"{self.where} has no {key}")
        shown = "a section" if isinstance(value, dict) else repr(value)
        return Corrupt(f"{self.where}: {key} is {shown[:60]}, not {wanted}")
