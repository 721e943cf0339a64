"""Runs `mmn-fast ARGUMENTS` in this process: a new process takes seconds to start, and few tests need one."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

from mmn_fast.cli import main


def run_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line like its script.

    Returns:
        The exit status and the printed text. Exceptions that the command line does not handle pass through.
    """
    command = ["mmn-fast", *map(str, arguments)]
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    status: object = 0
    with patch.object(sys, "argv", command), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
    assert isinstance(status, int), status
    printed = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(command, status, *printed)
