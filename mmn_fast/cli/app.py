"""The Typer application: commands register with it, and it turns signals and errors into exit statuses and sentences.

Results go to stdout, progress and messages to stderr. Exit status 2 means bad input: one sentence names the argument,
what was expected and what came. Exit status 1 means that a result could not be written: one sentence says which and
why, and all other requested results exist.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

from mmn_fast.cli.names import Commands
from mmn_fast.cli.output import show
from mmn_fast.cli.streams import abandon_stdout, prepare_streams, stdout_error, warnings_as_lines
from mmn_fast.errors import BackendUnavailable, InputError, WriteError
from mmn_fast.version import __version__

app = Commands(
    name="mmn-fast",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        show(f"mmn-fast {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Temporal grounding with the Mutual Matching Network: find the moments that sentences describe."""


@contextmanager
def removing_what_is_half_written() -> Iterator[None]:
    """Let SIGTERM end the process like Ctrl-C, through every `finally`.

    `main` runs every command inside this context. A command called as a Python function runs without it.

    If Python runs on behalf of C (a callback, a destructor), the exception may be swallowed or replaced. So the signal
    is raised again until an exception is propagating.
    """
    status, told = 128 + signal.SIGTERM, False

    def stop(number: int, frame: object) -> None:
        nonlocal told
        if not told or sys.exc_info()[1] is None:  # otherwise an exception is already running the cleanups
            told = True
            signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
            sys.exit(status)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGALRM)}
    try:
        yield
    except Exception:
        if not told:
            raise
        sys.exit(status)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Run the command line; bad input is one sentence on stderr and exit status 2, a failed result status 1."""
    prepare_streams()
    with warnings_as_lines(), removing_what_is_half_written():
        try:
            app()
        except (InputError, BackendUnavailable) as error:
            _end(str(error), 1 if isinstance(error, WriteError) else 2)
        except OSError as error:
            if error.filename is not None:  # a file that the user named
                _end(f"{error.filename}: {error.strerror}", 2)
            refused = stdout_error()
            if refused is None:
                raise
            abandon_stdout()
            _end(f"stdout: {refused.strerror}", 1)


def _end(sentence: str, status: int) -> NoReturn:
    typer.echo(f"mmn-fast: {sentence}", err=True)
    sys.exit(status)
