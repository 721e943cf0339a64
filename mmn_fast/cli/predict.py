"""Commands about files of predictions: predict writes one, score-file evaluates one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mmn_fast.cli.app import app, removing_what_is_half_written
from mmn_fast.cli.options import (
    AsJson,
    Durations,
    EngineOptions,
    FeatureKey,
    Features,
    Model,
    Protocol,
    SplitOptions,
    Strict,
    WindowOptions,
    open_split,
)
from mmn_fast.cli.output import show
from mmn_fast.cli.tubes.split import predict_tube_split, refuse_options_of_videos, score_tube_file


@app.command()
@removing_what_is_half_written()
def predict(
    *,
    annotations: Annotated[Path, typer.Option("--annotations", help="As for eval; windows may be missing or null.")],
    features: Features,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="New file, QVHighlights JSONL; of tubes: results.json.")
    ],
    feature_key: FeatureKey = None,
    model: Model = None,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", "-k", help="Moments per sentence; default 10. Of tubes one answer is written."),
    ] = None,
    protocol: Protocol = "mmn",
    split: SplitOptions,
    windows: WindowOptions,
    loading: EngineOptions,
    as_json: AsJson = False,
) -> None:
    """Write a model's predictions for every sentence; the annotations need no windows."""
    from mmn_fast.evaluation.predict import predict as run
    from mmn_fast.storage.files import refuse_existing

    refuse_existing(output, "output")
    engine = loading.load(model)
    if engine.preset.of_tubes:
        given = {"feature_key": feature_key, "durations": split.durations, "top_k": top_k, **vars(windows)}
        given["any_features"] = split.any_features or None
        refuse_options_of_videos(engine.preset, **given, protocol=None if protocol == "mmn" else protocol)
        predict_tube_split(engine, annotations, features, output, split, as_json)
        return
    samples = split.samples(annotations, engine, truth=False)
    with open_split(features, feature_key, engine) as store:
        wanted = 10 if top_k is None else top_k
        settings = {**split.while_running(), **vars(windows)}
        report = run(engine, samples, store, output, protocol=protocol, top_k=wanted, **settings)
    skipped = f", {report.num_skipped} videos skipped" if report.num_skipped else ""
    plain = f"{output}: {report.num_videos} videos, {report.num_sentences} sentences{skipped}"
    show(json.dumps(report.to_dict(), indent=2) if as_json else plain)


@app.command("score-file")
def score_file(
    predictions: Annotated[
        Path, typer.Argument(help="As predict or eval writes: QVHighlights JSONL; of tubes results.json.")
    ],
    annotations: Annotated[Path, typer.Option("--annotations", help="As for eval, with their windows.")],
    protocol: Protocol = "mmn",
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="Sets n and m of R@n,IoU@m (default n 1,5, m 0.3,0.5,0.7); hc-stvg for tubes.",
        ),
    ] = None,
    durations: Durations = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out sentences without predictions and say how many.")
    ] = False,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a file of predictions, without a model or features."""
    from mmn_fast.evaluation.datasets import read_annotations
    from mmn_fast.evaluation.predict import score_file as run
    from mmn_fast.presets import get_preset

    chosen = None if preset is None else get_preset(preset)
    if chosen is not None and chosen.of_tubes:
        refuse_options_of_videos(chosen, durations=durations)
        score_tube_file(predictions, annotations, chosen, protocol, skip_missing, strict, as_json)
        return
    samples = read_annotations(annotations, chosen, durations=durations, strict=strict)
    recall: dict[str, Any] = {}
    if chosen is not None:
        recall = {"recall_at": chosen.recall_at, "recall_ious": chosen.recall_ious}
    report = run(predictions, samples, protocol=protocol, skip_missing=skip_missing, strict=strict, **recall)
    show(json.dumps(report.to_dict(), indent=2) if as_json else report.table())
