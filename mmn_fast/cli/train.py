"""Commands that make: data, train."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmn_fast.cli.app import app
from mmn_fast.cli.names import Commands
from mmn_fast.cli.options import (
    AnyFeatures,
    AsJson,
    Device,
    Durations,
    FeatureKey,
    Features,
    Strict,
    Threads,
    integers,
    lines_of,
    size_of,
)
from mmn_fast.cli.output import show

if TYPE_CHECKING:
    from mmn_fast.recipes import Recipe

data = Commands(help="Make data sets.", no_args_is_help=True)
app.add_typer(data, name="data")


@data.command()
def shapes(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to create; must not exist.")],
    seed: Annotated[int, typer.Option("--seed", help="Another seed gives other videos.")] = 0,
    train: Annotated[int, typer.Option("--train", help="Videos to train on.")] = 2500,
    val: Annotated[int, typer.Option("--val", help="Videos to validate on.")] = 100,
    test: Annotated[int, typer.Option("--test", help="Videos to test on.")] = 200,
    test_unseen: Annotated[
        int, typer.Option("--test-unseen", help="Videos of combinations that are not in training.")
    ] = 200,
    tubes: Annotated[
        bool, typer.Option("--tubes", help="Tubes and sentences about one shape each, in the layout of HC-STVG.")
    ] = False,
    video: Annotated[bool, typer.Option("--video", help="Also write mp4 files; needs the extra video.")] = False,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes; default: one per core.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make the procedural data set: coloured shapes that enter, move, grow, swap, meet, with sentences and times."""
    from mmn_fast.demo.shapes import write_dataset
    from mmn_fast.demo.tube_files import write_tubes

    counts = {"train": train, "val": val, "test": test, "test_unseen": test_unseen}
    write = write_tubes if tubes else write_dataset
    manifest = write(output, seed, counts, video, workers, progress=True)
    show(json.dumps(manifest, indent=2) if as_json else f"{output}:\n{lines_of(manifest, '  ')}")


@data.command()
def vocab(
    annotations: Annotated[
        list[Path], typer.Option("--annotations", help="Training annotations, as for eval; may be given again.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="vocab.txt to write; must not exist.")],
    size: Annotated[int, typer.Option("--size", help="Entries at most.")] = 8000,
    durations: Annotated[Path | None, typer.Option("--durations", help="As for eval.")] = None,
) -> None:
    """Build a vocabulary of word pieces from the sentences of annotations, for `train --tokenizer`."""
    from mmn_fast.training.vocabulary import write_vocabulary

    entries, sentences = write_vocabulary(annotations, output, size, durations)
    typer.echo(f"{output}: {entries} entries from {sentences} sentences")


@dataclass(frozen=True)
class DataOptions:
    """Files that a run reads and writes."""

    annotations: Annotated[Path, typer.Option("--annotations", help="As for eval; the training split.")]
    features: Features
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the run; the result is its model/.")]
    val_annotations: Annotated[
        Path | None, typer.Option("--val-annotations", help="Evaluate on these and keep the best model.")
    ] = None
    val_features: Annotated[Path | None, typer.Option("--val-features", help="Default: --features.")] = None
    feature_key: FeatureKey = None
    durations: Durations = None


@dataclass(frozen=True)
class StartOptions:
    """The start of a run: weights, text encoder, tokenizer."""

    init: Annotated[
        str | None,
        typer.Option("--init", help="Start from the weights of a converted directory, hub id or official .pth."),
    ] = None
    text_encoder: Annotated[
        str | None,
        typer.Option(
            "--text-encoder",
            help="DistilBERT directory or hub id; or sizes to start from scratch: a JSON file or 'width=128,...'.",
        ),
    ] = None
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="Default: that of --text-encoder or --init.")] = (
        None
    )


