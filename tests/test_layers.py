"""The layers of ARCHITECTURE.md, by walking the imports and the calls in the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VDISK = sorted((ROOT / "vdisk").rglob("*.py"))
MOUNT = sorted((ROOT / "mount").rglob("*.py"))

RANKS = (
    {"errors"},
    {"units", "locks", "birth", "options"},
    {"host", "chs", "codec", "gate", "ahead"},
    {"extent", "geometry", "record"},
    {"plan"},
    {"formats", "recognise"},
    {"disk", "requests", "partitioning"},
    {"image_disk", "transfer", "contents"},
    {"copying"},
    {"parents", "partitions", "disk_geometry", "scratch"},
    {"volume"},
    {"drive_steps"},
    {"drive"},
    {"find_drives"},
    {"open"},
    {"holdings"},
    {"describe", "create", "repartition", "drive_init", "compare"},
    {"describe_drive", "convert", "overlay", "compact", "snapshots"},
    {"store"},
    {"drive_store", "scratch_store"},
    {"stores"},
    {"copies"},
    {"cli"},
)
"""Lower layers first.  What a rank names must not import from a later one."""


def trees(paths: list[Path]) -> Iterator[tuple[str, ast.Module]]:
    for path in paths:
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text(), str(path))


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Full names of modules imported anywhere in `tree`, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "") if node.level else node.module or ""
            if node.module == package:
                yield from (f"{package}.{alias.name}" for alias in node.names)


def test_the_walk_finds_imports_of_every_form() -> None:
    """The test of the test: a walk that finds nothing would pass all that follow."""
    source = "import a.b\nfrom c import d\ndef f():\n    import e\n    from vdisk import host\n"
    assert set(imported(ast.parse(source), "vdisk")) == {"a.b", "c", "e", "vdisk", "vdisk.host"}
    assert len(VDISK) > 20
    assert len(MOUNT) > 5


@pytest.mark.parametrize("path", VDISK, ids=lambda path: str(path.relative_to(ROOT)))
def test_vdisk_knows_nothing_of_fuse_trio_or_mount(path: Path) -> None:
    tree = ast.parse(path.read_text())
    tops = {name.partition(".")[0] for name in imported(tree, "vdisk")}
    assert not tops & {"mount", "trio", "pyfuse3", "fuse", "asyncio", "tests"}


@pytest.mark.parametrize("path", VDISK, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_command_line_knows_of_click_and_rich(path: Path) -> None:
    tops = {name.partition(".")[0] for name in imported(ast.parse(path.read_text()), "vdisk")}
    assert "cli" in path.parts or not tops & {"click", "rich"}


def test_imports_inside_vdisk_point_down() -> None:
    rank = {name: number for number, names in enumerate(RANKS) for name in names}
    wrong = []
    for path, tree in trees(VDISK):
        here = rank.get(Path(path).relative_to("vdisk").parts[0].removesuffix(".py"))
        if here is None:
            continue
        for node in ast.walk(tree):
            if _only_for_types(node):
                node.body.clear()  # type: ignore[attr-defined]
        for name in imported(tree, "vdisk"):
            parts = name.split(".")
            if parts[0] == "vdisk" and len(parts) > 1 and rank.get(parts[1], -1) > here:
                wrong.append(f"{path} imports {name}")
    assert not wrong


def _only_for_types(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def test_only_mount_errors_chooses_an_errno_for_a_kind_of_error() -> None:
    """No other module asks for a kind's errno by a table of its own.

    A server may name an errno where no error of vdisk is behind it (a request it does not know), so
    what is looked for is a module that puts kinds of DiskError and errno values side by side.
    """
    kinds = _kinds_of_error()
    choosing = []
    for path, tree in trees(VDISK + MOUNT):
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict | ast.Tuple | ast.IfExp) and _pairs(node, kinds):
                choosing.append(path)
    assert set(choosing) == {"mount/errors.py"}


def _kinds_of_error() -> set[str]:
    tree = ast.parse((ROOT / "vdisk/errors.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def _pairs(node: ast.AST, kinds: set[str]) -> bool:
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    errnos = any(
        isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "errno"
        for n in ast.walk(node)
    )
    return bool(names & kinds) and errnos


def test_requests_are_split_in_one_place() -> None:
    """`Extent.cut` is what a split loop calls, and `pieces` is the only loop that calls it.

    Two others call it to say more about one extent, which splits no request: `_with_holes` tells
    holes from data, and `fiemap.placed` where on the device it is.
    """
    callers = set()
    for path, tree in trees(VDISK + MOUNT):
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Attribute) and node.attr == "cut":
                        callers.add((path, function.name))
    telling = {("vdisk/image_disk.py", "_with_holes"), ("vdisk/fiemap.py", "placed")}
    assert callers - telling == {("vdisk/extent.py", "pieces")}
