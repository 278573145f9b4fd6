"""QCOW2, versions 2 and 3, with all that QEMU 7 writes but encryption.

    opening, create      an image is opened with the files it names, and made
    image                what `ImageFormat` asks: where guest bytes are; the plans come from
    write                  a place for guest clusters, or none
    resize                 another size
    space, refcounts       clusters of the file: counted ahead, handed out, given up
    snapshots, flags       internal snapshots; who else has a cluster
    check, census, rebuild what is wrong, what is used by what, and counts made anew
    header, entry, l2, counts, tally, snapshot_table, bitmaps
                           what is on disk, and how it is held in memory
"""
