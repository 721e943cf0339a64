"""What is left out of a data set, changed or skipped: counted, and said in one line each."""

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
    """One thing that happened to some of a data set's entries.

    Attributes:
        kind: "left_out", "clamped", "cut", "skipped" or "limited".
        what: what is counted: "sentences", "windows", "videos" or "predictions".
        count: how many.
        total: of how many.
        why: the reason, and what the official evaluation does.
        first: names the first of them, or the first few.
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


def refuse(notes: Sequence[Note]) -> None:
    """Refuse what `strict` does not allow: each of these notes.

    Raises:
        InputError: there is one; it says all of them.
    """
    if notes:
        raise InputError(f"strict: {'; '.join(map(str, notes))}")


def cut_sentences(engine: object, sentences: Sequence[str]) -> tuple[Note, ...]:
    """What an engine's text encoder cuts of these sentences; nothing for an engine that does not tell."""
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
    """An engine that tells what its text encoder cuts."""

    @property
    def max_tokens(self) -> int: ...

    def cut_sentences(self, sentences: Sequence[str], /) -> dict[str, int]: ...


def by_kind(notes: Sequence[Note]) -> dict[str, list[dict[str, Any]]]:
    """Notes as plain JSON types: kind -> its notes; every kind is there."""
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _KINDS}
    for note in notes:
        facts = asdict(note)
        found[facts.pop("kind")].append(facts)
    return found
