"""Writing a whole disk as a streamOptimized VMDK."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vdisk.errors import InvalidArgument
from vdisk.formats.creation import Creation, Piece
from vdisk.formats.packing import packed_units
from vdisk.formats.vmdk_create import STREAM, SUBFORMAT_DEFAULT, check_creation, new_geometry
from vdisk.formats.vmdk_stream import GRAIN_BYTES, framed, pack, stream_optimized

_WRITE_BYTES = 1 << 20


def write_stream(creation: Creation, pieces: Iterator[Piece]) -> None:
    """Write all of a disk, as a `CompressedWriter` does.

    Raises InvalidArgument for another subformat than streamOptimized, other grains than 64K, and
    what no VMDK can be.
    """
    path, options = creation.host.path, creation.options
    if options["subformat"] not in (STREAM, SUBFORMAT_DEFAULT):
        raise InvalidArgument(
            f"a {options['subformat']} VMDK is not compressed", path=path,
            hint=f"only subformat={STREAM} is",
        )
    if creation.number("grain-size", 0, 1 << 62) != GRAIN_BYTES:
        raise InvalidArgument(f"a {STREAM} VMDK has grains of 64K", path=path)
    check_creation(creation, STREAM)
    adapter = options["adapter-type"]
    grains = packed_units(pieces, GRAIN_BYTES, pack)
    parts = stream_optimized(
        creation.size, ((grain.offset, framed(grain.offset, grain.packed)) for grain in grains),
        file_name=path.name, geometry=new_geometry(creation, adapter), adapter_type=adapter,
        hardware_version=options["hwversion"],
    )  # fmt: skip
    at = 0
    for chunk in _chunks(parts):
        creation.host.write(at, chunk)
        at += len(chunk)


def _chunks(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, in writes that are worth one each."""
    waiting: list[bytes] = []
    length = 0
    for part in parts:
        waiting.append(part)
        length += len(part)
        if length >= _WRITE_BYTES:
            yield b"".join(waiting)
            waiting, length = [], 0
    yield b"".join(waiting)
