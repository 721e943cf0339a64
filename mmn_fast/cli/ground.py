"""Commands that answer: ground, eval."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmn_fast.cli.app import app
from mmn_fast.cli.options import (
    AsJson,
    EngineOptions,
    FeatureKey,
    Features,
    Html,
    Model,
    Protocol,
    SplitOptions,
    WindowOptions,
    check_html,
    open_split,
    save_html,
)
from mmn_fast.cli.output import output
from mmn_fast.cli.tubes.split import evaluate_tube_split, refuse_options_of_videos
from mmn_fast.errors import InputError, named_as

if TYPE_CHECKING:
    from mmn_fast.engine import Engine
    from mmn_fast.tubes import TubeMoment
    from mmn_fast.types import Moment, Query


@app.command()
def ground(
    *,
    features: Annotated[
        str | None, typer.Option("--features", help="FILE or FILE::KEY: .h5, .npy, .npz, .pt, .safetensors.")
    ] = None,
    duration: Annotated[float | None, typer.Option("--duration", help="Length of the video in seconds.")] = None,
    tubes: Annotated[
        str | None, typer.Option("--tubes", help="Person tubes instead, FILE or FILE::VIDEO: .h5, .npz, .safetensors.")
    ] = None,
    query: Annotated[list[str], typer.Option("--query", "-q", help="A sentence; give the option again for more.")],
    model: Model = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", help="Moments per sentence; default 5, of tubes 1.")
    ] = None,
    windows: WindowOptions,
    loading: EngineOptions,
    html: Html = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse sentences that the text encoder cuts.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find the moments of one video, or of its person tubes, that sentences describe."""
    from mmn_fast.evaluation.notes import by_kind, cut_sentences, refuse

    _check_source(features, duration, tubes, html, windows)
    engine = loading.load(model)
    cut = cut_sentences(engine, query)
    if strict:
        refuse(cut)
    notes = {"cut": by_kind(cut)["cut"]}
    if tubes is not None:
        _ground_tubes(engine, tubes, query, 1 if top_k is None else top_k, notes, as_json)
    else:
        assert features is not None
        assert duration is not None
        wanted = 5 if top_k is None else top_k
        _ground_video(engine, features, duration, query, wanted, windows, notes, html, as_json)


def _check_source(
    features: str | None, duration: float | None, tubes: str | None, html: Path | None, windows: WindowOptions
) -> None:
    """Refuse options that do not name one video, or tubes; nothing is read before."""
    if tubes is None:
        if features is None:
            raise InputError("--features: give the video's features, or --tubes")
        if duration is None:
            raise InputError("--duration: give the video's length in seconds")
    else:
        for name, value in (("--features", features), ("--duration", duration)):
            if value is not None:
                raise InputError(f"{name}: the file of --tubes has all that is needed; give one or the other")
        for name, number in (("--window", windows.window_s), ("--overlap", windows.overlap)):
            if number is not None:
                raise InputError(f"{name}: expected none with --tubes, whose tubes are grounded whole, got {number}")
        if html is not None:
            raise InputError("--html: a page of tubes needs the video's frames; mmn_fast.viz.tube_report makes it")
    check_html(html)


def _ground_video(
    engine: Engine,
    features: str,
    duration: float,
    query: list[str],
    top_k: int,
    windows: WindowOptions,
    notes: dict[str, Any],
    html: Path | None,
    as_json: bool,
) -> None:
    from mmn_fast.features import load_features
    from mmn_fast.types import Query, Video

    video = Video(load_features(features, width=engine.preset.input_size), duration, video_id=features)
    batch = [Query(video, query)]
    (result,) = engine.ground(batch, top_k=top_k, **vars(windows))
    with output() as out:
        lines = [
            [f"{moment.start_s:8.2f} s - {moment.end_s:8.2f} s   score {moment.score:.4f}" for moment in moments]
            for moments in result
        ]
        source = {"features": features, "duration_s": duration}
        out.show(_as_json(source, query, result, notes) if as_json else _as_text(query, lines))
        if html is not None:
            out.beside("--html", lambda: _save_page(engine, batch[0], result, top_k, windows, html))


