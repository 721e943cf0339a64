"""Commands that answer: ground, eval."""

from __future__ import annotations

import json
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
    check_html,
    open_split,
    save_html,
)
from mmn_fast.cli.output import output
from mmn_fast.cli.tubes.split import evaluate_tube_split, refuse_options_of_videos

if TYPE_CHECKING:
    from mmn_fast.engine import Engine
    from mmn_fast.types import Moment, Query


@app.command()
def ground(
    *,
    features: Annotated[str, typer.Option("--features", help="FILE or FILE::KEY: .h5, .npy, .npz, .pt, .safetensors.")],
    duration: Annotated[float, typer.Option("--duration", help="Length of the video in seconds.")],
    query: Annotated[list[str], typer.Option("--query", "-q", help="A sentence; give the option again for more.")],
    model: Model = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Moments per sentence.")] = 5,
    loading: EngineOptions,
    html: Html = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse sentences that the text encoder cuts.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find the moments of one video that sentences describe."""
    from mmn_fast.evaluation.notes import by_kind, cut_sentences, refuse
    from mmn_fast.features import load_features
    from mmn_fast.types import Query, Video

    check_html(html)
    engine = loading.load(model)
    cut = cut_sentences(engine, query)
    if strict:
        refuse(cut)
    video = Video(load_features(features, width=engine.preset.input_size), duration, video_id=features)
    batch = [Query(video, query)]
    (result,) = engine.ground(batch, top_k=top_k)
    with output() as out:
        notes = {"cut": by_kind(cut)["cut"]}
        as_text = _results_as_text(query, result)
        out.show(_results_as_json(features, duration, query, result, notes) if as_json else as_text)
        if html is not None:
            out.beside("--html", lambda: _save_page(engine, batch[0], result, top_k, html))


def _results_as_json(
    features: str, duration: float, query: list[str], result: list[list[Moment]], notes: dict[str, Any]
) -> str:
    items = [
        {"query": sentence, "moments": [moment.to_dict() for moment in moments]}
        for sentence, moments in zip(query, result, strict=True)
    ]
    return json.dumps({"features": features, "duration_s": duration, "results": items, **notes}, indent=2)


def _results_as_text(query: list[str], result: list[list[Moment]]) -> str:
    lines = []
    for sentence, moments in zip(query, result, strict=True):
        lines.append(sentence)
        for rank, moment in enumerate(moments, start=1):
            lines.append(f"  {rank:>3}  {moment.start_s:8.2f} s - {moment.end_s:8.2f} s   score {moment.score:.4f}")
    return "\n".join(lines)


def _save_page(engine: Engine, query: Query, result: list[list[Moment]], top_k: int, path: Path) -> None:
    from mmn_fast.viz import grounded, report

    maps, video = engine.score_maps([query])[0], query.video
    queries = grounded(list(query.sentences), result, maps=maps, num_clips=engine.preset.num_clips)
    notes = [f"preset {engine.preset.name}"]
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
        refuse_options_of_videos(engine, feature_key=feature_key, durations=split.durations, html=html)
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
