"""Measure how fast a disk is through vdisk, beside the host file and what else could carry it.

`scripts/bench` runs it; docs/performance.md says what is measured and how.
"""
