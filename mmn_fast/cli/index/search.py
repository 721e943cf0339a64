"""search: the moments of a whole library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmn_fast.cli.app import app
from mmn_fast.cli.index.commands import IndexPath, ModelOfIndex, engine_of
from mmn_fast.cli.options import AsJson, EngineOptions, Html, check_html, save_html
from mmn_fast.cli.output import output
from mmn_fast.errors import InputError, named_as

if TYPE_CHECKING:
    from mmn_fast.index import Match


@app.command()
def search(
    index: IndexPath,
    *,
    query: Annotated[list[str], typer.Option("--query", "-q", help="A sentence; give the option again for more.")],
    model: ModelOfIndex = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Moments per sentence.")] = 10,
    per_video: Annotated[int, typer.Option("--per-video", help="Most moments of one video.")] = 1,
    videos: Annotated[
        list[str] | None, typer.Option("--video", help="Search only this video; give the option again for more.")
    ] = None,
    min_score: Annotated[float | None, typer.Option("--min-score", help="Least score of a moment.")] = None,
    films: Annotated[
        list[str] | None,
        typer.Option(
            "--films",
            help="With --html: the video files, as for features; a name without suffix is an id.",
        ),
    ] = None,
    loading: EngineOptions,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Find the moments of all videos of an index that sentences describe."""
    from mmn_fast.evaluation.notes import by_kind, cut_sentences
    from mmn_fast.index import MomentIndex

    check_html(html)
    if films and html is None:
        raise InputError("--films: expected --html PAGE beside it, the page that shows the films")
    files = _files(films or [])
    engine = engine_of(index, model, loading)
    notes = {"cut": by_kind(cut_sentences(engine, query))["cut"]}
    with MomentIndex.open(index, engine) as opened:
        device = loading.device if loading.device.startswith("cuda") else "cpu"
        found = opened.search(query, top_k, per_video, videos, min_score, threads=loading.threads, device=device)
        facts: dict[str, Any] = {"index": str(index), "videos": len(opened)}
        lengths = {match.video_id: opened.duration_s(match.video_id) for matches in found for match in matches}
    with output() as out:
        out.show(_as_json(facts, query, found, notes) if as_json else _as_text(query, found))
        if html is not None:
            said = [f"{facts['videos']} videos in {index}", f"preset {engine.preset.name}"]
            out.beside("--html", lambda: _save_page(query, found, lengths, files, said, html))


def _files(films: list[str]) -> dict[str, Path]:
    """Id -> file of the videos that are at hand."""
    from mmn_fast.features.extraction.videos import find_videos

    with named_as("videos", "films"):
        return {file.video_id: file.path for file in find_videos(films)} if films else {}


def _save_page(
    query: list[str],
    found: list[list[Match]],
    lengths: dict[str, float],
    files: dict[str, Path],
    notes: list[str],
    html: Path,
) -> None:
    from mmn_fast.viz import search_report
    from mmn_fast.viz.search_page import library_videos

    videos, troubles = library_videos(files, found, html)
    for trouble in troubles:
        typer.echo(f"mmn-fast: warning: {trouble}", err=True)
    save_html(search_report(query, found, lengths, videos=videos, notes=notes), html)


def _as_json(facts: dict[str, Any], query: list[str], found: list[list[Match]], notes: Mapping[str, Any]) -> str:
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
