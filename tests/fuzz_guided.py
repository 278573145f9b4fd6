"""The fuzz driver that coverage guides: inputs that reach new code are kept and changed further.

    scripts/fuzz                                     the images that there are to begin with
    scripts/fuzz "vdi of qemu"                       until it fails, or Ctrl-C
    scripts/fuzz all -max_total_time=600             each for ten minutes, one after the other
    scripts/fuzz "vdi of qemu" .fuzz/vdi-of-qemu/crash-...     what broke the contract, once more

An input is what the headers and tables of an image hold (`fuzz_formats.Subject`); the contract is
the same.  What was found is kept in .fuzz, so that the next run goes on from there.  Options are
libFuzzer's; -help=1 prints them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack, redirect_stderr
from io import StringIO
from pathlib import Path

import atheris

_INSIDE = "--inside"  # Before the arguments of the process that fuzzes.

with ExitStack() as _seen:
    if sys.argv[1:2] == [_INSIDE]:
        _seen.enter_context(redirect_stderr(StringIO()))  # It names every module.
        _seen.enter_context(atheris.instrument_imports(include=["vdisk"]))
    from fuzz_formats import MEMORY_MAX, SEEDS, Seed, Subject, memory

KEPT = Path(__file__).resolve().parent.parent / ".fuzz"
_TIMEOUT_SECONDS = 20  # Of one input: what takes longer is a hang.
_INTERRUPTED_STATUS = 130


def main() -> int:
    """Fuzz from the image that is named, or from each of them; the exit status."""
    name, *options = sys.argv[1:] or [""]
    seeds = [seed for seed in SEEDS if name in ("all", seed.name)]
    if not seeds:
        print("name one of these, or all:", *(seed.name for seed in SEEDS), sep="\n    ")
        return 2
    try:
        return max([_run(seed, options) for seed in seeds])
    except KeyboardInterrupt:
        return _INTERRUPTED_STATUS


def _run(seed: Seed, options: list[str]) -> int:
    """libFuzzer ends its process, whatever is left to do: it gets one, and this one cleans up."""
    print(f"== {seed.name}", flush=True)
    memory_folder = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="vdisk-fuzz-", dir=memory_folder) as folder:
        line = [sys.executable, __file__, _INSIDE, folder, seed.name, *options]
        return abs(subprocess.run(line, check=False).returncode)


def inside(folder: str, name: str, *options: str) -> None:
    """Fuzz with an image made in `folder`, and end the process."""
    seed = next(seed for seed in SEEDS if seed.name == name)
    corpus = KEPT / name.replace(" ", "-")
    corpus.mkdir(parents=True, exist_ok=True)
    with Subject(seed, Path(folder)) as subject:
        (corpus / "made").write_bytes(subject.content)
        named = any(not option.startswith("-") for option in options)
        settings = [
            f"-artifact_prefix={corpus}/", f"-timeout={_TIMEOUT_SECONDS}", "-len_control=0",
            f"-max_len={len(subject.content)}", *options, *([] if named else [str(corpus)]),
        ]

        def look(data: bytes) -> None:
            before = memory()
            subject.outcome(subject.with_content(data), with_checksums=True)
            grown = memory() - before
            assert grown < MEMORY_MAX, f"memory grew by {grown} bytes"

        atheris.Setup([sys.argv[0], *settings], look)
        atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == [_INSIDE]:
        inside(*sys.argv[2:])
    sys.exit(main())
