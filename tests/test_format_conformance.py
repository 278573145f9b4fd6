"""The suite for every disk, on every format; and V commutes for them, overlays included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from conformance import DiskConformance
from format_cases import CASES, SMALL_CASES, FormatCase, format_subject
from model import DiskMachine, Subject, host_folder


class TestFormats(DiskConformance):
    """Each format at each block size, alone and as a chain of overlays."""

    @pytest.fixture(params=CASES, ids=str)
    def subject(self, request: pytest.FixtureRequest) -> Iterator[Subject]:
        with host_folder("memory") as folder:
            yield format_subject(folder, request.param)


class FormatCommutes(DiskMachine):
    """Begins with an image that has bytes in every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.made = ExitStack()

    @initialize(case=st.sampled_from(SMALL_CASES), blocks=st.integers(1, 6))
    def start(self, case: FormatCase, blocks: int) -> None:
        folder = self.made.enter_context(host_folder("memory"))
        self.begin(format_subject(folder, case, blocks=blocks))

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.made.close()


TestFormatCommutes = FormatCommutes.TestCase
TestFormatCommutes.settings = settings(max_examples=150, stateful_step_count=15)
