"""The descriptor of a VMDK: the text that names its extents, its parent and its geometry.

It is a file of its own, or lies inside the first extent.  What is not changed stays as it was, to
the byte; a line that becomes shorter is filled up with spaces, so that a change touches as few
bytes as can be and a power loss leaves the old text or the new one.

Sources: VMware, "Virtual Disk Format 5.0", "The Descriptor File"; libvmdk's documentation.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import SystemRandom

from vdisk.errors import Corrupt, InvalidArgument, InvalidFormat
from vdisk.geometry import Geometry
from vdisk.units import SECTOR, SIZE_BYTES_MAX

MAGIC = "# Disk DescriptorFile"
DESCRIPTOR_BYTES_MAX = 256 << 10
"""Some thousand extents' lines; VMware keeps 10 KiB for an embedded one."""
EXTENTS_MAX = 4096
NO_PARENT = 0xFFFFFFFF
SECTORS_MAX = SIZE_BYTES_MAX // SECTOR
"""No disk is larger."""

_LINE = re.compile(
    r"^[ \t]*([A-Za-z][\w.:-]*)[ \t]*=[ \t]*(?:\"([^\"\n]*)\"|([^\"\s]*))[ \t]*(?=\r?$)",
    re.MULTILINE,
)
_EXTENT = re.compile(
    r"^[ \t]*(RW|RDONLY|NOACCESS)[ \t]+(\d{1,20})[ \t]+([A-Z0-9]+)"
    r"(?:[ \t]+\"([^\"\n]*)\"(?:[ \t]+(\d{1,20}))?)?[^\r\n]*",
    re.MULTILINE,
)
_EXTENT_NAME = re.compile(
    r".+-(?:flat|delta|sesparse|ctk|rdmp?|[sf]\d{3,})\.vmdk", re.IGNORECASE | re.DOTALL
)
_GEOMETRY = ("ddb.geometry.cylinders", "ddb.geometry.heads", "ddb.geometry.sectors")


@dataclass(frozen=True, slots=True)
class ExtentLine:
    """A line about an extent: `sectors` of the disk lie in `name`, from sector `offset` on."""

    access: str
    sectors: int
    type: str
    name: str | None = None
    offset: int = 0

    def __str__(self) -> str:
        text = f"{self.access} {self.sectors} {self.type}"
        if self.name is not None:
            text += f' "{self.name}"'
        return f"{text} {self.offset}" if self.type == "FLAT" else text


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor's text, and what it says.  Changing it makes another one.

    `fields` has what is `key=value`, without quotes, by the key in lower case.
    """

    text: str
    extents: tuple[ExtentLine, ...]
    fields: dict[str, str] = field(repr=False)

    @classmethod
    def parse(cls, raw: bytes, path: os.PathLike[str]) -> Descriptor:
        """Read a descriptor; what follows a NUL is none of it.

        Bytes that are no UTF-8 are kept as they are, in file names too.  Raises InvalidFormat and
        Corrupt.
        """
        text = raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")
        if not text.lstrip("\ufeff \t\r\n").startswith(MAGIC):
            raise InvalidFormat("is no VMDK: it has no descriptor", path=path)
        try:
            return cls.of(text)
        except Corrupt as error:
            error.path = os.fspath(path)
            raise

    @classmethod
    def of(cls, text: str) -> Descriptor:
        """What `text` says.  Corrupt where it says too much, or a number that is none."""
        extents = []
        for match in _EXTENT.finditer(text):
            extents.append(_extent(match))
            if len(extents) > EXTENTS_MAX:
                raise Corrupt(f"its descriptor names more than {EXTENTS_MAX} extents")
        fields: dict[str, str] = {}
        for match in _LINE.finditer(text):
            # As for other readers, the first of two lines about the same holds.
            fields.setdefault(match[1].lower(), match[2] if match[2] is not None else match[3])
        found = cls(text, tuple(extents), fields)
        if sum(line.sectors for line in extents) > SECTORS_MAX:
            raise Corrupt("its descriptor says that it is larger than any disk")
        _ = found.cid, found.parent_cid
        return found

    @property
    def create_type(self) -> str:
        """How the disk is laid out: `monolithicSparse`, `twoGbMaxExtentFlat`, …; "" if unsaid."""
        return self.fields.get("createtype", "")

    @property
    def cid(self) -> int:
        """The content's number, which children remember: another one after each change."""
        return self._hexadecimal("cid", 0)

    @property
    def parent_cid(self) -> int:
        """The `cid` that the parent had when this was made, `NO_PARENT` without one."""
        return self._hexadecimal("parentcid", NO_PARENT)

    @property
    def parent_name(self) -> str | None:
        """The file that the descriptor says its parent is."""
        return self.fields.get("parentfilenamehint")

    @property
    def geometry(self) -> Geometry | None:
        """`ddb.geometry`, None where it is not there or makes no sense."""
        try:
            return Geometry(*(int(self.fields[key], 10) for key in _GEOMETRY))
        except (KeyError, ValueError, InvalidArgument):
            return None

    def _hexadecimal(self, key: str, default: int) -> int:
        text = self.fields.get(key)
        if text is None:
            return default
        if not re.fullmatch(r"[0-9A-Fa-f]{1,8}", text):
            raise Corrupt(f"its descriptor says {key}={text[:40]!r}, which is no number")
        return int(text, 16)

    # Changing it

    def with_new_cid(self) -> Descriptor:
        """The same for another state of the disk.  The number keeps its length if it can."""
        digits = min(max(len(self.fields.get("cid", "")), 6), 8)
        while True:
            cid = SystemRandom().randrange(16 ** (digits - 1), min(16**digits, NO_PARENT - 1))
            if cid != self.cid:
                return self._with("CID", f"{cid:x}", quoted=False)

    def with_geometry(self, geometry: Geometry) -> Descriptor:
        """The same with that geometry."""
        values = (geometry.cylinders, geometry.heads, geometry.sectors_per_track)
        found = self
        for key, value in zip(_GEOMETRY, values, strict=True):
            found = found._with(key, str(value))
        return found

    def with_extent(self, number: int, line: ExtentLine) -> Descriptor:
        """The same with `line` in place of extent `number`, or after the last one."""
        matches = list(_EXTENT.finditer(self.text))
        if number < len(matches):
            start, end = matches[number].span()
            return self._replaced(start, end, str(line))
        end = matches[-1].end()
        return Descriptor.of(f"{self.text[:end]}\n{line}{self.text[end:]}")

    def without_extents_from(self, number: int) -> Descriptor:
        """The same with the first `number` extents alone."""
        text = self.text
        for match in reversed(list(_EXTENT.finditer(text))[number:]):
            text = text[: match.start()] + text[match.end() + 1 :]
        return Descriptor.of(text)

    def _with(self, key: str, value: str, *, quoted: bool = True) -> Descriptor:
        line = f'{key} = "{value}"' if quoted else f"{key}={value}"
        for match in _LINE.finditer(self.text):
            if match[1].lower() == key.lower():
                group = 2 if match[2] is not None else 3
                start, end = match.span(group)
                kept = self.text[match.start() : start] + value + self.text[end : match.end()]
                return self._replaced(match.start(), match.end(), kept.rstrip())
        newline = "" if self.text.endswith("\n") else "\n"
        return Descriptor.of(f"{self.text}{newline}{line}\n")

    def _replaced(self, start: int, end: int, line: str) -> Descriptor:
        """Another line in place of [start, end), of the same length at least."""
        return Descriptor.of(self.text[:start] + line.ljust(end - start) + self.text[end:])

    def encoded(self) -> bytes:
        """The text as the bytes of the file."""
        return self.text.encode("utf-8", "surrogateescape")


