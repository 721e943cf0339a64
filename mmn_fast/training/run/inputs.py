"""Data of a run: the training data, and the evaluation of a model on the validation data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from mmn_fast.backends import registry
from mmn_fast.backends.base import Settings
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.engine import Engine
from mmn_fast.errors import named_as
from mmn_fast.evaluation.datasets import read_annotations
from mmn_fast.evaluation.evaluate import evaluate
from mmn_fast.evaluation.tubes import evaluate_tubes, read_tube_annotations
from mmn_fast.features import FeatureStore, open_features
from mmn_fast.features.contract import FeatureContract
from mmn_fast.features.matching import refuse_other_features
from mmn_fast.features.tubes import TubeStore, open_tubes
from mmn_fast.presets import Preset
from mmn_fast.tokenizer import Tokenizer
from mmn_fast.training.data import TrainingData, usable_samples
from mmn_fast.training.run.options import TrainOptions
from mmn_fast.training.tube_data import TubeData, say_without_tubes


@dataclass(frozen=True)
class Validation:
    """Evaluation on the validation data.

    Attributes:
        metrics: gives a model's metrics.
        best: the metric whose largest value marks the best model.
    """

    metrics: Callable[[LoadedModel], dict[str, float]]
    best: str


def training_data(
    options: TrainOptions,
    preset: Preset,
    tokenizer: Tokenizer,
    stack: ExitStack,
    progress: bool,
    initial: FeatureContract | None,
) -> tuple[TrainingData | TubeData, FeatureContract | None]:
    """Open the training data, and read the contract of its features, which must agree with that of the initial model.

    `stack` closes the features.
    """
    if preset.of_tubes:
        tubes = TubeData(
            read_tube_annotations(options.annotations),
            _open_tubes(options.features, "features", stack),
            preset,
            tokenizer,
            source=str(options.annotations),
            cache_gib=options.cache_gib,
            strict=options.strict,
            progress=progress,
        )
        return tubes, None
    store = _open_features(options, preset, options.features, "features", stack)
    where, wanted_by = f"features: {options.features}", f"the model of init, {options.init}"
    refuse_other_features(initial, store.contract, where, options.any_features, wanted_by)
    data = TrainingData(
        read_annotations(options.annotations, preset, options.durations, options.strict),
        store,
        preset,
        tokenizer,
        source=str(options.annotations),
        cache_gib=options.cache_gib,
        skip_missing=options.skip_missing,
        strict=options.strict,
        progress=progress,
    )
    return data, store.contract


def validation(
    options: TrainOptions,
    preset: Preset,
    tokenizer: Tokenizer,
    device: torch.device,
    stack: ExitStack,
    contract: FeatureContract | None,
) -> Validation | None:
    """Open the validation data, which must follow the contract of the training features; None without such data.

    `stack` closes the features.
    """
    if options.val_annotations is None:
        return None
    path, argument = options.val_features, "val_features"
    if path is None:
        path, argument = options.features, "features"

    def engine_of(model: LoadedModel) -> Engine:
        backend = registry.backend_class("torch")
        return Engine(model, backend(model, Settings(str(device), "fp32")))

    if preset.of_tubes:
        tubes, annotated = _open_tubes(path, argument, stack), read_tube_annotations(options.val_annotations)
        known = [sample for sample in annotated if sample.video_id in tubes]
        absent = [sample.video_id for sample in annotated if sample.video_id not in tubes]
        say_without_tubes(absent, len(annotated), str(options.val_annotations), argument, options.strict)
        return Validation(
            lambda model: evaluate_tubes(engine_of(model), known, tubes, strict=options.strict).metrics, "m_vIoU"
        )
    samples = read_annotations(options.val_annotations, preset, options.durations, options.strict)
    store = _open_features(options, preset, path, argument, stack)
    wanted_by = f"the training features {options.features}"
    refuse_other_features(contract, store.contract, f"{argument}: {path}", options.any_features, wanted_by)
    usable = usable_samples(
        samples,
        store,
        tokenizer,
        str(options.val_annotations),
        argument,
        skip_missing=options.skip_missing,
        strict=options.strict,
    )

    def metrics(model: LoadedModel) -> dict[str, float]:
        return evaluate(engine_of(model), usable, store, any_features=options.any_features).metrics

    return Validation(metrics, f"Best_R{preset.recall_at[0]}")


def _open_features(options: TrainOptions, preset: Preset, path: Path, argument: str, stack: ExitStack) -> FeatureStore:
    key = preset.feature_key if options.feature_key is None else options.feature_key
    with named_as("path", argument):
        return stack.enter_context(open_features(path, key, preset.input_size))


def _open_tubes(path: Path, argument: str, stack: ExitStack) -> TubeStore:
    with named_as("path", argument):
        return stack.enter_context(open_tubes(path))
