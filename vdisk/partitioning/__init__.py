"""Partition tables edited: which bytes change, and in which order, so that a crash loses no table.

    edits     what can be asked for
    placing   where a new partition goes
    draft     a table while it is edited; `mbr_draft` and `gpt_draft` are the two kinds
    commits   the order in which the records of an MBR disk are written
    steps     the answer: ordered writes and barriers
    plan      from edits to steps, all checked

`vdisk.tables` reads; nothing here touches a disk but through a `Reader`.
"""
