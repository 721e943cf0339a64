"""The options of a training run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmn_fast.checks import Integer, Number, Optional, Rule
from mmn_fast.errors import InputError
from mmn_fast.precisions import TRAINED
from mmn_fast.presets import Preset, Recipe, TextEncoderConfig, get_preset
from mmn_fast.training.objective import MOMENT_LOSSES, TUBE_LOSSES, Losses

Precision = Literal["fp32", "bf16", "fp16"]

_RULES: dict[str, Rule] = {
    "accumulate": Optional(Integer()),
    "evaluate_every": Integer(),
    **dict.fromkeys(("checkpoint_every", "warmup_steps"), Integer(0)),
    "seed": Optional(Integer(0)),
    **dict.fromkeys(("cache_gib", "text_rate", "dropout"), Number(0)),
}


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training run.

    Attributes:
        preset: sizes, losses and recipe.
        annotations: training annotations, any layout that `read_annotations` takes.
        features: HDF5 file or directory of clip features.
        output: the run's directory.
        val_annotations: annotations to evaluate on; None keeps the last model instead of the best.
        val_features: features for `val_annotations`; None takes `features`.
        feature_key: the array to take if a video has several; None takes the preset's.
        durations: lengths of the videos, for annotations such as Charades-STA's text.
        init: a model to start from, see `initial.new_model`.
        tokenizer: see `initial.new_model`.
        text_encoder: see `initial.new_model`.
        recipe: the schedule; None takes the preset's.
        text_rate: ratio of the text encoder's learning rate to the rate of the rest.
        warmup_steps: steps over which the rates grow to their full value.
        dropout: dropout of the text encoder.
        losses: "full", "no-cross-video" or "iou-only", see `objective.Objective`; for tubes "full", "corrected" or
            "iou-only", see `tube_objective.TubeObjective`.
        seed: seed of the initial weights, dropout and order; None takes the recipe's. The recipe's and 0 give the
            official order.
        precision: "fp32", or autocast to "bf16" or "fp16".
        device: "auto", "cpu", "cuda" or "cuda:N"; with several processes each takes its own CUDA device.
        threads: CPU threads; None leaves the process's setting alone.
        accumulate: number of parts that a step's batch is computed in, one after another. Each part stands for one
            process of the official code, see `train`. None takes the recipe's processes over those of this run.
        share_negatives: negatives come from all processes' videos and sentences. Together the processes compute what a
            single process would: they split a step's batch, and losses are means over all sentences of the batch.
        share_statistics: BatchNorm's statistics are over all processes' videos.
        evaluate_every: epochs between evaluations.
        checkpoint_every: steps between checkpoints; every epoch ends with one as well.
        cache_gib: see `TrainingData`.
        strict: refuse, in training and validation data, annotations that the official code repairs (times outside the
            video, ends before starts), sentences that the text encoder would cut, and videos without features.
        skip_missing: leave out videos without features; videos without tubes are left out anyway.
        any_features: warn of features of another contract than that of `init`, of the run's beginning or of the
            training features, instead of refusing them.
        official_pth: write `model.pth` too.
        resume: resume from the run's checkpoint, if there is one. `recipe.epochs` may have grown since: milestones and
            the other epochs of the recipe stay, and the result equals a run that began with the new number of epochs.
        progress: show progress on stderr.
    """

    preset: str | Path | Preset
    annotations: Path
    features: Path
    output: Path
    val_annotations: Path | None = None
    val_features: Path | None = None
    feature_key: str | None = None
    durations: Path | None = None
    init: str | Path | None = None
    tokenizer: str | Path | None = None
    text_encoder: str | Path | TextEncoderConfig | None = None
    recipe: Recipe | None = None
    text_rate: float = 0.1
    warmup_steps: int = 0
    dropout: float = 0.1
    losses: Losses = "full"
    seed: int | None = None
    precision: Precision = "fp32"
    device: str = "auto"
    threads: int | None = None
    accumulate: int | None = None
    share_negatives: bool = False
    share_statistics: bool = False
    evaluate_every: int = 1
    checkpoint_every: int = 0
    cache_gib: float = 4.0
    strict: bool = False
    skip_missing: bool = False
    any_features: bool = False
    official_pth: bool = False
    resume: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        if self.precision not in TRAINED:
            raise InputError(f"precision: expected one of {', '.join(TRAINED)}, got {self.precision!r}")
        for name, rule in _RULES.items():
            object.__setattr__(self, name, rule(getattr(self, name), name))
        if self.dropout >= 1:
            raise InputError(f"dropout: expected a number below 1, got {self.dropout!r}")

    def chosen_preset(self) -> Preset:
        """The preset with the run's recipe.

        Raises:
            InputError: it does not exist, or other options do not suit it.
        """
        preset = get_preset(self.preset)
        if self.recipe is not None:
            preset = dataclasses.replace(preset, recipe=self.recipe)
        allowed, kind = (TUBE_LOSSES, "tubes") if preset.of_tubes else (MOMENT_LOSSES, "moments")
        if self.losses not in allowed:
            raise InputError(
                f"losses: expected one of {', '.join(allowed)} for {preset.name!r}, a preset of {kind},"
                f" got {self.losses!r}"
            )
        if preset.of_tubes:
            self._check_for_tubes(preset.name)
        return preset

    def _check_for_tubes(self, name: str) -> None:
        """Refuse options that mean nothing for tubes."""
        for option, given, why in (
            ("share_negatives", self.share_negatives, "whose negatives are those of each process"),
            ("feature_key", self.feature_key is not None, "whose files have one layout"),
            ("durations", self.durations is not None, "whose annotations are in frames"),
            ("any_features", self.any_features, "whose features have no contract"),
        ):
            if given:
                raise InputError(f"{option}: expected none for {name!r}, a preset of tubes, {why}")

    def parts_of(self, recipe: Recipe, world: int) -> int:
        """Parts that each of `world` processes computes one after another.

        Raises:
            InputError: the processes cannot share the recipe's parts evenly, or the batch cannot be cut into the parts.
        """
        accumulate = self.accumulate
        if accumulate is None:
            if recipe.processes > 1 and recipe.processes % world:
                raise InputError(
                    f"accumulate: expected a number, because the recipe's {recipe.processes} parts of a step do not"
                    f" divide among {world} processes, got none"
                )
            accumulate = max(recipe.processes // world, 1)
        if recipe.batch_size % (world * accumulate):
            raise InputError(
                f"batch_size: expected a multiple of processes x accumulate, {world * accumulate}, got"
                f" {recipe.batch_size}"
            )
        return accumulate