def _ground_tubes(
    engine: Engine, source: str, query: list[str], top_k: int, notes: dict[str, Any], as_json: bool
) -> None:
    from mmn_fast.features.tubes import read_tubes
    from mmn_fast.tubes import TubeQuery

    file, named, video_id = (source, "", "") if Path(source).exists() else source.partition("::")
    if named and not video_id:
        raise InputError(f"--tubes: expected FILE::VIDEO, got no video in {source!r}")
    with named_as("path", "tubes"), named_as("video_id", "tubes"):
        tubes = read_tubes(file, video_id or None)
    (result,) = engine.ground_tubes([TubeQuery(tubes, query, source)], top_k=top_k)
    with output() as out:
        lines = [
            [
                f"tube {moment.tube:>3}   frames {moment.start_frame:>5} - {moment.end_frame:>5}   rows"
                f" {moment.start_row:>4}:{moment.end_row:<4}  score {moment.score:.4f}"
                for moment in moments
            ]
            for moments in result
        ]
        out.show(_as_json({"tubes": source}, query, result, notes) if as_json else _as_text(query, lines))


def _as_json(
    source: dict[str, Any],
    query: list[str],
    result: Sequence[Sequence[Moment | TubeMoment]],
    notes: dict[str, Any],
) -> str:
    items = [
        {"query": sentence, "moments": [moment.to_dict() for moment in moments]}
        for sentence, moments in zip(query, result, strict=True)
    ]
    return json.dumps({**source, "results": items, **notes}, indent=2)


def _as_text(query: list[str], found: Sequence[Sequence[str]]) -> str:
    lines = []
    for sentence, moments in zip(query, found, strict=True):
        lines.append(sentence)
        lines += [f"  {rank:>3}  {moment}" for rank, moment in enumerate(moments, start=1)] or ["       nothing found"]
    return "\n".join(lines)


def _save_page(
    engine: Engine, query: Query, result: list[list[Moment]], top_k: int, windows: WindowOptions, path: Path
) -> None:
    from mmn_fast.viz import grounded, report

    video, notes = query.video, [f"preset {engine.preset.name}"]
    if windows.window_s is not None and windows.window_s < video.duration_s:
        # A map is that of one window; the page has the timelines alone.
        notes.append(f"grounded in windows of {windows.window_s:g} s")
        queries = grounded(list(query.sentences), result)
    else:
        maps = engine.score_maps([query])[0]
        queries = grounded(list(query.sentences), result, maps=maps, num_clips=engine.preset.num_clips)
    save_html(report(queries, video.duration_s, video_id=video.video_id, notes=notes, max_moments=top_k), path)


@app.command("eval")
def evaluate(
    *,
    annotations: Annotated[
        Path,
        typer.Option("--annotations", help="Official JSON (HC-STVG's too), Charades-STA text or QVHighlights JSONL."),
    ],
    features: Features,
    feature_key: FeatureKey = None,
    model: Model = None,
    protocol: Protocol = "mmn",
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", help="Write predictions here, as QVHighlights JSONL; of tubes: results.json."),
    ] = None,
    split: SplitOptions,
    windows: WindowOptions,
    loading: EngineOptions,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model on annotations: R@n,IoU@m and mIoU; of tubes m_vIoU, m_tIoU and vIoU@m."""
    from mmn_fast.evaluation.evaluate import QueryResult, UnwrittenPredictions
    from mmn_fast.evaluation.evaluate import evaluate as run

    check_html(html)
    results: list[QueryResult] = []
    engine = loading.load(model)
    if engine.preset.of_tubes:
        given = {"feature_key": feature_key, "durations": split.durations, "html": html, **vars(windows)}
        refuse_options_of_videos(engine.preset, **given)
        evaluate_tube_split(engine, annotations, features, protocol, predictions, split, as_json)
        return
    samples = split.samples(annotations, engine)
    unwritten: UnwrittenPredictions | None = None
    with open_split(features, feature_key, engine) as store:
        try:
            report = run(
                engine,
                samples,
                store,
                protocol=protocol,
                predictions=predictions,
                on_result=None if html is None else results.append,
                **split.while_running(),
                **vars(windows),
            )
        except UnwrittenPredictions as error:
            report, unwritten = error.report, error
    with output() as out:
        out.show(json.dumps(report.to_dict(), indent=2) if as_json else report.table())
        if unwritten is not None:
            out.fail("--predictions", unwritten)
        if html is not None:
            from mmn_fast.viz import evaluation_report

            title = f"Evaluation on {annotations.name}"
            out.beside("--html", lambda: save_html(evaluation_report(report, results, title=title), html))
