"""The `vdisk` process: how it starts, how it ends, and what it says."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from cli import COMMAND, done, environment, refused, vdisk
from harness import PATIENCE, ROOT, make_image

COMMANDS = [
    "mount", "umount", "list", "create", "info", "chs", "read", "write", "map", "resize",
    "completion",
]  # fmt: skip


def test_help_starts_within_150_ms() -> None:
    # The best of several: what the machine does besides is not what is measured.
    taken = []
    for _ in range(7):
        begun = time.perf_counter()
        subprocess.run([*COMMAND, "--help"], check=True, capture_output=True, env=environment())
        taken.append(time.perf_counter() - begun)
    assert min(taken) < 0.150


def test_help_reads_no_command_and_nothing_heavy() -> None:
    script = (
        "import sys\nfrom mount.cli import program\n"
        "program().main(['--help'], standalone_mode=False)\n"
        "heavy = {'rich', 'trio', 'pyfuse3', 'vdisk.open', 'mount.session'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, env=environment()
    )


def test_help_lists_every_command() -> None:
    listed = [line.split()[0] for line in done("--help").splitlines() if line.startswith("  ")]
    assert [name for name in listed if name in COMMANDS] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str) -> None:
    text = done(command, "--help")
    assert text.startswith(f"Usage: vdisk {command} ")
    assert f"  vdisk {command}" in text.partition("Examples:")[2] or command == "completion"
    assert max(map(len, text.splitlines())) <= 88


def test_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert done("--version").split()[-1] == project["version"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frobnicate"], "frobnicate"),
        (["info"], "ADDRESS"),
        (["info", "--wrong", "x"], "--wrong"),
        (["create", "x.img"], "--size"),
        (["create", "x.img", "--size", "1X"], "1X"),
        (["create", "x.img", "--size", "1G", "--sector-size", "513"], "513"),
        (["create", "x.img", "--chs", "1/2"], "1/2"),
        (["create", "x.img", "--chs", "1/2/3", "--profile", "ata"], "exclude"),
        (["create", "x.img", "--profile", "nonsense"], "nonsense"),
        (["create", "x.img", "--size", "1M", "--format", "qcow9"], "qcow9"),
        (["read", "x.img", "--lba", "-1"], "-1"),
        (["read", "x.img", "--lba", "1", "--chs", "0/0/1"], "exclude"),
        (["read", "x.img", "--sectors", "1", "--length", "1"], "exclude"),
        (["read", "x.img", "--chs", "0/1"], "0/1"),
        (["write", "x.img", "--chs", "0/0/0"], "sector 0"),
        (["resize", "x.img", "large"], "large"),
        (["chs"], "--size"),
        (["mount", "x.img"], "SOURCE"),
        (["completion", "tcsh"], "tcsh"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(words: list[str], said: str, tmp_path: Path) -> None:
    text = refused(*words, status=2)
    assert said in text
    assert "--help)" in text
    assert not Path("x.img").exists()


def test_no_command_prints_help_and_status_2() -> None:
    ended = vdisk()
    assert ended.returncode == 2
    assert b"Commands:" in ended.stdout + ended.stderr


@pytest.mark.parametrize("command", ["info", "read", "write", "map", "chs"])
def test_missing_file_is_one_line_and_status_1(command: str, tmp_path: Path) -> None:
    text = refused(command, tmp_path / "missing.img")
    assert str(tmp_path / "missing.img") in text
    assert "no such file" in text


@pytest.mark.parametrize("command", ["info", "read", "write", "map"])
def test_bad_images_are_one_line_and_status_1(command: str, tmp_path: Path) -> None:
    (tmp_path / "empty.img").touch()
    (tmp_path / "foreign.img").write_bytes(b"QFI\xfb" + bytes(1020))
    os.mkfifo(tmp_path / "fifo.img")
    assert "empty" in refused(command, tmp_path / "empty.img")
    assert "folder" in refused(command, tmp_path)
    assert "qcow2" in refused(command, tmp_path / "foreign.img")
    assert "neither" in refused(command, tmp_path / "fifo.img")
    assert (tmp_path / "foreign.img").read_bytes() == b"QFI\xfb" + bytes(1020)


def test_a_file_name_cannot_move_the_cursor(tmp_path: Path) -> None:
    text = refused("info", tmp_path / "a\x1b[2Jb\nc.img")
    assert "\x1b" not in text
    assert "a\\x1b[2Jb\\nc.img" in text


def test_a_name_that_is_no_text_is_shown_and_opened(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.img"
    make_image(Path(os.fsdecode(name)), 1 << 20)
    for locale in ("C", "C.UTF-8"):
        ended = subprocess.run(
            [*map(os.fsencode, COMMAND), b"info", name], capture_output=True,
            env=environment(LC_ALL=locale), check=False,
        )  # fmt: skip
        assert ended.returncode == 0
        assert b"1 MiB" in ended.stdout


def test_broken_pipe_is_quiet(tmp_path: Path) -> None:
    # As dd before head: 141 is what a shell shows for SIGPIPE.
    image = make_image(tmp_path / "d.img", 64 << 20)
    for words in (["read", image], ["info", image], ["map", "--json", image], ["--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        ended = subprocess.run(
            [*COMMAND, *map(str, words)], stdout=writer, stderr=subprocess.PIPE,
            env=environment(), check=False,
        )  # fmt: skip
        os.close(writer)
        assert ended.stderr == b""
        assert ended.returncode == 141


def test_full_standard_output_is_an_error(tmp_path: Path) -> None:
    image = make_image(tmp_path / "d.img", 1 << 20)
    for words in (["read", image], ["info", image]):
        with Path("/dev/full").open("wb") as full:
            ended = subprocess.run(
                [*COMMAND, *map(str, words)], stdout=full, stderr=subprocess.PIPE,
                env=environment(), check=False,
            )  # fmt: skip
        assert ended.returncode == 1
        assert os.strerror(errno.ENOSPC).encode() in ended.stderr
        assert ended.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("words", "redirections"),
    [(["read"], ">&-"), (["write"], "<&-"), (["write"], "<&- >&- 2>&-")],
)
def test_closed_standard_files_never_become_the_image(
    words: list[str], redirections: str, tmp_path: Path
) -> None:
    image = make_image(tmp_path / "d.img", 1 << 20)
    line = ["sh", "-c", f'"$@" {redirections}', "sh", *COMMAND, *words, str(image)]
    ended = subprocess.run(line, capture_output=True, env=environment(), check=False)
    assert ended.returncode == 1
    assert image.read_bytes() == bytes(1 << 20)


def test_interrupt_is_status_130(tmp_path: Path) -> None:
    image = make_image(tmp_path / "d.img", 1 << 20)
    # A process that another one's shell put into the background ignores the signal from birth.
    process = subprocess.Popen(
        [*COMMAND, "write", str(image)], stdin=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment(), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdin is not None
    # The pipe holds 64 KiB: when more is taken, the program reads.
    process.stdin.write(bytes(200_000))
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130
    assert b"Traceback" not in said


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_what_click_makes(shell: str) -> None:
    script = done("completion", shell)
    assert f"_VDISK_COMPLETE={shell}_complete" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script.encode(), check=True)


def completions(*words: str) -> list[str]:
    ended = subprocess.run(
        COMMAND, capture_output=True, check=True,
        env=environment(
            _VDISK_COMPLETE="bash_complete", COMP_WORDS=" ".join(["vdisk", *words]),
            COMP_CWORD=str(len(words)),
        ),
    )  # fmt: skip
    return ended.stdout.decode().split()


def test_completion_knows_commands_options_profiles_and_files() -> None:
    assert completions("u") == ["plain,umount"]
    assert set(completions("re")) == {"plain,read", "plain,rebase", "plain,resize"}
    assert "plain,--sector-size" in completions("create", "--s")
    assert completions("create", "x", "--profile", "1.4") == ["plain,1.44M"]
    assert completions("info", "a") == ["file,a"]
    assert completions("info", "--format", "r") == ["plain,raw"]
