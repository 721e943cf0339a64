"""`mmn_fast.ground`: grounding in one call, with engines that are loaded on first use and kept."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmn_fast.checkpoint import IN_THE_BOX
from mmn_fast.engine import Engine, load
from mmn_fast.errors import InputError
from mmn_fast.process.environment import default_model
from mmn_fast.process.once import Once
from mmn_fast.types import Moment, Query

_engines: Once[tuple[Any, ...], Engine] = Once()


def ground(
    batch: Iterable[Query],
    model: str | Path | None = None,
    top_k: int = 5,
    *,
    window_s: float | None = None,
    overlap: float | None = None,
    **options: Any,
) -> list[list[list[Moment]]]:
    """Find the moments that sentences describe; the engine is loaded on the first call and kept.

    Args:
        batch: any number of queries.
        model: as for `load`; None takes `$MMN_FAST_MODEL`.
        top_k: moments per sentence.
        window_s: as for `Engine.ground`.
        overlap: as for `Engine.ground`.
        options: other arguments of `load`; one engine is kept per model and options.

    Returns:
        `result[v][s]`: moments of sentence s of query v, best first.

    Raises:
        InputError: no model is named, or the model or a query cannot be used.
    """
    model = default_model() if model is None else model
    if model is None:
        raise InputError(
            "ground(): no model; pass model=, set MMN_FAST_MODEL, or use an engine of your own, as from"
            ' mmn_fast.load("demo")'
        )
    key = (model in IN_THE_BOX, str(model), *sorted((name, str(value)) for name, value in options.items()))
    engine = _engines.get(key, lambda: load(model, **options))
    return engine.ground(batch, top_k=top_k, window_s=window_s, overlap=overlap)
