"""What is left out of a data set, changed or skipped: counted, and said in one line each."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

_KINDS = ("left_out", "clamped", "skipped")


@dataclass(frozen=True)
class Note:
    """One thing that happened to some of a data set's entries.

    Attributes:
        kind: "left_out", "clamped" or "skipped".
        what: what is counted: "sentences", "windows" or "videos".
        count: how many.
        total: of how many.
        why: the reason, and what the official evaluation does.
        first: names the first of them.
    """

    kind: str
    what: str
    count: int
    total: int
    why: str
    first: str

    def __str__(self) -> str:
        done = self.kind.replace("_", " ")
        return f"{self.count} of {self.total} {self.what} {done}: {self.why} (first: {self.first})"


class Tally:
    """Counts entries by kind, thing and reason; remembers the first of each."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], list[Any]] = {}

    def add(self, kind: str, what: str, why: str, where: str) -> None:
        """Count one entry, which `where` names."""
        self._found.setdefault((kind, what, why), [0, where])[0] += 1

    def notes(self, totals: dict[str, int]) -> tuple[Note, ...]:
        """What was counted; `totals` says of how many."""
        return tuple(
            Note(kind, what, count, totals[what], why, first)
            for (kind, what, why), (count, first) in self._found.items()
        )


def say(logger: logging.Logger, source: object, notes: tuple[Note, ...]) -> None:
    """Warn of each note, in one line."""
    for note in notes:
        logger.warning("%s: %s", source, note)


def by_kind(notes: tuple[Note, ...]) -> dict[str, list[dict[str, Any]]]:
    """Notes as plain JSON types: kind -> its notes; every kind is there."""
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _KINDS}
    for note in notes:
        facts = asdict(note)
        found[facts.pop("kind")].append(facts)
    return found