@dataclass(frozen=True)
class RecipeOptions:
    """Changes of the preset's recipe."""

    epochs: Annotated[int | None, typer.Option("--epochs", help="Default here and below: the preset's recipe.")] = None
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Videos per step, over all processes.")] = None
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", help="Learning rate; the text encoder's is --text-rate times that."),
    ] = None
    milestones: Annotated[str | None, typer.Option("--milestones", help="Epochs, as in '8,13'.")] = None
    freeze_text_epochs: Annotated[
        int | None,
        typer.Option("--freeze-text-epochs", help="Epochs at the start in which the text encoder is not updated."),
    ] = None
    all_losses_epochs: Annotated[
        int | None,
        typer.Option(
            "--all-losses-epochs", help="Epochs with the full contrastive terms; then they weigh a hundredth."
        ),
    ] = None
    contrastive_weight: Annotated[
        float | None, typer.Option("--contrastive-weight", help="Weight of the contrastive terms beside the iou loss.")
    ] = None

    def applied_to(self, recipe: Recipe, **read: Any) -> Recipe:
        """Return the recipe with the given options in place of its values; `read` has options that were parsed."""
        given: dict[str, Any] = {name: value for name, value in vars(self).items() if value is not None}
        if self.milestones is not None:
            given["milestones"] = integers("--milestones", self.milestones)
        return dataclasses.replace(recipe, **(given | read))


@dataclass(frozen=True)
class LoopOptions:
    """Options of the training loop."""

    text_rate: Annotated[float, typer.Option("--text-rate", help="Text encoder's learning rate over the rest's.")] = 0.1
    warmup_steps: Annotated[int, typer.Option("--warmup-steps", help="Steps over which the rate grows.")] = 0
    dropout: Annotated[float, typer.Option("--dropout", help="Dropout of the text encoder.")] = 0.1
    losses: Annotated[
        str, typer.Option("--losses", help="full, no-cross-video or iou-only; for tubes full, corrected or iou-only.")
    ] = "full"
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of weights, order and dropout; default: the preset's.")
    ] = None
    precision: Annotated[str, typer.Option("--precision", help="fp32, or autocast to bf16 or fp16.")] = "fp32"
    device: Device = "auto"
    threads: Threads = None
    accumulate: Annotated[
        int | None,
        typer.Option("--accumulate", help="Compute a step's batch in N parts; default: as the preset's recipe says."),
    ] = None
    share_negatives: Annotated[
        bool, typer.Option("--share-negatives", help="Negatives from all processes' videos (torchrun).")
    ] = False
    share_statistics: Annotated[
        bool, typer.Option("--share-statistics", help="BatchNorm statistics over all processes (torchrun).")
    ] = False
    evaluate_every: Annotated[int, typer.Option("--evaluate-every", help="Epochs between evaluations.")] = 1
    checkpoint_every: Annotated[
        int, typer.Option("--checkpoint-every", help="Steps between checkpoints, beside one per epoch; 0: none.")
    ] = 0
    cache_gib: Annotated[float, typer.Option("--cache-gib", help="GiB of memory in which features are kept.")] = 4.0
    strict: Strict = False
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out videos without features and say how many.")
    ] = False
    any_features: AnyFeatures = False
    official_pth: Annotated[bool, typer.Option("--official-pth", help="Write model.pth too.")] = False
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the checkpoint; --epochs may grow.")] = False


@app.command()
def train(
    *,
    preset: Annotated[str, typer.Option("--preset", help="Preset, or a YAML file: official, or of `preset new`.")],
    data: DataOptions,
    start: StartOptions,
    recipe: RecipeOptions,
    loop: LoopOptions,
) -> None:
    """Train a model by the official recipe; under torchrun on several devices."""
    from mmn_fast.presets import get_preset
    from mmn_fast.process.environment import requested_threads
    from mmn_fast.training.run.options import TrainOptions
    from mmn_fast.training.run.trainer import InterruptedRunError
    from mmn_fast.training.run.trainer import train as run

    chosen = get_preset(preset)
    settings = {**vars(data), **vars(start), **vars(loop), "threads": requested_threads(loop.threads)}
    options = TrainOptions(preset=chosen, recipe=recipe.applied_to(chosen.recipe), progress=True, **settings)
    try:
        result = run(options)
    except InterruptedRunError as stopped:
        typer.echo(f"mmn-fast: {stopped} (--resume)", err=True)
        raise typer.Exit(130) from None
    show(f"{result}: preset {chosen.name}, {size_of(result)}")
