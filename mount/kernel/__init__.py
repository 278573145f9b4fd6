"""The FUSE server that speaks the kernel's protocol itself, on trio.

`mounting` gets a mount and its descriptor, `device` reads from and writes to that, `operations`
has a handler for each request, and `server` is the loop.  The bytes are `mount.wire`'s.
"""
