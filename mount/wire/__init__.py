"""The FUSE protocol between the Linux kernel and a server, as bytes: no descriptor, no waiting.

`requests` turns what is read from /dev/fuse into typed messages, `replies` turns answers and
notifications into what is written to it, and `negotiation` agrees on a version and on abilities.
All of it follows the kernel's include/uapi/linux/fuse.h, protocol 7.31 to 7.45: every number is of
the machine's own byte order, strings end with a NUL, and each message begins with its length.

A request is read whole, by one read.  Each is answered once, by one write that carries its
`unique` number, but for those that `NO_REPLY` names.  A reply with the error -ENOSYS tells the
kernel that the server does not have this operation; for most it then never asks again.
"""
