"""INIT: which version is spoken, and what both sides are able to do."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from mount.wire.constants import MAJOR, MINOR, MINOR_MIN, PAGES_MAX, InitFlag
from mount.wire.requests import Init

_INIT_OUT = struct.Struct("=IIIIHHIIHHIIH22x")

WANTED = (
    InitFlag.ASYNC_READ
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.BIG_WRITES
    | InitFlag.DO_READDIRPLUS
    | InitFlag.READDIRPLUS_AUTO
    | InitFlag.ASYNC_DIO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.EXPLICIT_INVAL_DATA
    | InitFlag.HANDLE_KILLPRIV_V2
    | InitFlag.INIT_EXT
)
"""What is taken wherever it is offered.

Not WRITEBACK_CACHE: a write would be acknowledged before the host has it.  Not AUTO_INVAL_DATA: a
page would be dropped with each change of a time, while the server says itself which pages are old.
"""


class VersionRefused(Exception):
    """The kernel speaks a protocol that is too old."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server asks of the kernel.

    `max_background` is how many requests nobody waits for may be under way at once;
    `write_bytes_max` the most that one WRITE carries; `stack_depth` how many file systems may lie
    on each other beneath a passthrough file (0: none is wanted).
    """

    write_bytes_max: int = 1 << 20
    max_background: int = 64
    stack_depth: int = 0


@dataclass(frozen=True, slots=True)
class Agreed:
    """What both sides have: the version and the abilities.  `again`: the kernel sends another
    INIT, since it speaks a newer major version than 7."""

    minor: int
    flags: InitFlag
    again: bool = False


def negotiate(init: Init, limits: Limits) -> tuple[Agreed, bytes]:
    """What is agreed, and the body of the reply.  VersionRefused below 7.31.

    Flags that are not known here are left alone: a flag counts only when both sides set it.
    """
    if init.major > MAJOR:
        return Agreed(MINOR, InitFlag(0), again=True), _pack(MINOR, 0, 0, limits)
    if init.major < MAJOR or init.minor < MINOR_MIN:
        raise VersionRefused(f"the kernel speaks FUSE {init.major}.{init.minor}")
    wanted = int(WANTED)
    if limits.stack_depth:
        wanted |= InitFlag.PASSTHROUGH
    if not init.flags & InitFlag.INIT_EXT:
        wanted &= (1 << 32) - 1
    flags = init.flags & wanted
    agreed = Agreed(min(init.minor, MINOR), InitFlag(flags))
    return agreed, _pack(agreed.minor, init.max_readahead, flags, limits)


def _pack(minor: int, readahead: int, flags: int, limits: Limits) -> bytes:
    congested = limits.max_background * 3 // 4
    depth = limits.stack_depth if flags & InitFlag.PASSTHROUGH else 0
    return _INIT_OUT.pack(
        MAJOR, minor, readahead, flags & 0xFFFFFFFF, limits.max_background, congested,
        limits.write_bytes_max, 1, PAGES_MAX, 0, flags >> 32, depth, 0,
    )
