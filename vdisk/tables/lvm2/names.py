"""What may be a name, and what a tag.  Source: LVM2 `lib/misc/lvm-string.c` and lvm(8)."""

from __future__ import annotations

import re

from vdisk.errors import InvalidArgument

NAME_CHARACTERS_MAX = 127
"""The longest name of a volume group or a logical volume."""

PATH_CHARACTERS_MAX = 125
"""The longest "group/volume" that LVM2 takes."""

TAG_CHARACTERS_MAX = 1024
"""The longest tag, as lvm(8) has it."""

_NAME = re.compile(r"(?![-]|\.\.?\Z)[A-Za-z0-9_.+-]{1,127}")
_TAG = re.compile(r"(?!-)[A-Za-z0-9_+.\-/=!:&#]{1,1024}")
_RESERVED_STARTS = ("pvmove", "snapshot")
_RESERVED_PARTS = (
    "_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_imeta", "_iorig", "_mimage", "_mlog",
    "_pmspare", "_rimage", "_rmeta", "_tdata", "_tmeta", "_vdata", "_vorigin", "_wcorig",
)  # fmt: skip
_HINT = "a name is made of A-Z a-z 0-9 _ . + -, and does not begin with -"


def is_name(text: str) -> bool:
    """Whether `text` can be the name of a volume group or of any logical volume, hidden or not."""
    return _NAME.fullmatch(text) is not None


def check_group_name(name: str) -> None:
    """Raises InvalidArgument where `name` cannot be a volume group's."""
    if not is_name(name):
        raise InvalidArgument(f"a drive cannot be named {_shown(name)}", hint=_HINT)


def check_volume_name(name: str, group: str) -> None:
    """Raises InvalidArgument where a volume of the group `group` cannot be called `name`."""
    if not is_name(name):
        raise InvalidArgument(f"a volume cannot be named {_shown(name)}", hint=_HINT)
    most = PATH_CHARACTERS_MAX - 1 - len(group)
    if len(name) > most:
        raise InvalidArgument(
            f"a volume cannot be named {_shown(name)}: it is too long",
            hint=f"on {group}, a name has at most {most} characters",
        )
    reserved = _reserved_part(name)
    if reserved is not None:
        raise InvalidArgument(
            f"a volume cannot be named {_shown(name)}: LVM2 keeps names {reserved} for itself"
        )


def _reserved_part(name: str) -> str | None:
    for start in _RESERVED_STARTS:
        if name.startswith(start):
            return f"that begin with {start}"
    for part in _RESERVED_PARTS:
        if part in name:
            return f"with {part} in them"
    return None


def check_tag(tag: str) -> None:
    """Raises InvalidArgument where `tag` cannot be one."""
    if _TAG.fullmatch(tag) is None:
        raise InvalidArgument(
            f"{_shown(tag)} cannot be a tag",
            hint="a tag is made of A-Z a-z 0-9 _ + . - / = ! : & #, and does not begin with -",
        )


def _shown(name: str) -> str:
    return repr(name if len(name) <= 40 else f"{name[:40]}…")
