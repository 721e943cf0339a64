"""The part of eval that searches a whole library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmn_fast.cli.index.commands import engine_of
from mmn_fast.cli.options import EngineOptions, SplitOptions
from mmn_fast.cli.output import output
from mmn_fast.errors import InputError, named_as

if TYPE_CHECKING:
    from mmn_fast.evaluation.corpus import Answer


def evaluate_in_corpus(
    corpus: Path,
    annotations: Path,
    model: str | None,
    predictions: Path | None,
    split: SplitOptions,
    loading: EngineOptions,
    as_json: bool,
    **others: Any,
) -> None:
    """Print the table of retrieval from a library, then write TVR's submission if that was asked for.

    Args:
        corpus: the index.
        annotations: sentences with their true moments.
        model: as `engine_of` takes it.
        predictions: new file, TVR's JSON.
        split: which videos' sentences.
        loading: how the model is loaded.
        as_json: print JSON.
        **others: options that mean nothing here; None stands for one that was not given.

    Raises:
        InputError: something cannot be used, or another option is given.
    """
    from mmn_fast.evaluation.corpus import evaluate_corpus, write_submission
    from mmn_fast.index import MomentIndex
    from mmn_fast.storage.files import refuse_existing

    for name, value in others.items():
        if value is not None:
            raise InputError(f"{name}: expected none with --corpus, whose videos are encoded already, got {value}")
    if predictions is not None:
        refuse_existing(predictions, "predictions")
    with named_as("index", "corpus"):
        engine = engine_of(corpus, model, loading)
    samples = split.samples(annotations, engine)
    answers: list[Answer] = []
    with MomentIndex.open(corpus, engine) as index:
        report = evaluate_corpus(
            engine,
            index,
            samples,
            limit=split.limit,
            skip_missing=split.skip_missing,
            strict=split.strict,
            threads=loading.threads,
            progress=True,
            on_answer=None if predictions is None else answers.append,
        )
        with output() as out:
            out.show(json.dumps(report.to_dict(), indent=2) if as_json else report.table())
            if predictions is not None:
                video_ids = index.video_ids
                out.beside("--predictions", lambda: write_submission(predictions, answers, video_ids))
