"""Directories that appear whole or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmn_fast.types import InputError


@contextmanager
def new_directory(output: Path, argument: str) -> Iterator[Path]:
    """Give a directory to fill, beside `output`, and give it that name when the block has ended well.

    Otherwise nothing is left of it, nor of the parents that were made for it, unless something else is in them by then.

    Args:
        output: directory to create; must not exist.
        argument: name of the argument that it came from, for messages.

    Raises:
        InputError: the system refuses (any OSError of the block is taken for that).
    """
    # Not the process's number: containers that share a disk have equal ones.
    partial = output.with_name(f".{output.name}.partial-{secrets.token_hex(6)}")
    made: list[Path] = []
    try:
        for parent in reversed(output.parents):
            if not parent.exists():
                with suppress(FileExistsError):  # somebody else's by now
                    parent.mkdir()
                    made.append(parent)
        partial.mkdir()
        yield partial
        partial.rename(output)
    except OSError as error:
        raise InputError(f"{argument}: {output}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in reversed(made):
            with suppress(OSError):  # not empty, as always where all went well
                parent.rmdir()
