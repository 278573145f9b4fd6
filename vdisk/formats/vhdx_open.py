"""Opening a VHDX image, and its parent."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from vdisk.errors import DiskError
from vdisk.formats.base import Opening, ParentReference
from vdisk.formats.vhd_locators import windows_path
from vdisk.formats.vhdx import Vhdx
from vdisk.formats.vhdx_header import NO_GUID, Headers
from vdisk.formats.vhdx_metadata import Metadata
from vdisk.formats.vhdx_regions import Regions
from vdisk.formats.vhdx_replay import Replayed
from vdisk.host import HostFile

if TYPE_CHECKING:
    from vdisk.image_disk import ImageDisk


def open_vhdx(host: HostFile, opening: Opening) -> Vhdx:
    """The VHDX image in `host`, with its parent if it is a differencing one.

    Raises InvalidFormat, Corrupt, Unsupported, and what opening the parent raises.
    """
    try:
        headers = Headers.read(host)
        replayed = Replayed.of(host, headers.current)
        regions = Regions.read(host, replayed.end)
        metadata = Metadata.read(replayed, regions.metadata.offset, regions.metadata.length)
        host.zeros_past_end = True  # After a loss of power the last block may not be there.
        parent = _open_parent(metadata, opening)
        try:
            return Vhdx(host, headers, replayed, regions, metadata, parent)
        except BaseException:
            if parent is not None:
                parent.close()
            raise
    except DiskError as error:
        error.path = error.path or str(host.path)
        raise


def _open_parent(metadata: Metadata, opening: Opening) -> ImageDisk | None:
    said = metadata.parent
    if said is None:
        return None
    linkages = {_guid(said.get(key, "")) for key in ("parent_linkage", "parent_linkage2")}
    paths = [
        windows_path(said[key]) for key in ("relative_path", "absolute_win32_path") if key in said
    ]
    paths += [path.rpartition("/")[2] for path in paths]
    return opening.open_parent(
        ParentReference(
            tuple(dict.fromkeys(path for path in paths if path)), Vhdx.name,
            lambda other: is_state(other, linkages - {NO_GUID}), searched=True,
        )
    )


def is_state(host: HostFile, identities: set[UUID]) -> bool:
    """Whether the file is a VHDX image with data of one of these identities."""
    try:
        return Headers.read(host).current.data_write in identities
    except DiskError:
        return False


def _guid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        return NO_GUID
