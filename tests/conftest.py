"""Fixtures: a folder of one's own, a person, and mounts that are always taken down."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import harness
from harness import Mounted, Person, mount, ordinary_user
from stores import Store

settings.register_profile(
    "vdisk", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("vdisk")

# Modules whose tests are quick enough to be run on both servers each time; of the others, those on
# the second server are slow.
DOUBLED = (
    "test_mount_names", "test_mount_operations", "test_mount_attributes", "test_mount_fat",
    "test_mount_coherence", "test_mount_killed",
)  # fmt: skip

PEOPLE = ["root", "user"] if os.geteuid() == 0 else ["user"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--server", choices=harness.SERVERS, help="mount with this server only, in all tests"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The tests of mounts are run on each server, unless one was chosen.

    A module that is about what one server alone can do names it: ONE_SERVER.
    """
    module = metafunc.module.__name__
    own = getattr(metafunc.module, "ONE_SERVER", None)
    only = own or metafunc.config.getoption("--server")
    if only is not None:
        metafunc.parametrize("server", [only], indirect=True, scope="module")
    elif module.startswith("test_mount_"):
        first, *others = harness.SERVERS
        marks = [] if module in DOUBLED else [pytest.mark.slow]
        servers = [first, *(pytest.param(name, marks=marks) for name in others)]
        metafunc.parametrize("server", servers, indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The FUSE server that `vdisk mount` is given; `auto` outside the tests of mounts."""
    harness.chosen.server = getattr(request, "param", "auto")
    yield harness.chosen.server
    harness.chosen.server = "auto"


@pytest.fixture(params=PEOPLE)
def person(request: pytest.FixtureRequest) -> Person:
    """Root, then an ordinary user."""
    return Person() if request.param == "root" else ordinary_user()


@pytest.fixture
def place(person: Person) -> Iterator[Path]:
    """An empty folder that belongs to `person`."""
    folder = person.folder()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def mounts(person: Person, place: Path) -> Iterator[Callable[..., Mounted]]:
    """`mounts(image, …, options=…)` mounts as `person` on a new folder in `place`."""
    made: list[Mounted] = []

    def make(*sources: Path, options: tuple[str, ...] = ()) -> Mounted:
        mounted = mount(person, sources, place / f"mnt{len(made)}", *options)
        made.append(mounted)
        return mounted

    yield make
    for mounted in made:
        mounted.end()


@pytest.fixture(scope="module", params=PEOPLE)
def module_person(request: pytest.FixtureRequest) -> Person:
    """As `person`, for mounts that all tests of a module share."""
    return Person() if request.param == "root" else ordinary_user()


@pytest.fixture(scope="module")
def shared_store(module_person: Person, server: str) -> Iterator[Store]:
    """The mounted folder behind `store`."""
    folder = module_person.folder()
    module_person.run("mkdir", folder / "disks")
    mounted = mount(module_person, [folder / "disks"], folder / "mnt")
    yield Store(mounted, folder / "disks")
    mounted.end()
    shutil.rmtree(folder)


@pytest.fixture
def store(shared_store: Store) -> Iterator[Store]:
    """An empty mounted folder.  One mount for a module's tests: that each ends clean is checked."""
    yield shared_store
    shared_store.clear()
