"""Image formats: how a disk is laid out in a host file.

A format decides, the disk does.  A format is handed an open `HostFile`, reads its own tables
through it, and answers where guest bytes are; `vdisk/disk.py` alone moves guest data.  The one
place that maps a format's name to its module is `vdisk.formats.registry`.
"""
