"""Making images whose header says the geometry, and so the size (`headed_layouts`)."""

from __future__ import annotations

from collections.abc import Callable

from vdisk.errors import InvalidArgument
from vdisk.formats.creation import Creation
from vdisk.formats.headed_layouts import Layout
from vdisk.geometry import Geometry
from vdisk.host import HostFile


def creator(layout: Layout) -> Callable[[Creation], None]:
    """What makes images of a layout."""

    def create_headed(creation: Creation) -> None:
        """Write a new image, sparse.  InvalidArgument for a geometry that it cannot have.

        One that was not given is rounded up to whole cylinders.
        """
        geometry = _geometry(layout, creation)
        creation.host.truncate(layout.header_size + geometry.size_bytes)
        creation.host.write(0, layout.new(geometry))  # Last: until now it is no such image.

    return create_headed


def _geometry(layout: Layout, creation: Creation) -> Geometry:
    if creation.geometry.size_bytes == creation.size or creation.geometry_given:
        check_counts(layout, creation.geometry, creation.host)
        if creation.geometry.size_bytes != creation.size:
            raise InvalidArgument(
                f"a {layout.title} is as large as its geometry, and {creation.geometry} is "
                f"{creation.geometry.size_bytes} bytes", path=creation.host.path,
                hint="leave out one of the two",
            )  # fmt: skip
        return creation.geometry
    return _rounded_up(layout, creation)


def _rounded_up(layout: Layout, creation: Creation) -> Geometry:
    """The first of the layout's shapes that reaches the size."""
    for heads, sectors in layout.shapes:
        cylinders = -(-creation.size // (heads * sectors * creation.sector_size))
        if cylinders <= layout.cylinders_max:
            geometry = Geometry(cylinders, heads, sectors, creation.sector_size)
            check_counts(layout, geometry, creation.host)
            return geometry
    raise InvalidArgument(
        f"a {layout.title} cannot be {creation.size} bytes large", path=creation.host.path,
        hint="give its geometry: --chs" if not layout.shapes else None,
    )


def check_counts(layout: Layout, geometry: Geometry, host: HostFile) -> None:
    """Raise InvalidArgument where the header has no room for a geometry, or no program takes it."""
    limits = (
        ("cylinders", geometry.cylinders, layout.cylinders, layout.cylinders_max),
        ("heads", geometry.heads, layout.heads, layout.heads_max),
        ("sectors per track", geometry.sectors_per_track, layout.sectors_per_track,
         layout.sectors_per_track_max),
    )  # fmt: skip
    for what, count, place, maximum in limits:
        low, high = (place, place) if isinstance(place, int) else (1, maximum)
        if not low <= count <= high:
            raise InvalidArgument(
                f"a {layout.title} has no {count} {what}", path=host.path,
                hint=f"it always has {low}" if low == high else f"1 to {high} are possible",
            )
    if geometry.sector_size not in layout.sector_sizes:
        sizes = ", ".join(map(str, layout.sector_sizes))
        raise InvalidArgument(
            f"a {layout.title} has no sectors of {geometry.sector_size} bytes", path=host.path,
            hint=f"give --sector-size: {sizes}",
        )
