"""The suite for every disk, on raw images, their slices and their partitions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conformance import DiskConformance
from model import PLACES, Subject, host_folder
from raw_subjects import LAYERS, SECTOR_SIZES, raw_subject


class TestRaw(DiskConformance):
    """At the sizes in use; sectors of other sizes are in `test_disk_commutes`."""

    @pytest.fixture(params=LAYERS)
    def layer(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture(params=[512, 4096])
    def sector_size(self, request: pytest.FixtureRequest) -> int:
        return int(request.param)

    @pytest.fixture(params=sorted(PLACES))
    def subject(
        self, request: pytest.FixtureRequest, layer: str, sector_size: int
    ) -> Iterator[Subject]:
        with host_folder(request.param) as folder:
            tail = 0 if layer == "partition" else 100
            yield raw_subject(folder, layer, sector_size, 26, tail)


class TestOddSectorSizes(DiskConformance):
    """Every sector size there is, on a whole image."""

    @pytest.fixture(params=sorted(set(SECTOR_SIZES) - {512, 4096}))
    def subject(self, request: pytest.FixtureRequest) -> Iterator[Subject]:
        with host_folder("memory") as folder:
            yield raw_subject(folder, "whole", request.param, 13, 0)
