"""What people call the types of partitions, to print and to type.

A modest choice of those that turn up on real disks, under the names that sfdisk prints
(`sfdisk --list-types`, util-linux 2.38), so that both tools say the same.  The short words that a
person types are sfdisk's as well, and some more.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from uuid import UUID

from vdisk.errors import InvalidArgument

EXTENDED_TYPES = frozenset({0x05, 0x0F, 0x85})
"""The types of an MBR entry that contains logical partitions."""

PROTECTIVE_TYPE = 0xEE
"""The type of the MBR entry that keeps old tools off a GPT disk (UEFI 2.10, 5.2.3)."""

_MBR_NAMES = {
    0x00: "Empty",
    0x01: "FAT12",
    0x04: "FAT16 <32M",
    0x05: "Extended",
    0x06: "FAT16",
    0x07: "HPFS/NTFS/exFAT",
    0x0B: "W95 FAT32",
    0x0C: "W95 FAT32 (LBA)",
    0x0E: "W95 FAT16 (LBA)",
    0x0F: "W95 Ext'd (LBA)",
    0x11: "Hidden FAT12",
    0x12: "Compaq diagnostics",
    0x14: "Hidden FAT16 <32M",
    0x16: "Hidden FAT16",
    0x17: "Hidden HPFS/NTFS",
    0x1B: "Hidden W95 FAT32",
    0x1C: "Hidden W95 FAT32 (LBA)",
    0x1E: "Hidden W95 FAT16 (LBA)",
    0x27: "Hidden NTFS WinRE",
    0x41: "PPC PReP Boot",
    0x63: "GNU HURD or SysV",
    0x80: "Old Minix",
    0x81: "Minix / old Linux",
    0x82: "Linux swap / Solaris",
    0x83: "Linux",
    0x84: "OS/2 hidden or Intel hibernation",
    0x85: "Linux extended",
    0x86: "NTFS volume set",
    0x87: "NTFS volume set",
    0x88: "Linux plaintext",
    0x8E: "Linux LVM",
    0xA0: "IBM Thinkpad hibernation",
    0xA5: "FreeBSD",
    0xA6: "OpenBSD",
    0xA8: "Darwin UFS",
    0xA9: "NetBSD",
    0xAB: "Darwin boot",
    0xAF: "HFS / HFS+",
    0xBE: "Solaris boot",
    0xBF: "Solaris",
    0xDA: "Non-FS data",
    0xDE: "Dell Utility",
    0xEA: "Linux extended boot",
    0xEB: "BeOS fs",
    0xEE: "GPT",
    0xEF: "EFI (FAT-12/16/32)",
    0xFB: "VMware VMFS",
    0xFC: "VMware VMKCORE",
    0xFD: "Linux raid autodetect",
}

_GPT_NAMES = {
    "C12A7328-F81F-11D2-BA4B-00A0C93EC93B": "EFI System",
    "024DEE41-33E7-11D3-9D69-0008C781F39F": "MBR partition scheme",
    "21686148-6449-6E6F-744E-656564454649": "BIOS boot",
    "9E1A2D38-C612-4316-AA26-8B49521E5A8B": "PowerPC PReP boot",
    "E3C9E316-0B5C-4DB8-817D-F92DF00215AE": "Microsoft reserved",
    "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7": "Microsoft basic data",
    "5808C8AA-7E8F-42E0-85D2-E1E90434CFB3": "Microsoft LDM metadata",
    "AF9B60A0-1431-4F62-BC68-3311714A69AD": "Microsoft LDM data",
    "DE94BBA4-06D1-4D40-A16A-BFD50179D6AC": "Windows recovery environment",
    "E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D": "Microsoft Storage Spaces",
    "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F": "Linux swap",
    "0FC63DAF-8483-4772-8E79-3D69D8477DE4": "Linux filesystem",
    "3B8F8425-20E0-4F3B-907F-1A25A76F98E8": "Linux server data",
    "44479540-F297-41B2-9AF7-D131D5F0458A": "Linux root (x86)",
    "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709": "Linux root (x86-64)",
    "69DAD710-2CE4-4E3C-B16C-21A1D49ABED3": "Linux root (ARM)",
    "B921B045-1DF0-41C3-AF44-4C6F280D3FAE": "Linux root (ARM-64)",
    "72EC70A6-CF74-40E6-BD49-4BDA08E8F224": "Linux root (RISC-V-64)",
    "C31C45E6-3F39-412E-80FB-4809C4980599": "Linux root (PPC64LE)",
    "5EEAD9A9-FE09-4A1E-A1D7-520D00531306": "Linux root (S390X)",
    "77055800-792C-4F94-B39A-98C91B762BB6": "Linux root (LoongArch-64)",
    "8DA63339-0007-60C0-C436-083AC8230908": "Linux reserved",
    "933AC7E1-2EB4-4F13-B844-0E14E2AEF915": "Linux home",
    "A19D880F-05FC-4D3B-A006-743F0F84911E": "Linux RAID",
    "E6D6D379-F507-44C2-A23C-238F2A3DF928": "Linux LVM",
    "4D21B016-B534-45C2-A9FB-5C16E091FD2D": "Linux variable data",
    "7EC6F557-3BC5-4ACA-B293-16EF5DF639D1": "Linux temporary data",
    "8484680C-9521-48C6-9C11-B0720656F69E": "Linux /usr (x86-64)",
    "B0E01050-EE5F-4390-949A-9101B17104E9": "Linux /usr (ARM-64)",
    "2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5": "Linux root verity (x86-64)",
    "DF3300CE-D69F-4C92-978C-9BFB0F38D820": "Linux root verity (ARM-64)",
    "BC13C2FF-59E6-4262-A352-B275FD6F7172": "Linux extended boot",
    "773F91EF-66D4-49B5-BD83-D683BF40AD16": "Linux user's home",
    "516E7CB4-6ECF-11D6-8FF8-00022D09712B": "FreeBSD data",
    "83BD6B9D-7F41-11DC-BE0B-001560B84F0F": "FreeBSD boot",
    "516E7CB5-6ECF-11D6-8FF8-00022D09712B": "FreeBSD swap",
    "516E7CB6-6ECF-11D6-8FF8-00022D09712B": "FreeBSD UFS",
    "516E7CBA-6ECF-11D6-8FF8-00022D09712B": "FreeBSD ZFS",
    "516E7CB8-6ECF-11D6-8FF8-00022D09712B": "FreeBSD Vinum",
    "48465300-0000-11AA-AA11-00306543ECAC": "Apple HFS/HFS+",
    "7C3457EF-0000-11AA-AA11-00306543ECAC": "Apple APFS",
    "55465300-0000-11AA-AA11-00306543ECAC": "Apple UFS",
    "52414944-0000-11AA-AA11-00306543ECAC": "Apple RAID",
    "426F6F74-0000-11AA-AA11-00306543ECAC": "Apple boot",
    "53746F72-6167-11AA-AA11-00306543ECAC": "Apple Core storage",
    "6A82CB45-1DD2-11B2-99A6-080020736631": "Solaris boot",
    "6A85CF4D-1DD2-11B2-99A6-080020736631": "Solaris root",
    "6A898CC3-1DD2-11B2-99A6-080020736631": "Solaris /usr & Apple ZFS",
    "6A87C46F-1DD2-11B2-99A6-080020736631": "Solaris swap",
    "49F48D32-B10E-11DC-B99B-0019D1879648": "NetBSD swap",
    "49F48D5A-B10E-11DC-B99B-0019D1879648": "NetBSD FFS",
    "49F48D82-B10E-11DC-B99B-0019D1879648": "NetBSD LFS",
    "824CC7A0-36A8-11E3-890A-952519AD3F61": "OpenBSD data",
    "FE3A2A5D-4F32-41A7-B725-ACCC3285A309": "ChromeOS kernel",
    "3CB8E202-3B7E-47DD-8A3C-7FF2A13CFCEC": "ChromeOS root fs",
    "AA31E02A-400F-11DB-9590-000C2911D1B8": "VMware VMFS",
    "9D275380-40AD-11DB-BF97-000C2911D1B8": "VMware Diagnostic",
    "4FBD7E29-9D25-41B8-AFD0-062C0CEFF05D": "Ceph OSD",
    "45B0969E-9B03-4F30-B4C6-B4B80CEFF106": "Ceph Journal",
}


def mbr_type(code: int) -> str:
    """An MBR type byte as it is shown: "0x83"."""
    return f"0x{code:02x}"


def mbr_type_name(code: int) -> str:
    """What the MBR type `code` (0 to 255) is called; "" where this table does not know it."""
    return _MBR_NAMES.get(code, "")


def gpt_type_name(guid: str) -> str:
    """What the GPT type `guid` is called; "" where this table does not know it."""
    return _GPT_NAMES.get(guid.upper(), "")


class Alias(NamedTuple):
    """Words for one type; None where that kind of table has none.  A single letter is a capital."""

    words: tuple[str, ...]
    mbr: int | None
    gpt: str | None


_BASIC_DATA = "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"

ALIASES = (
    Alias(("linux", "L"), 0x83, "0FC63DAF-8483-4772-8E79-3D69D8477DE4"),
    Alias(("swap", "S"), 0x82, "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"),
    Alias(("esp", "efi", "uefi", "U"), 0xEF, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"),
    Alias(("lvm", "V"), 0x8E, "E6D6D379-F507-44C2-A23C-238F2A3DF928"),
    Alias(("raid", "R"), 0xFD, "A19D880F-05FC-4D3B-A006-743F0F84911E"),
    Alias(("home", "H"), None, "933AC7E1-2EB4-4F13-B844-0E14E2AEF915"),
    Alias(("extended", "E"), 0x05, None),
    Alias(("extended-lba",), 0x0F, None),
    Alias(("linuxex", "X"), 0x85, None),
    Alias(("fat12",), 0x01, _BASIC_DATA),
    Alias(("fat16",), 0x06, _BASIC_DATA),
    Alias(("fat16-lba",), 0x0E, _BASIC_DATA),
    Alias(("fat32",), 0x0C, _BASIC_DATA),
    Alias(("fat32-chs",), 0x0B, _BASIC_DATA),
    Alias(("ntfs", "exfat", "msdata"), 0x07, _BASIC_DATA),
    Alias(("msr",), None, "E3C9E316-0B5C-4DB8-817D-F92DF00215AE"),
    Alias(("winre",), 0x27, "DE94BBA4-06D1-4D40-A16A-BFD50179D6AC"),
    Alias(("bios-boot",), None, "21686148-6449-6E6F-744E-656564454649"),
    Alias(("prep",), 0x41, "9E1A2D38-C612-4316-AA26-8B49521E5A8B"),
    Alias(("boot", "xbootldr"), 0xEA, "BC13C2FF-59E6-4262-A352-B275FD6F7172"),
    Alias(("root-x86-64",), None, "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"),
    Alias(("root-arm64",), None, "B921B045-1DF0-41C3-AF44-4C6F280D3FAE"),
    Alias(("freebsd",), 0xA5, "516E7CB4-6ECF-11D6-8FF8-00022D09712B"),
    Alias(("openbsd",), 0xA6, "824CC7A0-36A8-11E3-890A-952519AD3F61"),
    Alias(("hfs",), 0xAF, "48465300-0000-11AA-AA11-00306543ECAC"),
    Alias(("vmfs",), 0xFB, "AA31E02A-400F-11DB-9590-000C2911D1B8"),
)
"""In the order in which they are listed to a person."""

_HEX = re.compile(r"(?:0[xX])?([0-9a-fA-F]{1,2})")
_GUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


_DOS_NAMES = {
    0: "Amiga OFS", 1: "Amiga FFS", 2: "Amiga OFS-INTL", 3: "Amiga FFS-INTL", 4: "Amiga OFS-DC",
    5: "Amiga FFS-DC", 6: "Amiga OFS-LNFS", 7: "Amiga FFS-LNFS",
}  # fmt: skip
_RDB_NAMES = {
    b"LNX": "Linux", b"SWP": "Linux swap", b"NBR": "NetBSD root", b"NBU": "NetBSD",
    b"NBS": "NetBSD swap", b"PFS": "PFS", b"PDS": "PFS", b"SFS": "SmartFileSystem",
    b"muF": "MultiUser FFS", b"UNI": "Amiga UNIX", b"CDF": "CD file system",
}  # fmt: skip


def rdb_type_name(dos_type: int) -> str:
    """What people call the type of an Amiga's partition, its four letters where that is not known.

    Its first three bytes name the file system and the last one the variant.
    """
    letters, variant = dos_type.to_bytes(4, "big")[:3], dos_type & 0xFF
    if letters == b"DOS" and variant in _DOS_NAMES:
        return _DOS_NAMES[variant]
    if letters in _RDB_NAMES:
        return _RDB_NAMES[letters]
    text = letters.decode("latin-1")
    return f"{text}\\{variant}" if text.isprintable() and text.isascii() else ""


def parse_mbr_type(text: str) -> int:
    """The MBR type, 0 to 255, that `text` stands for: an alias, hexadecimal digits, or a name.

    As in sfdisk's scripts, "E" is the alias and "0E" and "e" are digits.  A name is one that
    `mbr_type_name` gives, whatever its case and punctuation.  Raises InvalidArgument.
    """
    for alias in ALIASES:
        if alias.mbr is not None and _is_word_of(text, alias):
            return alias.mbr
    digits = _HEX.fullmatch(text)
    if digits is not None:
        return int(digits[1], 16)
    for code, name in _MBR_NAMES.items():
        if _letters(name) == _letters(text):
            return code
    known = ", ".join(alias.words[0] for alias in ALIASES if alias.mbr is not None)
    raise InvalidArgument(
        f"{text[:40]!r} is no type of an MBR partition",
        hint=f"it is two hexadecimal digits, such as 83, or one of {known}",
    )


def parse_gpt_type(text: str) -> str:
    """The type GUID, in upper case, that `text` stands for: an alias, a GUID, or a name.

    A name is one that `gpt_type_name` gives, whatever its case and punctuation.  Raises
    InvalidArgument, also for the GUID of all zeros, which marks an entry that is not in use.
    """
    for alias in ALIASES:
        if alias.gpt is not None and _is_word_of(text, alias):
            return alias.gpt
    if _GUID.fullmatch(text) and UUID(text).int != 0:
        return text.upper()
    for guid, name in _GPT_NAMES.items():
        if _letters(name) == _letters(text):
            return guid
    known = ", ".join(alias.words[0] for alias in ALIASES if alias.gpt is not None)
    raise InvalidArgument(
        f"{text[:40]!r} is no type of a GPT partition",
        hint=f"it is a GUID, or one of {known}",
    )


def _is_word_of(text: str, alias: Alias) -> bool:
    return text in alias.words or (len(text) > 1 and text.lower() in alias.words)


def _letters(text: str) -> str:
    """`text` without what sfdisk does not look at in a name: case and punctuation."""
    return "".join(char for char in text.lower() if char.isalnum())
