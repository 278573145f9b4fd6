"""`vdisk completion`: what makes a shell complete vdisk's commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from vdisk.cli.params import examples


@click.command(
    epilog=examples(
        'eval "$(vdisk completion bash)"                               # in ~/.bashrc',
        'eval "$(vdisk completion zsh)"                                # in ~/.zshrc',
        "vdisk completion fish > ~/.config/fish/completions/vdisk.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    It calls the `vdisk` command that is on the PATH.
    """
    program = click.get_current_context().find_root()
    kind = get_completion_class(shell)
    assert kind is not None  # The argument's choices are click's own.
    name = program.info_name or "vdisk"
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    click.echo(kind(program.command, {}, name, variable).source())