def _extent(match: re.Match[str]) -> ExtentLine:
    access, sectors, kind, name, offset = match.groups()
    line = ExtentLine(access, int(sectors), kind, name, int(offset or 0))
    if not 0 < line.sectors <= SECTORS_MAX or line.offset > SECTORS_MAX:
        raise Corrupt(f"its descriptor has an extent of {line.sectors} sectors from {line.offset}")
    return line


def new_descriptor(
    create_type: str,
    extents: tuple[ExtentLine, ...],
    geometry: Geometry | None,
    *,
    adapter_type: str = "ide",
    hardware_version: str = "4",
    parent: tuple[str, int] | None = None,
) -> Descriptor:
    """The descriptor of a new disk; `parent` is (its file's name, its CID) for an overlay."""
    lines = [MAGIC, "version=1", "CID=00000001"]
    lines.append(f"parentCID={NO_PARENT if parent is None else parent[1]:08x}")
    lines.append(f'createType="{create_type}"')
    if parent is not None:
        lines.append(f'parentFileNameHint="{parent[0]}"')
    lines += ["", "# Extent description", *map(str, extents), ""]
    lines += ["# The Disk Data Base", "#DDB", ""]
    lines.append(f'ddb.virtualHWVersion = "{hardware_version}"')
    if geometry is not None:
        values = (geometry.cylinders, geometry.heads, geometry.sectors_per_track)
        lines += [f'{key} = "{value}"' for key, value in zip(_GEOMETRY, values, strict=True)]
    lines.append(f'ddb.adapterType = "{adapter_type}"')
    text = "".join(f"{line}\n" for line in lines)
    return Descriptor.of(text).with_new_cid()


def is_extent_name(name: str) -> bool:
    """Whether a file of that name is by convention an extent, or the record of changes of one.

    Such a file is no image: its bytes belong to the one whose descriptor names it.
    """
    return _EXTENT_NAME.fullmatch(name) is not None


def extents_of(descriptor: Descriptor) -> Iterator[tuple[int, ExtentLine]]:
    """(sector of the disk at which it begins, line) of each extent."""
    start = 0
    for line in descriptor.extents:
        yield start, line
        start += line.sectors
