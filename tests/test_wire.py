"""The FUSE protocol against recorded messages: requests of a real kernel, replies of libfuse.

What a request must be parsed to is what the client did when it was recorded: on a folder of one
disk of 1 MiB, `pwrite(fd, b"abc", 513)`, `pread(fd, 100, 70000)` and so on, in the table below.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mount.wire import replies
from mount.wire.constants import InitFlag, Opcode, OpenFlag, SetattrFlag
from mount.wire.negotiation import Limits, VersionRefused, negotiate
from mount.wire.requests import HEADER, Header, Init, ProtocolError, parse

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "fuse-messages.json").read_text()
)
REQUESTS = {name: bytes.fromhex(text) for name, text in RECORDED["requests"].items()}

DONE: dict[str, dict[str, object]] = {
    "INIT": {"major": 7, "minor": 45},
    "LOOKUP": {"name": b"disk"},
    "GETATTR": {"fh": None},
    "STATX": {"fh": None},
    "SETATTR of times": {
        "valid": SetattrFlag.ATIME | SetattrFlag.MTIME, "fh": None,
        "atime_ns": 1_000_000_007, "mtime_ns": 981173106_789000000,
    },
    "SETATTR of the mode": {"valid": SetattrFlag.MODE, "mode": 0o100600},
    "SETATTR of the size": {"size": 2 << 20},
    "WRITE": {"offset": 513, "data": b"abc"},
    # The kernel reads whole pages, and ahead.
    "READ": {"offset": 70000 // 4096 * 4096},
    "FALLOCATE": {"mode": 3, "offset": 4096, "length": 8192},
    "LSEEK": {"offset": 5000, "whence": 3},
    "COPY_FILE_RANGE": {"offset_in": 512, "offset_out": 0, "length": 1000},
    "COPY_FILE_RANGE_64": {"offset_in": 512, "offset_out": 0, "length": 1000},
    "CREATE": {"name": b"new", "mode": 0o100640},
    "RENAME": {"old_name": b"new", "new_name": b"newer", "flags": 0, "new_folder": 1},
    "UNLINK": {"name": b"newer"},
    "GETXATTR": {"name": b"security.capability"},
    "SETXATTR": {"name": b"user.vdisk.geometry", "value": b"2/3/4 512", "flags": 0},
    "REMOVEXATTR": {"name": b"user.vdisk.geometry"},
    "READDIR": {"size": 32768},  # What getdents(2) of the C library asks for.
    "READDIRPLUS": {"offset": 0, "size": 32768},
}  # fmt: skip


@pytest.mark.parametrize("name", DONE)
def test_a_kernels_request_says_what_the_client_did(name: str) -> None:
    header, message = parse(memoryview(REQUESTS[name]))
    assert Opcode(header.opcode).name == name.split()[0]
    found = message._asdict()
    for field, value in DONE[name].items():
        assert found[field] == value, field


def test_a_header_says_who_asks_for_what() -> None:
    """The client was root, and asked for a name in the mounted folder."""
    header, _ = parse(memoryview(REQUESTS["LOOKUP"]))
    assert (header.node, header.uid, header.gid) == (1, 0, 0)
    assert header.pid > 0
    assert header.unique > 0


def test_nodes_to_forget_are_counted() -> None:
    _, one = parse(memoryview(REQUESTS["FORGET"]))
    assert [count for _, count in one.nodes] == [1]  # type: ignore[union-attr]
    _, many = parse(memoryview(REQUESTS["BATCH_FORGET"]))
    assert len(many.nodes) == (176 - 48) // 16  # type: ignore[union-attr]


def test_what_cannot_be_parsed_is_still_a_request_with_a_number() -> None:
    """An operation of the future: its answer is ENOSYS, for which the header is enough."""
    request = HEADER.pack(HEADER.size + 8, 999, 77, 1, 0, 0, 5, 0, 0) + bytes(8)
    header, _ = parse(memoryview(request))
    assert (header.opcode, header.unique) == (999, 77)


def test_a_longer_structure_of_a_later_kernel_is_read_as_far_as_it_is_known() -> None:
    for name in ("FALLOCATE", "LSEEK", "STATX", "GETATTR"):
        longer = REQUESTS[name] + bytes(24)
        longer = struct.pack("=I", len(longer)) + longer[4:]
        assert parse(memoryview(longer))[1] == parse(memoryview(REQUESTS[name]))[1]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_is_cut_off_is_refused(name: str) -> None:
    """At every length, and as well where its header says the shorter length."""
    whole = REQUESTS[name]
    for length in range(len(whole)):
        with pytest.raises(ProtocolError):
            parse(memoryview(whole[:length]))
    for length in range(HEADER.size, len(whole)):
        cut = struct.pack("=I", length) + whole[4:length]
        try:
            parse(memoryview(cut))
        except ProtocolError:
            continue


@given(
    opcode=st.one_of(st.sampled_from(list(Opcode)), st.integers(0, 2**32 - 1)), body=st.binary()
)
def test_any_bytes_are_a_request_or_refused(opcode: int, body: bytes) -> None:
    head = HEADER.pack(HEADER.size + len(body), opcode, 1, 1, 0, 0, 0, 0, 0)
    try:
        header, _ = parse(memoryview(head + body))
    except ProtocolError:
        return
    assert isinstance(header, Header)


# Replies


def recorded(name: str) -> tuple[Header, bytes]:
    """The header of a recorded request, and the whole of libfuse's reply to it."""
    pair = RECORDED["replies"][name]
    return parse(memoryview(bytes.fromhex(pair["request"])))[0], bytes.fromhex(pair["reply"])


