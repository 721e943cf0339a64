"""search: the moments of a whole library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from mmn_fast.cli.app import app
from mmn_fast.cli.index.commands import IndexPath, engine_of
from mmn_fast.cli.options import AsJson, EngineOptions, Model
from mmn_fast.cli.output import output

if TYPE_CHECKING:
    from mmn_fast.index import Match


@app.command()
def search(
    path: IndexPath,
    *,
    query: Annotated[list[str], typer.Option("--query", "-q", help="A sentence; give the option again for more.")],
    model: Model = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Moments per sentence.")] = 10,
    per_video: Annotated[int, typer.Option("--per-video", help="Most moments of one video.")] = 1,
    videos: Annotated[
        list[str] | None, typer.Option("--video", help="Search only this video; give the option again for more.")
    ] = None,
    min_score: Annotated[float | None, typer.Option("--min-score", help="Least score of a moment.")] = None,
    loading: EngineOptions,
    as_json: AsJson = False,
) -> None:
    """Find the moments of all videos of an index that sentences describe."""
    from mmn_fast.evaluation.notes import by_kind, cut_sentences
    from mmn_fast.index import MomentIndex

    engine = engine_of(path, model, loading)
    notes = {"cut": by_kind(cut_sentences(engine, query))["cut"]}
    with MomentIndex.open(path, engine) as index:
        found = index.search(query, top_k, per_video, videos, min_score, threads=loading.threads)
        facts = {"index": str(path), "videos": len(index)}
    with output() as out:
        out.show(_as_json(facts, query, found, notes) if as_json else _as_text(query, found))


def _as_json(facts: dict[str, object], query: list[str], found: list[list[Match]], notes: Mapping[str, object]) -> str:
    items = [
        {"query": sentence, "moments": [match.to_dict() for match in matches]}
        for sentence, matches in zip(query, found, strict=True)
    ]
    return json.dumps({**facts, "results": items, **notes}, indent=2)


def _as_text(query: list[str], found: list[list[Match]]) -> str:
    lines = []
    width = max((len(match.video_id) for matches in found for match in matches), default=0)
    for sentence, matches in zip(query, found, strict=True):
        lines.append(sentence)
        lines += [
            f"  {rank:>3}  {match.video_id:<{width}}  {match.start_s:8.2f} s - {match.end_s:8.2f} s   score"
            f" {match.score:.4f}"
            for rank, match in enumerate(matches, start=1)
        ] or ["       nothing found"]
    return "\n".join(lines)
