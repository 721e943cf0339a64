"""Options that set the values of a preset, its losses and its recipe; an option that is not given keeps the value."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmn_fast.cli.options import integers, numbers
from mmn_fast.cli.train import RecipeOptions
from mmn_fast.errors import InputError

if TYPE_CHECKING:
    from mmn_fast.presets import Preset
    from mmn_fast.recipes import Recipe


@dataclass(frozen=True)
class SizeOptions:
    """Sizes and conventions of the model."""

    input_size: Annotated[
        int | None, typer.Option("--input-size", help="D, width of a feature row; one stream of features.")
    ] = None
    feature_streams: Annotated[
        str | None, typer.Option("--feature-streams", help="Widths of several streams side by side, as in '1024,1024'.")
    ] = None
    num_pre_clips: Annotated[int | None, typer.Option("--num-pre-clips", help="T, averaged features per video.")] = None
    num_clips: Annotated[int | None, typer.Option("--num-clips", help="N, side of the map of moments.")] = None
    clip_pool_kernel: Annotated[
        int | None, typer.Option("--clip-pool-kernel", help="Pre-clips per clip; T / N where N divides T.")
    ] = None
    pooling: Annotated[str | None, typer.Option("--pooling", help="pool, or conv for learned pooling.")] = None
    pooling_counts: Annotated[
        str | None,
        typer.Option("--pooling-counts", help="Diagonals of the map at stride 1, 2, 4, ..., as in '15,8,8'."),
    ] = None
    hidden_size: Annotated[int | None, typer.Option("--hidden-size", help="C, width of a clip.")] = None
    conv_hidden_size: Annotated[
        int | None, typer.Option("--conv-hidden-size", help="Width of the proposal convolution.")
    ] = None
    conv_kernel: Annotated[int | None, typer.Option("--conv-kernel", help="k, its kernel.")] = None
    conv_layers: Annotated[int | None, typer.Option("--conv-layers", help="L, its layers.")] = None
    joint_size: Annotated[int | None, typer.Option("--joint-size", help="J, width of the joint space.")] = None
    clamp_pre_clips: Annotated[
        bool | None,
        typer.Option("--clamp-pre-clips/--no-clamp-pre-clips", help="MMN's bounds of pre-clips, or MMN-STVG's."),
    ] = None
    score_fusion: Annotated[
        str | None, typer.Option("--score-fusion", help="power; product makes a model of tubes.")
    ] = None
    score_power: Annotated[float | None, typer.Option("--score-power", help="p of the power fusion.")] = None
    nms_iou: Annotated[
        float | None, typer.Option("--nms-iou", help="IoU above which the worse of two moments is left out.")
    ] = None
    recall_at: Annotated[str | None, typer.Option("--recall-at", help="The n of R@n, as in '1,5'.")] = None
    recall_ious: Annotated[str | None, typer.Option("--recall-ious", help="The m of IoU@m, as in '0.5,0.7'.")] = None
    timestamp_unit: Annotated[
        str | None, typer.Option("--timestamp-unit", help="seconds or frames: the unit in annotations.")
    ] = None
    feature_key: Annotated[
        str | None,
        typer.Option("--feature-key", help="Dataset inside a video's HDF5 group; '' if the video is the dataset."),
    ] = None

    def given(self) -> dict[str, Any]:
        """The values of `Preset` that were given."""
        found = {name: value for name, value in vars(self).items() if value is not None}
        for name, read in (
            ("feature_streams", integers),
            ("pooling_counts", integers),
            ("recall_at", integers),
            ("recall_ious", numbers),
        ):
            if name in found:
                found[name] = read(_option(name), found[name])
        if self.feature_key == "":
            found["feature_key"] = None
        if "input_size" in found:
            if "feature_streams" in found:
                raise InputError("--input-size: give it or --feature-streams, not both")
            found["feature_streams"] = (found.pop("input_size"),)
        return found


@dataclass(frozen=True)
class LossOptions:
    """Parameters of the losses."""

    tau_video: Annotated[
        float | None, typer.Option("--tau-video", help="Temperature of the video-to-sentence term.")
    ] = None
    tau_sent: Annotated[float | None, typer.Option("--tau-sent", help="Temperature of the sentence-to-video term.")] = (
        None
    )
    margin: Annotated[float | None, typer.Option("--margin", help="Margin of positive pairs.")] = None
    negative_video_iou: Annotated[
        float | None, typer.Option("--negative-video-iou", help="Cells of the video below this IoU are negatives.")
    ] = None
    sent_removal_iou: Annotated[
        float | None,
        typer.Option("--sent-removal-iou", help="Sentences of the video at or above this IoU are no negatives."),
    ] = None
    num_positive: Annotated[int | None, typer.Option("--num-positive", help="Positive proposals per sentence.")] = None
    min_iou: Annotated[float | None, typer.Option("--min-iou", help="IoU that the iou loss scales to 0.")] = None
    max_iou: Annotated[float | None, typer.Option("--max-iou", help="IoU that the iou loss scales to 1.")] = None

    def given(self) -> dict[str, Any]:
        """The values of `LossParams` that were given."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class FullRecipeOptions(RecipeOptions):
    """All values of a recipe."""

    test_batch_size: Annotated[int | None, typer.Option("--test-batch-size", help="Videos per evaluation batch.")] = (
        None
    )
    betas: Annotated[str | None, typer.Option("--betas", help="AdamW's decay rates, as in '0.9,0.99'.")] = None
    weight_decay: Annotated[float | None, typer.Option("--weight-decay", help="AdamW's weight decay.")] = None
    max_gradient_norm: Annotated[
        float | None, typer.Option("--max-gradient-norm", help="The gradient's norm is clipped to this.")
    ] = None
    processes: Annotated[
        int | None, typer.Option("--processes", help="Parts of a step's batch, each with its own negatives.")
    ] = None
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of initial weights and dropout.")] = None

    def applied_to(self, recipe: Recipe, **read: Any) -> Recipe:
        """Return the recipe with the given options in place of its values; `read` has options that were parsed."""
        if self.betas is not None:
            read["betas"] = numbers("--betas", self.betas)
        return super().applied_to(recipe, **read)


def changed(base: Preset, name: str, sizes: SizeOptions, losses: LossOptions, recipe: FullRecipeOptions) -> Preset:
    """A preset with the given options in place of the base's values.

    Raises:
        InputError: the values do not make a model.
    """
    parts: dict[str, Any] = {
        "loss": dataclasses.replace(base.loss, **losses.given()),
        "recipe": recipe.applied_to(base.recipe),
    }
    return dataclasses.replace(base, name=name, **parts, **sizes.given())


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
