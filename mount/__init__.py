"""The mounted folder: what is shown, the operations on it, and the FUSE servers that carry them.

This package stands on `vdisk` and is the only one that knows of FUSE and trio.
"""
