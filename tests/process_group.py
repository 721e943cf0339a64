"""Forks groups of processes from a server that has imported PyTorch and the training code once.

Each import takes 5 s of CPU time, and `torch.distributed.run` makes its own process and all its children do it.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(__file__).parents[1]
Work = Callable[..., Any]
Group = Callable[..., list[Any]]


@contextmanager
def group_server() -> Iterator[Group]:
    """Start the server at the first call of what is yielded, `group(work, processes, *arguments)`.

    A call runs `work(*arguments)` in each process of a new group, with the environment that `torch.distributed.run`
    gives to its processes, and returns the results in the order of the ranks, or raises AssertionError with the
    tracebacks. A group of one process has no such environment. `work` is a function of a module; arguments and results
    are pickled.
    """
    servers: list[subprocess.Popen[bytes]] = []

    def group(work: Work, processes: int, *arguments: Any) -> list[Any]:
        if not servers:
            command = [sys.executable, "-m", "tests.process_group"]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            servers.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
        stdin, stdout = servers[0].stdin, servers[0].stdout
        assert stdin is not None
        assert stdout is not None
        pickle.dump((work, processes, arguments), stdin)
        stdin.flush()
        found = pickle.load(stdout)
        failed = [f"process {rank}: {text}" for rank, (good, text) in enumerate(found) if not good]
        assert not failed, "\n".join(failed)
        return [result for _, result in found]

    try:
        yield group
    finally:
        for server in servers:
            assert server.stdin is not None
            server.stdin.close()  # the server ends
            server.wait(60)


def command_line(*arguments: str) -> str:
    """Run `mmn-fast ARGUMENTS` like its script; return what it wrote to stderr, and fail unless its status is 0."""
    from mmn_fast.cli import main

    sys.argv, errors = ["mmn-fast", *arguments], StringIO()
    try:
        with redirect_stderr(errors):
            main()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"status {end.code}: {errors.getvalue()}") from None
    return errors.getvalue()


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    # Every optimizer imports torch._dynamo; a run imports the others when it needs them.
    for name in ("torch._dynamo", "tokenizers", "safetensors.numpy", "rich.progress", "mmn_fast.cli"):
        import_module(name)
    import_module("mmn_fast.training.run.trainer")
    while True:
        try:
            work, processes, arguments = pickle.load(requests)
        except EOFError:
            return
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        children = [_fork(work, rank, processes, port, arguments) for rank in range(processes)]
        pickle.dump([_answer(*child) for child in children], answers)
        answers.flush()


def _fork(work: Work, rank: int, processes: int, port: int, arguments: Sequence[Any]) -> tuple[int, int]:
    """Fork a process that does the work; return its number and the pipe from which its answer can be read."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(2, 1)  # the server's answers go to stdout
            if processes > 1:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                os.environ |= {name: str(value) for name, value in place.items()}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            try:
                answer = pickle.dumps((True, work(*arguments)))
            except BaseException:  # the caller raises the traceback
                answer = pickle.dumps((False, traceback.format_exc()))
            with os.fdopen(theirs, "wb") as pipe:
                pipe.write(answer)
        finally:
            os._exit(0)
    os.close(theirs)
    return child, ours


def _answer(child: int, pipe: int) -> tuple[bool, Any]:
    with os.fdopen(pipe, "rb") as file:
        content = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return pickle.loads(content) if content else (False, f"it ended with status {status}")


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
