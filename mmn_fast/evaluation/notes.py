"""Notes count the entries of a data set that were left out, changed or skipped; each note is logged in one line."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from mmn_fast.errors import InputError
from mmn_fast.tokenizer import shortened

_KINDS = ("left_out", "clamped", "cut", "skipped", "limited")


@dataclass(frozen=True)
class Note:
    """One kind of change to entries of a data set, with its count.

    Attributes:
        kind: "left_out", "clamped", "cut", "skipped" or "limited".
        what: the counted things: "sentences", "windows", "videos", "predictions" or "boxes".
        count: how many.
        total: how many entries there were in all.
        why: the reason, and the official evaluation's behaviour.
        first: names the first counted entry, or the first few.
    """

    kind: str
    what: str
    count: int
    total: int
    why: str
    first: str

    def __str__(self) -> str:
        if self.kind == "limited":
            return f"first {self.total - self.count} of {self.total} {self.what} only: {self.why}"
        done = self.kind.replace("_", " ")
        return f"{self.count} of {self.total} {self.what} {done}: {self.why} (first: {self.first})"


class Tally:
    """Counts entries by kind, thing and reason; remembers the first entry of each."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], list[Any]] = {}

    def add(self, kind: str, what: str, why: str, where: str) -> None:
        """Count one entry, which `where` names."""
        self._found.setdefault((kind, what, why), [0, where])[0] += 1

    def notes(self, totals: dict[str, int]) -> tuple[Note, ...]:
        """Turn the counts into notes; `totals` has the total of each `what`."""
        return tuple(
            Note(kind, what, count, totals[what], why, first)
            for (kind, what, why), (count, first) in self._found.items()
        )


def say(logger: logging.Logger, source: object, notes: tuple[Note, ...]) -> None:
    """Warn of each note, in one line."""
    for note in notes:
        logger.warning("%s: %s", source, note)


def refuse(notes: Sequence[Note]) -> None:
    """Refuse these notes, because `strict` allows none.

    Raises:
        InputError: there is a note; the message lists all of them.
    """
    if notes:
        raise InputError(f"strict: {'; '.join(map(str, notes))}")


def cut_sentences(engine: object, sentences: Sequence[str]) -> tuple[Note, ...]:
    """A note of the sentences that the engine's text encoder cuts; none if the engine cannot tell."""
    if not isinstance(engine, _Cuts):
        return ()
    cut = engine.cut_sentences(sentences)
    if not cut:
        return ()
    first, pieces = next(iter(cut.items()))
    count = sum(sentence in cut for sentence in sentences)
    why = f"they are longer than the text encoder's {engine.max_tokens} word pieces"
    return (Note("cut", "sentences", count, len(sentences), why, f"{shortened(first)}, {pieces} word pieces"),)


@runtime_checkable
class _Cuts(Protocol):
    """An engine that tells which sentences its text encoder cuts."""

    @property
    def max_tokens(self) -> int: ...

    def cut_sentences(self, sentences: Sequence[str], /) -> dict[str, int]: ...


def by_kind(notes: Sequence[Note]) -> dict[str, list[dict[str, Any]]]:
    """Notes as plain JSON types: kind -> its notes; every kind has a key."""
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _KINDS}
    for note in notes:
        facts = asdict(note)
        found[facts.pop("kind")].append(facts)
    return found
