"""A Ray cluster of two nodes on this machine, for tests; every process that it started is stopped at the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

_START_S = 90.0


class Node:
    """`ray start`, and the processes under it."""

    def __init__(self, log: Path, *options: str) -> None:
        self._log = log
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--node-ip-address=127.0.0.1", "--block"]
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [*command, "--disable-usage-stats", "--num-cpus=1", *options], stdout=out, stderr=subprocess.STDOUT
            )
        end = time.monotonic() + _START_S
        while "Ray runtime started" not in log.read_text(errors="replace"):
            if time.monotonic() > end or self._process.poll() is not None:
                self.kill()
                raise AssertionError(log.read_text(errors="replace")[-2000:])
            time.sleep(0.1)

    def processes(self) -> list[int]:
        """Ids of the node's processes, the root last."""
        parents: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with suppress(OSError):
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    parents.setdefault(parent, []).append(int(entry.name))
        found, todo = [self._process.pid], [self._process.pid]
        while todo:
            children = parents.get(todo.pop(), [])
            found += children
            todo += children
        return found[::-1]

    def kill(self) -> None:
        """End the node as a power cut does."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def workers(self, name: str) -> list[int]:
        """Ids of the node's worker processes, and of the children that encode for them, whose title has a name."""
        found = []
        for pid in self.processes():
            with suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if (title.startswith("ray::") or "process.child import run" in title) and name in title:
                    found.append(pid)
        return found


class Cluster:
    """Two nodes of one CPU each; `head` keeps the cluster's state."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        options = f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"
        self.nodes = [Node(folder / "head.log", "--head", *options)]
        self._folder = folder

    def add(self) -> None:
        """Add a node."""
        self.nodes.append(Node(self._folder / f"node{len(self.nodes)}.log", f"--address={self.address}"))

    def kill_worker(self, name: str, before_s: float = 60.0) -> int:
        """Kill the first worker process whose title has a name; wait for it to exist."""
        end = time.monotonic() + before_s
        while time.monotonic() < end:
            for node in self.nodes:
                for pid in node.workers(name):
                    os.kill(pid, signal.SIGKILL)
                    return pid
            time.sleep(0.02)
        raise AssertionError(f"no worker with {name} in its title")

    def stop(self) -> None:
        """End all nodes."""
        for node in self.nodes[::-1]:
            node.kill()


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start two nodes; stop them at the end."""
    import shutil

    # A local `ray.init` leaves ~/.ray/auth_token behind, and then `ray start` fails unless a mode is named.
    mode = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    folder = Path(mkdtemp(prefix="rc"))  # short: Ray's sockets have names of at most 107 bytes
    made: Any = None
    try:
        made = Cluster(folder)
        made.add()
        yield made
    finally:
        if made is not None:
            made.stop()
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop("RAY_AUTH_MODE")
        if mode is not None:
            os.environ["RAY_AUTH_MODE"] = mode
