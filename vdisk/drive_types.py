"""Fixed disks that PCs knew by a type number.

The number alone does not name a geometry, since every maker's BIOS had a table of its own, so the
profiles say whose table they mean: `at-2` is type 2 of the IBM AT.
"""

from __future__ import annotations

from vdisk.chs import Geometry

# Cylinders and heads; always 17 sectors per track of 512 bytes (IBM 5170 Technical Reference, types
# 1 to 23; type 15 is reserved, and means that the real type stands in another CMOS byte).
_AT = {
    1: (306, 4), 2: (615, 4), 3: (615, 6), 4: (940, 8), 5: (940, 6), 6: (615, 4), 7: (462, 8),
    8: (733, 5), 9: (900, 15), 10: (820, 3), 11: (855, 5), 12: (855, 7), 13: (306, 8), 14: (733, 7),
    16: (612, 4), 17: (977, 5), 18: (977, 7), 19: (1024, 7), 20: (733, 5), 21: (733, 7),
    22: (733, 5), 23: (306, 4),
}  # fmt: skip

# The switches of the Xebec controller in the IBM XT.
_XT = {0: (306, 2), 1: (375, 8), 2: (306, 6), 3: (306, 4)}

# The PC-98's SASI disks, 33 sectors per track of 256 bytes (the table of NP2kai's `sxsihdd.c`).
_PC98 = {0: (153, 4), 1: (310, 4), 2: (310, 6), 3: (310, 8), 4: (615, 4), 5: (615, 6), 6: (615, 8)}

AT_TYPES = {number: Geometry(c, h, 17) for number, (c, h) in _AT.items()}
XT_TYPES = {number: Geometry(c, h, 17) for number, (c, h) in _XT.items()}
PC98_SASI_TYPES = {number: Geometry(c, h, 33, 256) for number, (c, h) in _PC98.items()}

DRIVE_TYPES = {
    **{f"at-{number}": geometry for number, geometry in AT_TYPES.items()},
    **{f"xt-{number}": geometry for number, geometry in XT_TYPES.items()},
    **{f"pc98-{number}": geometry for number, geometry in PC98_SASI_TYPES.items()},
}
"""Every drive type under its profile's name."""
