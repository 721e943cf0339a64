"""Output of commands: the result first, then by-products. If one of them fails, the others are still made."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from mmn_fast.cli.streams import abandon_stdout
from mmn_fast.errors import BackendUnavailable, InputError

_BROKEN_PIPE = 141  # a shell's status for a tool that a closed pipe ended: 128 + SIGPIPE


class Output:
    """Output of a command: a result on stdout, and by-products (pages, predictions).

    Attributes:
        status: the exit status so far: 0, 1 after a failure, 141 if the reader of a pipe has gone.
        failures: one sentence per failed by-product.
    """

    def __init__(self) -> None:
        self.status = 0
        self.failures: list[str] = []

    def show(self, text: str) -> None:
        """Print a part of the result. If stdout refuses it, print it to stderr: an hour's work may be behind it."""
        try:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            self.status = self.status or _BROKEN_PIPE
            abandon_stdout()
        except OSError as error:
            self.status = 1
            abandon_stdout()
            typer.echo(f"mmn-fast: stdout: {error.strerror or error}; the result follows\n{text}", err=True)

    def beside(self, name: str, work: Callable[[], object]) -> bool:
        """Make a by-product; a failure is one sentence on stderr and exit status 1 when the command ends.

        Args:
            name: the option that asks for the by-product, or another name for the sentence.
            work: makes the by-product.

        Returns:
            Whether the by-product was made.
        """
        try:
            work()
        except (InputError, BackendUnavailable, MemoryError) as error:
            self.fail(name, error)
        except OSError as error:
            self.fail(name, f"{error.filename or 'cannot write'}: {error.strerror or error}")
        else:
            return True
        return False

    def fail(self, name: str, why: object) -> None:
        """Report that a by-product failed."""
        reason = str(why) or type(why).__name__
        for argument in ("path", name.lstrip("-").replace("-", "_")):  # names that the failing function may use
            reason = reason.removeprefix(f"{argument}: ")
        sentence = f"{name}: {reason}"
        self.failures.append(sentence)
        self.status = 1
        typer.echo(f"mmn-fast: {sentence}", err=True)


@contextmanager
def output() -> Iterator[Output]:
    """Give a command its `Output`; failures become the exit status after everything else has been tried.

    Raises:
        typer.Exit: something failed.
    """
    given = Output()
    yield given
    if given.status:
        raise typer.Exit(given.status)


def show(text: str) -> None:
    """Print a result that has no by-products."""
    with output() as given:
        given.show(text)
