"""The suite for every disk, on volumes; and V commutes for them, wherever their extents lie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from conformance import DiskConformance
from drive_cases import LAYOUTS, volume_subject
from model import DiskMachine, Subject, host_folder


class TestVolumes(DiskConformance):
    @pytest.fixture(params=LAYOUTS)
    def subject(self, request: pytest.FixtureRequest) -> Iterator[Subject]:
        with host_folder("memory") as folder:
            yield volume_subject(folder, request.param)


class VolumeCommutes(DiskMachine):
    """Begins with a volume in one of the layouts, beside another one."""

    def __init__(self) -> None:
        super().__init__()
        self.made = ExitStack()

    @initialize(layout=st.sampled_from(LAYOUTS))
    def start(self, layout: str) -> None:
        folder = self.made.enter_context(host_folder("memory"))
        self.begin(volume_subject(folder, layout))

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.made.close()


TestVolumeCommutes = VolumeCommutes.TestCase
TestVolumeCommutes.settings = settings(max_examples=25, stateful_step_count=15)


@pytest.mark.slow
class TestVolumeCommutesLong(VolumeCommutes.TestCase):
    settings = settings(max_examples=200, stateful_step_count=30)
