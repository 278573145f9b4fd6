"""vdisk: virtual disks for Linux, as files you can touch.

This package is the disk itself: geometry, translation, image formats, partition tables, stores
and the commands.  It knows nothing of FUSE, trio or the `mount` package, which stand above it.
"""

from __future__ import annotations

__version__ = "0.1.0"
