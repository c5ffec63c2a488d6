"""The `hamirt` command: finds the subcommand, and turns every error into one sentence and an exit code."""

import importlib
import os
import sys
from typing import Any, NoReturn

import click

from hamirt import __version__
from hamirt.errors import REFUSED, RUN_ERROR, USAGE, HamirtError

_COMMANDS = (
    "run", "set", "rm", "status", "daemon", "doctor", "cdi", "oci-hook", "install-library", "completion", "demo",
)  # fmt: skip
_INTERRUPTED = 130


class LazyGroup(click.Group):
    """Imports a command's module when it is asked for, since `hamirt run` starts other programs and must be quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"hamirt.cli.{cmd_name.replace('-', '_')}").command
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hamirt")
def cli() -> None:
    """One GPU, several containers, each with a hard memory cap."""


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 refused, 2 usage; `hamirt run` has codes of its own."""
    arguments = sys.argv[1:] if argv is None else argv
    is_run = next((word for word in arguments if not word.startswith("-")), None) == "run"
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller closed it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    try:
        result: Any = cli.main(arguments, prog_name="hamirt", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()
    except click.UsageError as error:
        error.show()
        code = RUN_ERROR if is_run else USAGE
    except click.exceptions.Exit as exit_request:
        code = exit_request.exit_code
    except HamirtError as error:
        click.echo(f"hamirt: {error}", err=True)
        code = error.exit_code or (RUN_ERROR if is_run else REFUSED)
    except (click.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        sys.stdout = None
        code = 0
    except OSError as error:
        sys.stdout = None
        click.echo(f"hamirt: {error}", err=True)
        code = RUN_ERROR if is_run else REFUSED
    sys.exit(code)
