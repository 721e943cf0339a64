"""Commands about files of predictions: predict writes one, score-file evaluates one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mmn_fast.cli.app import app, removing_what_is_half_written
from mmn_fast.cli.options import (
    AsJson,
    BackendOption,
    Device,
    FeatureKey,
    Model,
    Options,
    Precision,
    PresetOption,
    Threads,
    TokenizerOption,
    load_engine,
)
from mmn_fast.cli.output import show

Durations = Annotated[
    Path | None, typer.Option("--durations", help="Durations of the videos, for Charades-STA's text format.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse to leave out, clamp, cut or skip anything.")]
ProtocolOption = Annotated[str, typer.Option("--protocol", help="mmn, 2dtan or qvh.")]


@app.command()
@removing_what_is_half_written()
def predict(
    annotations: Annotated[Path, typer.Option("--annotations", help="As for eval; windows may be missing or null.")],
    features: Annotated[Path, typer.Option("--features", help="HDF5 file, or a directory with one file per video.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New file, QVHighlights JSONL.")],
    feature_key: FeatureKey = None,
    model: Model = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Moments per sentence.")] = 10,
    protocol: ProtocolOption = "mmn",
    durations: Durations = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first N videos.")] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out videos without features and say how many.")
    ] = False,
    strict: Strict = False,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Videos per call.")] = 8,
    preset: PresetOption = None,
    tokenizer: TokenizerOption = None,
    device: Device = "auto",
    precision: Precision = "auto",
    backend: BackendOption = "auto",
    threads: Threads = None,
    backend_option: Options = None,
    as_json: AsJson = False,
) -> None:
    """Write a model's predictions for every sentence, whose truth need not be known."""
    from mmn_fast.errors import named_as
    from mmn_fast.evaluation.datasets import read_annotations
    from mmn_fast.evaluation.predict import predict as run
    from mmn_fast.features import open_features
    from mmn_fast.storage.files import refuse_existing

    refuse_existing(output, "output")
    engine = load_engine(model, preset, tokenizer, device, precision, backend, threads, backend_option)
    samples = read_annotations(annotations, engine.preset, durations=durations, strict=strict, truth=False)
    key = engine.preset.feature_key if feature_key is None else feature_key
    with named_as("path", "features"):
        store = open_features(features, key, engine.preset.input_size)
    with store:
        report = run(
            engine,
            samples,
            store,
            output,
            protocol=protocol,
            limit=limit,
            skip_missing=skip_missing,
            strict=strict,
            batch_size=batch_size,
            top_k=top_k,
            progress=True,
        )
    skipped = f", {report.num_skipped} videos skipped" if report.num_skipped else ""
    plain = f"{output}: {report.num_videos} videos, {report.num_sentences} sentences{skipped}"
    show(json.dumps(report.to_dict(), indent=2) if as_json else plain)


@app.command("score-file")
def score_file(
    predictions: Annotated[Path, typer.Argument(help="QVHighlights JSONL, as predict or eval --predictions writes.")],
    annotations: Annotated[Path, typer.Option("--annotations", help="As for eval, with their windows.")],
    protocol: ProtocolOption = "mmn",
    preset: Annotated[
        str | None, typer.Option("--preset", help="Preset whose R@n,IoU@m to give; default n 1,5 and m 0.3,0.5,0.7.")
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
    samples = read_annotations(annotations, chosen, durations=durations, strict=strict)
    recall: dict[str, Any] = {}
    if chosen is not None:
        recall = {"recall_at": chosen.recall_at, "recall_ious": chosen.recall_ious}
    report = run(predictions, samples, protocol=protocol, skip_missing=skip_missing, strict=strict, **recall)
    show(json.dumps(report.to_dict(), indent=2) if as_json else report.table())
