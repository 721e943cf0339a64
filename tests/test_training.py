"""The training run: it learns, follows the official schedule and batches, and writes a model that loads."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmn_fast
from mmn_fast.checkpoint import load_model
from mmn_fast.cli import app
from mmn_fast.errors import InputError
from mmn_fast.evaluation.datasets import read_annotations
from mmn_fast.evaluation.evaluate import evaluate
from mmn_fast.features import open_features
from mmn_fast.model import MMN
from mmn_fast.presets import PRESETS
from mmn_fast.training.data import epoch_order, epoch_parts
from mmn_fast.training.initial import new_model, parse_text_encoder
from mmn_fast.training.objective import Objective
from mmn_fast.training.run.options import TrainOptions
from mmn_fast.training.run.schedule import contrastive_weight, learning_rates
from mmn_fast.training.run.trainer import train
from tests.tolerances import check_close
from tests.training_runs import command, data_of, lines, options
from tests.training_task import PRESET, TEXT, write_task


@pytest.mark.slow
def test_tiny_model_beats_chance_by_far_on_held_out_videos(tmp_path: Path) -> None:
    paths = write_task(tmp_path, 128, seed=3)
    held_out = write_task(tmp_path, 64, seed=4, name="test")["annotations"]
    recipe = dataclasses.replace(PRESET.recipe, epochs=6)
    result = train(
        TrainOptions(
            preset=PRESET, text_encoder=TEXT, text_rate=1.0, recipe=recipe, output=tmp_path / "run", threads=1, **paths
        )
    )
    engine = mmn_fast.load(result, backend="torch")
    samples = read_annotations(held_out, PRESET)
    with open_features(paths["features"]) as store:
        learnt = evaluate(engine, samples, store).metrics["R@1,IoU@0.5"]
    by_chance = np.mean(
        [
            (engine_free_iou(windows[0], sample.duration_s) >= 0.5).mean()
            for sample in samples
            for windows in sample.moments_s
        ]
    )
    assert by_chance < 0.25
    assert learnt > 0.6, f"R@1,IoU@0.5 {learnt:.3f}, a random proposal has {by_chance:.3f}"


def engine_free_iou(window: Any, duration_s: float) -> Any:
    """Compute the IoU of every proposal with a window."""
    from mmn_fast.geometry import cells_to_moments, plan_for, temporal_iou

    return temporal_iou(cells_to_moments(plan_for(PRESET).cells, duration_s, PRESET.num_clips), window)


def test_run_keeps_the_best_epoch_and_writes_an_official_checkpoint(task: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = train(options(task, run, official_pth=True))
    evaluations = [line for line in lines(run) if "metrics" in line]
    assert [line["epoch"] for line in evaluations] == [1, 2, 3]
    best = max(evaluations, key=lambda line: line["metrics"]["Best_R1"])
    assert [path.name for path in run.glob("best-*")] == [f"best-{best['epoch']}"]
    engine = mmn_fast.load(result, backend="torch")
    with open_features(task["features"]) as store:
        metrics = evaluate(engine, read_annotations(task["val_annotations"], PRESET), store).metrics
    assert metrics == best["metrics"]
    content = torch.load(run / "model.pth", weights_only=True)
    assert content["epoch"] == best["epoch"]
    state = {name.removeprefix("module."): tensor for name, tensor in content["model"].items()}
    MMN(PRESET, TEXT).load_state_dict(state)


def test_run_goes_on_from_a_model(task: dict[str, Path], tmp_path: Path) -> None:
    first = train(options(task, tmp_path / "first"))
    without_rate = dataclasses.replace(options(task, tmp_path).recipe, learning_rate=1e-30, epochs=1)
    second = train(
        options(task, tmp_path / "second", init=first, text_encoder=None, tokenizer=None, recipe=without_rate)
    )
    before, after = load_model(first), load_model(second)
    for name, array in before.state.items():
        assert ".running_" in name or np.array_equal(array, after.state[name]), name
    with pytest.raises(InputError, match=r"init: .* holds a model of preset 'tiny', not of 'charades-sta'"):
        train(options(task, tmp_path / "third", init=first, text_encoder=None, preset="charades-sta"))


def test_log_has_a_line_per_step_with_the_recipes_rates(task: dict[str, Path], tmp_path: Path) -> None:
    train(options(task, tmp_path / "run", val_annotations=None))
    steps = lines(tmp_path / "run")
    assert [line["step"] for line in steps] == list(range(1, 10))
    assert [line["videos"] for line in steps] == [8, 8, 4] * 3
    assert [line["text_learning_rate"] for line in steps[:4:3]] == [0.0, pytest.approx(5e-4)]
    assert [line["learning_rate"] for line in steps[::3]] == pytest.approx([5e-3, 5e-3, 5e-4])
    for line in steps:
        weight = contrastive_weight(options(task, tmp_path).recipe, line["epoch"])  # type: ignore[arg-type]
        assert line["loss"] == pytest.approx(line["loss_iou"] + weight * (line["loss_video"] + line["loss_sentence"]))


def test_schedule_is_the_official_one() -> None:
    recipe = PRESETS["charades-sta"].recipe
    rates = {epoch: learning_rates(recipe, epoch, 0, 0.1, 0) for epoch in (1, 8, 9, 13, 14)}
    expected = {1: 1e-4, 8: 1e-4, 9: 1e-5, 13: 1e-5, 14: 1e-6}
    for epoch, rate in expected.items():
        assert rates[epoch] == pytest.approx((rate, rate / 10))
    assert contrastive_weight(recipe, 7) == 0.05
    assert contrastive_weight(recipe, 8) == pytest.approx(0.0005)
    assert learning_rates(recipe, 1, 0, 0.1, 4)[0] == pytest.approx(2e-5)
    recipe = PRESETS["hc-stvg"].recipe
    assert (recipe.epochs, recipe.freeze_text_epochs, recipe.batch_size) == (20, 5, 32)
    for epoch, rate in {1: 1e-4, 11: 1e-4, 12: 1e-5, 16: 1e-5, 17: 1e-6}.items():
        assert learning_rates(recipe, epoch, 0, 0.1, 0) == pytest.approx((rate, rate / 10))
    assert contrastive_weight(recipe, 10) == 0.1
    assert contrastive_weight(recipe, 11) == pytest.approx(0.001)


def test_frozen_text_encoder_does_not_move(task: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    before, *_ = new_model(PRESET, TEXT, task["tokenizer"], None, 0.1)
    recipe = dataclasses.replace(options(task, tmp_path).recipe, epochs=1)  # type: ignore[type-var]
    after = load_model(train(options(task, tmp_path / "run", recipe=recipe))).state
    moved = {
        name: not np.array_equal(parameter.detach().numpy(), after[name])
        for name, parameter in before.named_parameters()
    }
    assert not any(changed for name, changed in moved.items() if "bert" in name)
    assert moved["text_encoder.fc_out1.weight"]
    assert moved["featpool.conv.weight"]


def test_epoch_order_depends_on_seed_and_epoch_alone() -> None:
    orders = {(seed, epoch): tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (1, 2)}
    assert len(set(orders.values())) == 4
    assert orders[1, 2] == tuple(epoch_order(50, 1, 2))
    official = torch.randperm(50, generator=torch.Generator().manual_seed(2)).tolist()
    assert list(orders[0, 2]) == official


@pytest.mark.parametrize(("videos", "batch", "parts"), [(10, 4, 1), (10, 4, 4), (3, 8, 8), (1, 6, 2), (16, 8, 2)])
def test_every_video_is_in_an_epoch_and_no_part_is_empty(videos: int, batch: int, parts: int) -> None:
    steps = epoch_parts(np.arange(videos), batch, parts)
    assert all(len(step) == parts and all(len(part) for part in step) for step in steps)
    seen = np.concatenate([part for step in steps for part in step])
    assert set(seen) == set(range(videos))
    assert len(seen) < videos + parts
    assert all(sum(map(len, step)) == batch for step in steps[:-1])


def test_batches_do_not_depend_on_the_cache_or_the_company(task: dict[str, Path]) -> None:
    cached, read = data_of(task), data_of(task, cache_gib=0)
    one, other = cached.batch([3, 0, 7]), read.batch([3, 0, 7])
    assert all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    alone = cached.batch([0])
    rows = one.video_of == 1
    assert torch.equal(one.iou[rows], alone.iou)
    assert torch.equal(one.moments[rows], alone.moments)
    assert torch.equal(one.pre_clips[1], alone.pre_clips[0])
    assert cached.sentences_in([3, 0, 7]) == len(one.video_of) == 6


def test_train_command_makes_a_model_that_loads(task: dict[str, Path], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, command(task, tmp_path, "run", "--epochs", "1", "--milestones", "1,2"))
    assert done.exit_code == 0, done.output
    engine = mmn_fast.load(tmp_path / "run" / "model", backend="torch")
    assert engine.preset.recipe.epochs == 1
    assert engine.preset.recipe.milestones == (1, 2)


def test_text_encoder_sizes_are_read_from_json(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    path.write_text('{"width": 64, "num_heads": 4}')
    for source in (str(path), path.read_text(), "width=64,num_heads=4"):
        config = parse_text_encoder(source, 99)
        assert (config.vocab_size, config.width, config.num_heads, config.num_layers) == (99, 64, 4, 6)


@pytest.mark.slow
def test_published_text_encoder_is_taken_as_it_is(task: dict[str, Path], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.DistilBertConfig(
        vocab_size=20, max_position_embeddings=12, dim=16, n_layers=1, n_heads=2, hidden_dim=32
    )
    torch.manual_seed(0)
    published = transformers.DistilBertForMaskedLM(config).eval()
    published.save_pretrained(tmp_path / "distilbert")
    (tmp_path / "distilbert" / "vocab.txt").write_bytes(task["tokenizer"].read_bytes())
    model, sizes, *_ = new_model(PRESET, tmp_path / "distilbert", None, None, 0.1)
    assert sizes == TEXT
    ids = torch.tensor([[2, 5, 7, 8, 3]])
    model.eval()
    expected = published.distilbert(ids).last_hidden_state
    check_close(
        model.text_encoder.bert(ids, torch.ones_like(ids, dtype=torch.bool)).detach(), expected.detach(), "text_encoder"
    )


def test_objective_equals_the_seams_of_the_reference_model(task: dict[str, Path]) -> None:
    """The losses of a batch are compared with the dense model's, with sentences encoded video by video."""
    from mmn_fast.training.losses import contrastive_loss, iou_loss

    torch.manual_seed(0)
    model, *_ = new_model(PRESET, TEXT, task["tokenizer"], None, dropout=0.0)
    model = model.double()
    data = data_of(task)
    batch = data.batch(np.arange(5))
    batch = dataclasses.replace(
        batch, pre_clips=batch.pre_clips.double(), iou=batch.iou.double(), moments=batch.moments.double()
    )
    reference = copy.deepcopy(model)
    actual = Objective(model)(batch)

    contrastive, iou = reference.proposal_conv(reference.moment_map(batch.pre_clips))
    rows = [batch.video_of == v for v in range(5)]
    text = [reference.text_encoder(batch.token_ids[row], batch.lengths[row]) for row in rows]
    maps = torch.zeros(len(batch.iou), PRESET.num_clips, PRESET.num_clips, dtype=torch.float64)
    maps[:, reference.mask] = batch.iou
    params = PRESET.loss
    expected = contrastive_loss(
        contrastive, [t[0] for t in text], [maps[row] for row in rows], [batch.moments[row] for row in rows],
        reference.mask, params,
    )  # fmt: skip
    normalize = torch.nn.functional.normalize
    scores = [
        (10 * torch.einsum("sj,jyx->syx", normalize(t[1], dim=1), normalize(video, dim=0))).sigmoid()
        for t, video in zip(text, iou, strict=True)
    ]
    loss_iou = iou_loss(scores, maps, reference.mask, params.min_iou, params.max_iou)
    for a, e in zip(actual, (*expected, loss_iou), strict=True):
        check_close(a.item(), e.item(), "losses", "fp64")
