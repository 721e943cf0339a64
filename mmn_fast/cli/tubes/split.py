"""The parts of eval and predict for models of tubes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmn_fast.cli.options import SplitOptions
from mmn_fast.cli.output import output as shown_output
from mmn_fast.cli.output import show
from mmn_fast.errors import InputError, named_as

if TYPE_CHECKING:
    from mmn_fast.engine import Engine
    from mmn_fast.evaluation.tubes import TubeAnswer
    from mmn_fast.features.tubes import TubeStore
    from mmn_fast.presets import Preset


def refuse_options_of_videos(preset: Preset, **given: Any) -> None:
    """Refuse options that mean nothing for tubes; None stands for an option that was not given."""
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{name}: expected none with preset {preset.name!r}, which is of tubes, got {value}")


def evaluate_tube_split(
    engine: Engine,
    annotations: Path,
    features: Path,
    protocol: str,
    predictions: Path | None,
    split: SplitOptions,
    as_json: bool,
) -> None:
    """Print the table of tubes, then write results.json if that was asked for."""
    from mmn_fast.evaluation.tubes import evaluate_tubes, read_tube_annotations, write_results
    from mmn_fast.evaluation.tubes.figures import is_half_open
    from mmn_fast.storage.files import refuse_existing

    is_half_open(protocol)
    if predictions is not None:
        refuse_existing(predictions, "predictions")
    samples = read_tube_annotations(annotations, strict=split.strict)
    answers: list[TubeAnswer] = []
    with _open(features) as store:
        report = evaluate_tubes(
            engine, samples, store, protocol=protocol, on_answer=answers.append, **_while_running(split)
        )
    with shown_output() as out:
        out.show(json.dumps(report.to_dict(), indent=2) if as_json else report.table())
        if predictions is not None:
            out.beside("--predictions", lambda: write_results(predictions, answers))


def predict_tube_split(
    engine: Engine, annotations: Path, features: Path, output: Path, split: SplitOptions, as_json: bool
) -> None:
    """Write results.json for sentences whose tubes are not known, and say so."""
    from mmn_fast.evaluation.tubes import predict_tubes, read_tube_annotations, write_results

    samples = read_tube_annotations(annotations, truth=False)
    with _open(features) as store:
        answers, report = predict_tubes(engine, samples, store, **_while_running(split))
    write_results(output, answers, "output")
    facts = {"predictions": str(output), **report.to_dict()}
    show(json.dumps(facts, indent=2) if as_json else f"{output}: {len(answers)} videos, a sentence each")


def score_tube_file(
    predictions: Path,
    annotations: Path,
    preset: Preset,
    protocol: str,
    skip_missing: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Print the table of a results.json."""
    from mmn_fast.evaluation.tubes import read_tube_annotations, score_results
    from mmn_fast.evaluation.tubes.figures import is_half_open

    is_half_open(protocol)
    report = score_results(
        predictions,
        read_tube_annotations(annotations, strict=strict),
        thresholds=preset.recall_ious,
        protocol=protocol,
        preset=preset.name,
        skip_missing=skip_missing,
        strict=strict,
    )
    show(json.dumps(report.to_dict(), indent=2) if as_json else report.table())


def _open(features: Path) -> TubeStore:
    from mmn_fast.features.tubes import open_tubes

    with named_as("path", "features"):
        return open_tubes(features)


def _while_running(split: SplitOptions) -> dict[str, Any]:
    return {**{name: getattr(split, name) for name in ("limit", "strict", "batch_size")}, "progress": True}
