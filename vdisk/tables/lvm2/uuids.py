"""LVM2's UUIDs: 32 characters, stored bare in a label and written 6-4-4-4-4-4-6 everywhere else.

Source: LVM2 `lib/uuid/uuid.c`.
"""

from __future__ import annotations

import re
import secrets
import string

UUID_CHARACTERS = 32

_GROUPS = (6, 4, 4, 4, 4, 4, 6)
_RANDOM = string.digits + string.ascii_letters
_WRITTEN = re.compile("-".join(f"[0-9A-Za-z!#]{{{length}}}" for length in _GROUPS))


def new_uuid() -> str:
    """A new UUID in its written form, from the system's source of randomness."""
    return hyphenated("".join(secrets.choice(_RANDOM) for _ in range(UUID_CHARACTERS)))


def hyphenated(bare: str) -> str:
    """The written form of 32 bare characters."""
    groups, at = [], 0
    for length in _GROUPS:
        groups.append(bare[at : at + length])
        at += length
    return "-".join(groups)


def bare(written: str) -> str:
    """The 32 characters of a written UUID."""
    return written.replace("-", "")


def is_uuid(written: str) -> bool:
    """Whether `written` is a UUID in its written form, of LVM2's alphabet."""
    return _WRITTEN.fullmatch(written) is not None
