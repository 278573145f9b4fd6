"""V commutes: no sequence of operations tells a disk from a plain byte array.

A thousand sequences for raw images and their parts, at every sector size, on the machine's file
system and on tmpfs.  What is compared after each step is told in `model`.
"""

from __future__ import annotations

from contextlib import ExitStack

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from model import PLACES, DiskMachine, host_folder
from raw_subjects import LAYERS, SECTOR_SIZES, raw_subject


class RawCommutes(DiskMachine):
    """Begins with a whole image, a slice, a slice of a slice or a partition."""

    def __init__(self) -> None:
        super().__init__()
        self.made = ExitStack()

    @initialize(
        place=st.sampled_from(sorted(PLACES)),
        layer=st.sampled_from(LAYERS),
        sector_size=st.sampled_from(SECTOR_SIZES),
        sectors=st.integers(1, 20),
        tail=st.integers(0, 127),
    )
    def start(self, place: str, layer: str, sector_size: int, sectors: int, tail: int) -> None:
        folder = self.made.enter_context(host_folder(place))
        if layer == "partition":
            tail = 0  # A table counts whole sectors.
        self.begin(raw_subject(folder, layer, sector_size, sectors, tail))

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.made.close()


TestRawCommutes = RawCommutes.TestCase
TestRawCommutes.settings = settings(max_examples=1000, stateful_step_count=15)