def attr() -> replies.Attr:
    """What a client's stat said."""
    told = RECORDED["stat"]
    return replies.Attr(
        told["st_ino"], told["st_mode"], told["st_size"], told["st_blocks"], told["st_nlink"],
        told["st_uid"], told["st_gid"], told["st_atime_ns"], told["st_mtime_ns"],
        told["st_ctime_ns"], block_size=told["st_blksize"],
    )  # fmt: skip


def whole(header: Header, body: bytes) -> bytes:
    return replies.reply(header.unique, len(body)) + body


def test_attributes_are_as_libfuse_writes_them() -> None:
    header, reply = recorded("SETATTR")
    ours = whole(header, replies.attributes(attr(), 1.0))
    # libfuse made this reply a moment before the client's stat: only the time of change differs.
    ctime, ctime_ns = slice(16 + 16 + 40, 16 + 16 + 48), slice(16 + 16 + 56, 16 + 16 + 60)
    assert len(ours) == len(reply)
    for at in range(len(ours)):
        if at not in range(*ctime.indices(200)) and at not in range(*ctime_ns.indices(200)):
            assert ours[at] == reply[at], at


def test_a_names_entry_is_as_libfuse_writes_it() -> None:
    header, reply = recorded("LOOKUP")
    ours = whole(header, replies.entry(attr().inode, attr(), 1.0, 1.0))
    assert len(ours) == len(reply)
    head = 16 + 40
    assert ours[:head] == reply[:head]
    assert ours[head : head + 24] == reply[head : head + 24]  # Inode, size and blocks.
    tail = head + 60  # What comes after the times.
    assert ours[tail:] == reply[tail:]


def test_an_open_file_is_as_libfuse_writes_it() -> None:
    header, reply = recorded("OPEN")
    handle = int.from_bytes(reply[16:24], "little")
    body = replies.opened(handle, OpenFlag(0))
    assert whole(header, body) == reply
    assert replies.opened_handle(body) == handle


def test_a_count_is_as_libfuse_writes_it() -> None:
    header, reply = recorded("WRITE")
    assert whole(header, replies.written(3)) == reply


def test_statfs_is_as_libfuse_writes_it() -> None:
    header, reply = recorded("STATFS")
    told = RECORDED["statvfs"]
    space = replies.Space(told[2], told[3], told[4], told[0], told[9])
    assert whole(header, replies.statfs(space)) == reply


def test_a_folders_names_are_as_libfuse_writes_them() -> None:
    """Each entry of the reply, made again from its parts, is the same bytes: order and padding."""
    header, reply = recorded("READDIRPLUS")
    names = [b".", b"..", b"geometry", b"info", b"map", b"chs"]
    body, at = b"", 16
    for position, name in enumerate(names, 1):
        entry = reply[at : at + 128]
        inode = int.from_bytes(entry[40:48], "little")
        mode = int.from_bytes(entry[100:104], "little")
        part = replies.direntplus(entry, inode, mode, name, position)
        body += part
        at += len(part)
    assert whole(header, body) == reply


