"""Training on tubes: batches, the objective, the official recipe, runs that resume, and what is left out or refused."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mmn_fast.checkpoint import load_model
from mmn_fast.cli import app
from mmn_fast.errors import InputError
from mmn_fast.evaluation.tubes import read_tube_annotations
from mmn_fast.features.tubes import open_tubes
from mmn_fast.model import MMN
from mmn_fast.presets import get_preset
from mmn_fast.tokenizer import load_tokenizer
from mmn_fast.training.initial import new_model
from mmn_fast.training.losses import iou_loss
from mmn_fast.training.run import trainer
from mmn_fast.training.run.options import TrainOptions
from mmn_fast.training.run.trainer import train
from mmn_fast.training.tube_data import TubeData
from mmn_fast.training.tube_losses import tube_contrastive_loss
from mmn_fast.training.tube_objective import TubeObjective
from tests.process_group import Group, command_line
from tests.test_training_processes import official_batches
from tests.tiny_model import vocabulary
from tests.tolerances import check_close
from tests.training_runs import Crash, assert_same_run, crash_at, lines, options
from tests.training_task import PRESET, TEXT
from tests.tube_task import TUBE_PRESET, make_videos, tube_command, write_tube_task


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vocabulary(tmp_path_factory.mktemp("words") / "vocab.txt")


def tiny_data(words: Path, count: int = 5, **changes: object) -> TubeData:
    samples, tubes = make_videos(count, seed=1)
    return TubeData(samples, tubes, TUBE_PRESET, load_tokenizer(words), **changes)  # type: ignore[arg-type]


def test_a_batch_holds_every_tube_with_its_target_whether_kept_or_read_again(words: Path) -> None:
    data, again = tiny_data(words), tiny_data(words, cache_gib=0)
    counts = [len(make_videos(5, seed=1)[1][name]) for name in data.video_ids]
    batch, other = data.batch([3, 0, 4]), again.batch([3, 0, 4])
    assert batch.video_of.tolist() == [0] * counts[3] + [1] * counts[0] + [2] * counts[4]
    assert batch.pre_clips.shape == (len(batch.video_of), TUBE_PRESET.num_pre_clips, TUBE_PRESET.input_size)
    assert batch.target.shape == (len(batch.video_of), 36)
    for field in dataclasses.fields(batch):
        assert torch.equal(getattr(batch, field.name), getattr(other, field.name))


def test_entries_that_repeat_a_video_s_tubes_take_its_memory_once(words: Path) -> None:
    samples, tubes = make_videos(3, seed=1)
    repeated = [dataclasses.replace(sample, video_id=f"{sample.video_id}-again") for sample in samples]
    tubes |= {f"{name}-again": found for name, found in list(tubes.items())}
    once = sum(len(found) for found in tubes.values()) / 2 * TUBE_PRESET.num_pre_clips * TUBE_PRESET.input_size * 4
    arguments = ([*samples, *repeated], tubes, TUBE_PRESET, load_tokenizer(words))
    data = TubeData(*arguments, cache_gib=once / 2**30)
    assert data._cache is not None
    assert data._cache["v1-again"] is data._cache["v1"]
    assert TubeData(*arguments, cache_gib=0.9 * once / 2**30)._cache is None


def test_the_objective_equals_the_seams_of_the_reference_model(words: Path) -> None:
    torch.manual_seed(0)
    model = MMN(TUBE_PRESET, TEXT).double().train()
    model.text_encoder.bert.dropout = 0.0
    batch = tiny_data(words).batch(np.arange(5))
    batch = dataclasses.replace(batch, pre_clips=batch.pre_clips.double(), target=batch.target.double())
    reference, params = copy.deepcopy(model), TUBE_PRESET.loss
    actual = TubeObjective(model)(batch)

    contrastive, iou = reference.proposal_conv(reference.moment_map(batch.pre_clips))
    mask = reference.mask
    text = reference.text_encoder(batch.token_ids, batch.lengths)
    expected = tube_contrastive_loss(contrastive[:, :, mask].mT, text[0], batch.video_of, batch.target, params)
    normalize = torch.nn.functional.normalize
    cosine = torch.einsum("gj,gjyx->gyx", normalize(text[1], dim=1)[batch.video_of], normalize(iou, dim=1))
    maps = torch.zeros_like(cosine)
    maps[:, mask] = batch.target
    loss_iou = iou_loss((10 * cosine).sigmoid(), maps, mask, params.min_iou, params.max_iou)
    for a, e in zip(actual, (*expected, loss_iou), strict=True):
        check_close(a.item(), e.item(), "losses", "fp64")
    without = TubeObjective(copy.deepcopy(reference), "iou-only")(batch)
    assert without[:2].tolist() == [0, 0]
    check_close(without[2].item(), loss_iou.item(), "losses", "fp64")


def test_videos_without_tubes_are_left_out_and_counted(words: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples, tubes = make_videos(5, seed=1)
    tubes["v1"] = []
    del tubes["v3"]
    data = TubeData(samples, tubes, TUBE_PRESET, load_tokenizer(words))
    assert data.video_ids == ["v0", "v2", "v4"]
    assert "2 of 5 videos left out: they have no tubes, as in the official code (first: 'v1', 'v3')" in caplog.text
    with pytest.raises(InputError, match=r"^strict: 2 of 5 videos left out"):
        TubeData(samples, tubes, TUBE_PRESET, load_tokenizer(words), strict=True)
    with pytest.raises(InputError, match=r"^features: none of the 5 videos of annotations has a tube: 'v0', 'v1', "):
        TubeData(samples, {}, TUBE_PRESET, load_tokenizer(words))


def test_a_tube_that_cannot_be_used_is_named_with_its_video(words: Path) -> None:
    samples, tubes = make_videos(3, seed=1)
    tubes["v2"] = [*tubes["v2"], dataclasses.replace(tubes["v2"][0], features=[np.zeros((4, 9), np.float32)])]
    with pytest.raises(InputError, match=rf"^video 'v2': tube {len(tubes['v2']) - 1}: features: expected 2 streams"):
        TubeData(samples, tubes, TUBE_PRESET, load_tokenizer(words))
    tubes["v2"][-1] = dataclasses.replace(tubes["v2"][0], frames=tubes["v2"][0].frames * 2)
    with pytest.raises(InputError, match=rf"^video 'v2': tube {len(tubes['v2']) - 1}: frames: expected consecutive"):
        TubeData(samples, tubes, TUBE_PRESET, load_tokenizer(words))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tubes")
    held_out = write_tube_task(root, 4, 4, "val")
    more = {"val_annotations": held_out["annotations"], "val_features": held_out["features"]}
    return {**write_tube_task(root, 11, 3, "train"), **more}


def tube_options(task: dict[str, Path], output: Path, **changes: Any) -> TrainOptions:
    recipe = dataclasses.replace(
        TUBE_PRESET.recipe, epochs=2, milestones=(1,), freeze_text_epochs=1, all_losses_epochs=1, batch_size=4
    )
    return options(task, output, **({"preset": TUBE_PRESET, "recipe": recipe} | changes))


@pytest.mark.slow
def test_a_run_resumes_to_the_bit_and_keeps_the_best_viou(
    task: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train(tube_options(task, tmp_path / "whole", official_pth=True))
    with monkeypatch.context() as patch:
        crash_at(patch, 4)
        with pytest.raises(Crash):
            train(tube_options(task, tmp_path / "cut", checkpoint_every=1))
    train(tube_options(task, tmp_path / "cut", checkpoint_every=1, resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")

    found = lines(tmp_path / "whole")
    steps = [line for line in found if "metrics" not in line]
    # 11 videos in two blocks of 6, of which each step takes 2: the last step is kept.
    assert [line["videos"] for line in steps] == [4, 4, 4] * 2
    assert [line["learning_rate"] for line in steps[2:4]] == pytest.approx([5e-3, 5e-4])
    assert [line["text_learning_rate"] for line in steps[2:4]] == pytest.approx([0, 5e-5])
    for line, weight in zip(steps[2:4], (0.05, 0.0005), strict=True):
        assert line["loss"] == pytest.approx(line["loss_iou"] + weight * (line["loss_video"] + line["loss_sentence"]))
    evaluations = [line for line in found if "metrics" in line]
    best = max(evaluations, key=lambda line: line["metrics"]["m_vIoU"])
    assert [path.name for path in (tmp_path / "whole").glob("best-*")] == [f"best-{best['epoch']}"]
    assert load_model(tmp_path / "whole" / "model.pth").fingerprint == load_model(result).fingerprint


def test_a_frozen_text_encoder_keeps_its_dropout(words: Path) -> None:
    torch.manual_seed(0)
    model, *_ = new_model(TUBE_PRESET, TEXT, words, None, dropout=0.1)
    model.text_encoder.bert.requires_grad_(False)
    batch = tiny_data(words).batch(np.arange(5))
    objective = TubeObjective(model)
    assert not torch.equal(objective(batch), objective(batch))
    model.text_encoder.bert.dropout = 0.0
    assert torch.equal(objective(batch), objective(batch))


def test_a_run_takes_the_constants_of_its_recipe(
    task: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, orders = trainer.epoch_order, []

    def epoch_order(count: int, seed: int, epoch: int) -> Any:
        orders.append((count, seed, epoch))
        return real(count, seed, epoch)

    monkeypatch.setattr(trainer, "epoch_order", epoch_order)
    recipe = dataclasses.replace(
        TUBE_PRESET.recipe, epochs=1, batch_size=11, processes=1, freeze_text_epochs=0, max_gradient_norm=0.01
    )
    changes = {"recipe": recipe, "val_annotations": None}
    train(tube_options(task, tmp_path / "run", **changes))
    train(tube_options(task, tmp_path / "other", seed=7, **changes))
    assert orders == [(11, 0, 1), (11, 7, 1)]  # the recipe's own seed gives the official order
    content = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert (content["run"]["seed"], content["run"]["accumulate"]) == (25285, 1)
    for group in content["optimizer"]["param_groups"]:
        assert (group["betas"], group["weight_decay"]) == ((0.9, 0.999), 1e-6)
    # After one step AdamW's mean is a tenth of the clipped gradient.
    means = [values["exp_avg"] for values in content["optimizer"]["state"].values()]
    assert lines(tmp_path / "run")[0]["gradient_norm"] > 0.01
    assert torch.nn.utils.get_total_norm(means).item() == pytest.approx(0.001, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2], ids=["parts", "processes"])
def test_two_parts_or_processes_have_their_own_negatives_and_statistics_and_weigh_the_same(
    processes: int, task: dict[str, Path], tmp_path: Path, group: Group
) -> None:
    """The losses and gradient norms of an epoch equal those of two official processes, computed by hand.

    At a rate of nearly 0, so that steps can be compared.
    """
    changes = ("--dropout", "0", "--epochs", "1", "--batch-size", "4", "--learning-rate", "1e-30", "--device", "cpu")
    arguments = tube_command(task, tmp_path, "run", *changes, "--accumulate", str(2 // processes))
    if processes == 1:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
    else:
        group(command_line, processes, *arguments)
    steps = lines(tmp_path / "run")

    preset = get_preset(tmp_path / "tubes.yaml")
    torch.manual_seed(preset.recipe.seed)
    model, _, words, _ = new_model(preset, TEXT, task["tokenizer"], None, dropout=0.0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("bert" not in name)  # the first epoch freezes it
    with open_tubes(task["features"]) as tubes:
        data = TubeData(read_tube_annotations(task["annotations"]), tubes, preset, words)
    batches = [official_batches(11, 4, 2, rank, epoch=1) for rank in (0, 1)]
    assert len(steps) == len(batches[0]) == 3
    for number, step in enumerate(steps):
        model.zero_grad()
        losses = torch.zeros(3)
        for rank in (0, 1):
            terms = TubeObjective(model)(data.batch(batches[rank][number]))
            ((terms[0] + terms[1]) * preset.recipe.contrastive_weight + terms[2]).div(2).backward()
            losses += terms.detach() / 2
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        names = ("loss_video", "loss_sentence", "loss_iou", "gradient_norm")
        for name, value in zip(names, [*losses.tolist(), norm.item()], strict=True):
            check_close(step[name], value, "training_parts", "fp32", f"step {number}: {name}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"losses": "no-cross-video"},
            r"losses: expected one of full, corrected, iou-only for 'tiny-tubes', a preset of tubes, got 'no-cross",
        ),
        ({"share_negatives": True}, r"share_negatives: expected none for 'tiny-tubes', a preset of tubes, whose neg"),
        ({"feature_key": "csn"}, r"feature_key: expected none for 'tiny-tubes', a preset of tubes, whose files have"),
        ({"durations": Path("a")}, r"durations: expected none for 'tiny-tubes', a preset of tubes, whose annotations"),
        ({"accumulate": 3}, r"batch_size: expected a multiple of processes x accumulate, 3, got 4"),
        (
            {"preset": PRESET, "losses": "corrected"},
            r"losses: expected one of full, no-cross-video, iou-only for 'tiny'",
        ),
    ],
)
def test_options_that_do_not_suit_tubes_are_refused(
    changes: dict[str, Any], message: str, task: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        train(tube_options(task, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_processes_that_cannot_share_the_recipe_s_parts_are_refused() -> None:
    made = TrainOptions(preset="hc-stvg", annotations=Path("a"), features=Path("f"), output=Path("o"))
    recipe = made.chosen_preset().recipe
    assert [made.parts_of(recipe, world) for world in (1, 2, 4, 8)] == [8, 4, 2, 1]
    with pytest.raises(InputError, match=r"^accumulate: expected a number, because the recipe's 8 parts of a step do"):
        made.parts_of(recipe, 3)
    assert dataclasses.replace(made, accumulate=2).parts_of(recipe, 16) == 2
