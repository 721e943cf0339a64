"""The bookkeeping of captured graphs. Nothing here calls CUDA; the caller passes the capture."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

MIB = 2**20


@dataclass(frozen=True)
class Captured:
    """A captured program.

    Attributes:
        run: takes the inputs, returns the outputs; the caller owns the outputs.
        num_bytes: device memory that the capture added.
    """

    run: Callable[..., Any]
    num_bytes: int


class GraphCache:
    """Captured programs by key, within a limit of memory.

    Programs share one pool, which gives memory back only as a whole. If the next program would exceed the limit, all
    programs are dropped, and the next one is captured again in a new pool.

    Args:
        limit_bytes: device memory that all programs together may hold.
        release: returns the pool's memory to the device; called after programs were dropped.
    """

    def __init__(self, limit_bytes: int, release: Callable[[], None]) -> None:
        self.limit_bytes = limit_bytes
        self._release = release
        self._held: dict[Hashable, Captured] = {}
        self._too_large: dict[Hashable, int] = {}

    @property
    def num_bytes(self) -> int:
        """Device memory that the programs hold."""
        return sum(captured.num_bytes for captured in self._held.values())

    def get(self, key: Hashable, capture: Callable[[], Captured]) -> Captured | None:
        """Get the program of a key; capture it if there is none.

        Args:
            key: identifies the program.
            capture: captures the program; its exceptions pass through, and nothing is kept then.

        Returns:
            The program; None if it alone exceeds the limit. It then runs without a graph, and `info` names it.
        """
        if key in self._too_large:
            return None
        if key in self._held:
            return self._held[key]
        captured = capture()
        if self._held and self.num_bytes + captured.num_bytes > self.limit_bytes:
            del captured  # before its pool is released
            self.clear()
            captured = capture()
        if captured.num_bytes > self.limit_bytes:
            self._too_large[key] = captured.num_bytes
            del captured
            self._release()
            return None
        self._held[key] = captured
        return captured

    def clear(self) -> None:
        """Drop every program."""
        self._held.clear()
        self._release()

    def info(self) -> dict[str, Any]:
        """The held programs, their memory and its limit in MiB, and the programs that exceed the limit alone."""
        return {
            "graphs": len(self._held),
            "graph_mib": round(self.num_bytes / MIB, 1),
            "max_graph_mib": round(self.limit_bytes / MIB, 1),
            "graphs_too_large": {str(key): round(size / MIB, 1) for key, size in self._too_large.items()},
        }