def test_an_error_is_a_header_alone() -> None:
    assert replies.reply(7, error=2) == struct.pack("=IiQ", 16, -2, 7)


@given(seconds=st.floats(0, 1e6), ns=st.integers(-(2**62), 2**62))
def test_times_of_any_age_can_be_told(seconds: float, ns: int) -> None:
    """Of 1677 and of 2262, and for any span; the kernel reads seconds as signed again."""
    old = replies.Attr(1, 0o100644, atime_ns=ns, mtime_ns=ns, ctime_ns=ns, birth_ns=ns)
    body = replies.attributes(old, seconds)
    whole_seconds, rest = struct.unpack_from("=q", body, 16 + 24)[0], struct.unpack_from(
        "=I", body, 16 + 48
    )[0]
    assert whole_seconds * 10**9 + rest == ns
    assert len(replies.statx(old, seconds)) == 32 + 256


# Negotiation


def agreed(init: Init, limits: Limits | None = None) -> dict[str, int]:
    """The reply's fields, at their offsets in struct fuse_init_out."""
    _, body = negotiate(init, limits or Limits())
    assert len(body) == 64
    fields = struct.unpack_from("=IIIIHHIIHHII", body)
    names = (
        "major", "minor", "readahead", "flags", "background", "congestion", "write", "gran",
        "pages", "alignment", "flags2", "depth",
    )  # fmt: skip
    return dict(zip(names, fields, strict=True))


def test_a_new_kernel_gets_what_it_offers() -> None:
    _, init = parse(memoryview(REQUESTS["INIT"]))
    assert isinstance(init, Init)
    told = agreed(init, Limits(1 << 20, 64, stack_depth=2))
    assert (told["major"], told["minor"]) == (7, 45)
    assert told["pages"] * 4096 == told["write"] == 1 << 20
    assert told["flags"] & InitFlag.EXPLICIT_INVAL_DATA
    assert told["flags"] & InitFlag.HANDLE_KILLPRIV_V2
    assert not told["flags"] & (InitFlag.WRITEBACK_CACHE | InitFlag.AUTO_INVAL_DATA)
    assert told["flags2"] == InitFlag.PASSTHROUGH >> 32
    assert told["depth"] == 2


def test_passthrough_is_not_asked_for_by_who_may_not_have_it() -> None:
    _, init = parse(memoryview(REQUESTS["INIT"]))
    assert isinstance(init, Init)
    told = agreed(init)
    assert (told["flags2"], told["depth"]) == (0, 0)


@given(minor=st.integers(31, 80), flags=st.integers(0, 2**64 - 1))
def test_nothing_is_taken_that_was_not_offered(minor: int, flags: int) -> None:
    told = agreed(Init(7, minor, 131072, flags), Limits(stack_depth=2))
    taken = told["flags"] | told["flags2"] << 32
    assert taken & ~flags == 0
    assert told["minor"] == min(minor, 45)
    assert told["readahead"] == 131072
    if not flags & InitFlag.INIT_EXT:
        assert told["flags2"] == 0
    assert bool(told["depth"]) == bool(taken & InitFlag.PASSTHROUGH)


def test_linux_5_4_is_the_oldest() -> None:
    """Its INIT has 16 bytes, with no second half of the flags."""
    body = struct.pack("=IIII", 7, 31, 131072, 0x3FFFFB)
    head = HEADER.pack(HEADER.size + len(body), Opcode.INIT, 2, 0, 0, 0, 0, 0, 0)
    _, init = parse(memoryview(head + body))
    assert init == Init(7, 31, 131072, 0x3FFFFB)
    assert agreed(init)["minor"] == 31
    for old in (Init(7, 30, 0, 0), Init(6, 45, 0, 0)):
        with pytest.raises(VersionRefused):
            negotiate(old, Limits())


def test_a_kernel_of_a_later_major_version_is_told_7_and_asked_again() -> None:
    found, body = negotiate(Init(8, 0, 0, 2**64 - 1), Limits())
    assert found.again
    assert struct.unpack_from("=I", body)[0] == 7
