"""The training run: it learns, it resumes to the bit, it survives being killed, it refuses with a sentence."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

import mmn_fast
from mmn_fast.checkpoint import load_model
from mmn_fast.cli import app
from mmn_fast.errors import InputError
from mmn_fast.evaluation.datasets import read_annotations
from mmn_fast.evaluation.evaluate import evaluate
from mmn_fast.features import open_features
from mmn_fast.model import MMN
from mmn_fast.presets import PRESETS
from mmn_fast.tokenizer import load_tokenizer
from mmn_fast.training import trainer
from mmn_fast.training.data import TrainingData, epoch_order, epoch_parts
from mmn_fast.training.initial import new_model, parse_text_encoder
from mmn_fast.training.objective import Objective
from mmn_fast.training.options import TrainOptions
from mmn_fast.training.schedule import contrastive_weight, learning_rates
from mmn_fast.training.trainer import InterruptedRunError, train
from tests.tolerances import check_close
from tests.training_task import CONV_PRESET, PRESET, TEXT, write_task

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("task")
    paths = write_task(root, 20, seed=1)
    paths["val_annotations"] = write_task(root, 8, seed=2, name="val")["annotations"]
    return paths


def options(task: dict[str, Path], output: Path, **changes: Any) -> TrainOptions:
    recipe = dataclasses.replace(
        PRESET.recipe, epochs=3, milestones=(2,), freeze_text_epochs=1, all_losses_epochs=2, batch_size=8
    )
    values: dict[str, Any] = {"preset": PRESET, "text_encoder": TEXT, "recipe": recipe, "output": output, "threads": 1}
    return TrainOptions(**(values | task | changes))


def lines(run: Path) -> list[dict[str, Any]]:
    """The log without what the clock says."""
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for line in found:
        del line["seconds"]
    return found


def assert_same_run(first: Path, second: Path) -> None:
    assert lines(first) == lines(second)
    one, two = (torch.load(run / "checkpoint.pt", weights_only=True) for run in (first, second))
    assert one["position"] == two["position"]
    compare(one, two)
    ours, theirs = (load_model(run / "model") for run in (first, second))
    assert ours.fingerprint == theirs.fingerprint


def compare(one: Any, two: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            compare(one[key], two[key])
    elif isinstance(one, list):
        for a, b in zip(one, two, strict=True):
            compare(a, b)
    elif isinstance(one, Tensor):
        assert torch.equal(one, two)
    else:
        assert one == two


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
    """IoU of every proposal with a window."""
    from mmn_fast.geometry import cells_to_moments, plan_for, temporal_iou

    return temporal_iou(cells_to_moments(plan_for(PRESET).cells, duration_s, PRESET.num_clips), window)


class Crash(Exception):  # noqa: N818 - a power cut is no error of the program
    """Stands for a power cut: nothing gets to tidy up."""


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    real = trainer._Run._step

    def crashing(run: Any, *arguments: Any) -> Any:
        if run.position.step == step:
            raise Crash
        return real(run, *arguments)

    monkeypatch.setattr(trainer._Run, "_step", crashing)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "conv-accumulate-bf16": {"preset": CONV_PRESET, "accumulate": 2, "precision": "bf16", "warmup_steps": 3},
    "iou-only-uncached": {"losses": "iou-only", "cache_gib": 0},
    "fp16": {"precision": "fp16", "losses": "no-cross-video"},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    variant: str, task: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"checkpoint_every": 2, **VARIANTS[variant]}
    train(options(task, tmp_path / "whole", **changes))
    # Before the first checkpoint, within an epoch, and between epochs (3 steps each).
    for step in (1, 5, 6, 8):
        with monkeypatch.context() as patch:
            crash_at(patch, step)
            with pytest.raises(Crash):
                train(options(task, tmp_path / "cut", resume=True, **changes))
    train(options(task, tmp_path / "cut", resume=True, **changes))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_resuming_a_finished_run_changes_nothing(task: dict[str, Path], tmp_path: Path) -> None:
    result = train(options(task, tmp_path / "run"))
    before, weights = lines(tmp_path / "run"), load_model(result).fingerprint
    assert train(options(task, tmp_path / "run", resume=True)) == result
    assert lines(tmp_path / "run") == before
    assert load_model(result).fingerprint == weights


@pytest.mark.parametrize("step", [1, 2], ids=["within an epoch", "at its end"])
def test_sigterm_writes_a_checkpoint_at_the_steps_end(
    step: int, task: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(options(task, tmp_path / "whole"))
    real = trainer._Run._step

    def signalled(run: Any, *arguments: Any) -> Any:
        if run.position.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Run, "_step", signalled)
        with pytest.raises(InterruptedRunError, match=r"resume goes on from there"):
            train(options(task, tmp_path / "cut"))
    position = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["position"]
    assert position["step"] == step + 1
    train(options(task, tmp_path / "cut", resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["half of the file is written", "the file is written, not yet renamed"])
def test_sigkill_during_a_checkpoint_write_loses_nothing(moment: str, task: dict[str, Path], tmp_path: Path) -> None:
    changes = {"checkpoint_every": 1}
    train(options(task, tmp_path / "whole", **changes))
    paths = {name: str(path) for name, path in task.items()}
    script = f"""
        import io, os, pathlib, signal, torch
        from tests.test_training import options
        from mmn_fast.training.trainer import train

        real, count = torch.save, 0

        def save(content, file):
            global count
            count += 1
            if count < 5:
                return real(content, file)
            buffer = io.BytesIO()
            real(content, buffer)
            half = {moment.startswith("half")}
            pathlib.Path(file.name).write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // (2 if half else 1)])
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = save
        task = {{name: pathlib.Path(path) for name, path in {paths!r}.items()}}
        train(options(task, pathlib.Path({str(tmp_path / "cut")!r}), **{changes!r}))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    # Two epochs of three steps: writes 1 and 2 within the first, 3 at its end, 4 is step 4, 5 did not arrive.
    assert torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["position"]["step"] == 4
    assert len(list((tmp_path / "cut").glob(".checkpoint.pt.partial-*"))) == 2
    train(options(task, tmp_path / "cut", resume=True, **changes))
    assert not list((tmp_path / "cut").glob(".*"))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


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


def test_frozen_text_encoder_does_not_move(task: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    before, _, _ = new_model(PRESET, TEXT, task["tokenizer"], None, 0.1)
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


def data_of(task: dict[str, Path], **changes: Any) -> TrainingData:
    store = open_features(task["features"])
    return TrainingData(
        read_annotations(task["annotations"], PRESET), store, PRESET, load_tokenizer(task["tokenizer"]), **changes
    )


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


def _distributed(rank: int, world: int, port: int, share: bool, task: dict[str, Path], queue: Any) -> None:
    """One process's gradients of a batch that is spread over all of them."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    try:
        losses, gradients, statistics = _gradients(task, rank, world, share)
        if rank == 0:
            queue.put((losses, gradients, statistics))
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


def _gradients(task: dict[str, Path], rank: int, world: int, share: bool) -> tuple[list[float], Any, Any]:
    torch.manual_seed(0)
    model, _, _ = new_model(PRESET, TEXT, task["tokenizer"], None, dropout=0.0)
    data = data_of(task)
    part = np.array_split(np.arange(8), world)[rank]
    batch = data.batch(part)
    batch = dataclasses.replace(
        batch, pre_clips=batch.pre_clips.double(), iou=batch.iou.double(), moments=batch.moments.double()
    )
    objective: Any = Objective(model.double(), share_negatives=share, share_statistics=world > 1)
    if world > 1:
        objective = torch.nn.parallel.DistributedDataParallel(objective, broadcast_buffers=False)
    counts = [(len(p), data.sentences_in(p)) for p in np.array_split(np.arange(8), world)]
    weight = counts[rank][1] / sum(sentences for _, sentences in counts)
    terms = objective(batch, counts) * weight
    (terms.sum() * world).backward()
    total = terms.detach().clone()
    if world > 1:
        torch.distributed.all_reduce(total)
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return total.tolist(), gradients, {name: b.numpy() for name, b in model.named_buffers()}


@pytest.mark.slow
def test_two_processes_with_shared_negatives_and_statistics_equal_one(task: dict[str, Path]) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [
        context.Process(target=_distributed, args=(rank, 2, port, True, task, queue), daemon=True) for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    losses, gradients, statistics = queue.get(timeout=120)
    for worker in workers:
        worker.join(60)
    expected_losses, expected, expected_statistics = _gradients(task, 0, 1, False)
    check_close(losses, expected_losses, "distributed", "fp64", "losses")
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        check_close(gradients[name], gradient, "distributed", "fp64", name)
    for name, buffer in expected_statistics.items():
        check_close(statistics[name], buffer, "distributed", "fp64", name)


def write_yaml(path: Path) -> Path:
    """The tiny preset as an official configuration file."""
    model = {
        "NUM_CLIPS": PRESET.num_clips,
        "JOINT_SPACE_SIZE": PRESET.joint_size,
        "FEATPOOL": {"INPUT_SIZE": PRESET.input_size, "HIDDEN_SIZE": PRESET.hidden_size, "KERNEL_SIZE": 2},
        "FEAT2D": {"NAME": "pool", "POOLING_COUNTS": list(PRESET.pooling_counts)},
        "PREDICTOR": {"HIDDEN_SIZE": PRESET.conv_hidden_size, "KERNEL_SIZE": 3, "NUM_STACK_LAYERS": 2},
    }
    solver = {"LR": 0.005, "BATCH_SIZE": 8, "MAX_EPOCH": 2, "MILESTONES": [1], "FREEZE_BERT": 1, "ONLY_IOU": 1}
    tree = {
        "MODEL": {"MMN": model},
        "INPUT": {"NUM_PRE_CLIPS": PRESET.num_pre_clips},
        "DATASETS": {"NAME": "charades"},
        "SOLVER": solver,
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def command(task: dict[str, Path], tmp_path: Path, output: str, *extra: str) -> list[str]:
    sizes = ",".join(f"{name}={getattr(TEXT, name)}" for name in ("max_tokens", "width", "num_layers", "num_heads"))
    return [
        *("train", "--preset", str(write_yaml(tmp_path / "tiny.yaml")), "--annotations", str(task["annotations"])),
        *("--features", str(task["features"]), "--tokenizer", str(task["tokenizer"]), "-o", str(tmp_path / output)),
        *("--text-encoder", f"{sizes},ffn_width={TEXT.ffn_width}", "--threads", "1", *extra),
    ]


def test_train_command_makes_a_model_that_loads(task: dict[str, Path], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, command(task, tmp_path, "run", "--epochs", "1", "--milestones", "1,2"))
    assert done.exit_code == 0, done.output
    engine = mmn_fast.load(tmp_path / "run" / "model", backend="torch")
    assert engine.preset.recipe.epochs == 1
    assert engine.preset.recipe.milestones == (1, 2)


@pytest.mark.slow
def test_torchrun_trains_as_one_process_does(task: dict[str, Path], tmp_path: Path) -> None:
    """First-epoch losses agree to float32 rounding; later ones do not, since Adam divides rounding by rounding."""
    shared = ("--dropout", "0", "--share-negatives", "--share-statistics", "--device", "cpu")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    single = [sys.executable, "-m", "mmn_fast", *command(task, tmp_path, "one", *shared)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    double = [*launcher, "-m", "mmn_fast", *command(task, tmp_path, "two", *shared)]
    for arguments in (single, double):
        done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr  # what a rank that aborts says comes first
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert len(one) == len(two) == 6
    for name in ("loss_video", "loss_sentence", "loss_iou"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-5)
    mmn_fast.load(tmp_path / "two" / "model", backend="torch")


def changed(task: dict[str, Path], tmp_path: Path, change: Any) -> dict[str, Path]:
    """The task with its annotations changed."""
    annotations = json.loads(task["annotations"].read_text())
    change(annotations)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(annotations))
    return {**task, "annotations": path}


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ([6.0, 6.0], r"changed\.json: video 'train3', entry 1: expected start < end, got \[6\.0, 6\.0\]"),
        ([6.0, 4.0], r"changed\.json: video 'train3', entry 1: expected start < end"),
        ([4.0, 99.0], r"changed\.json: video 'train3', entry 1: expected times from 0 to the duration, 16\.0 s, got"),
    ],
)
def test_strict_refuses_a_window_and_names_file_and_entry(
    window: list[float], message: str, task: dict[str, Path], tmp_path: Path
) -> None:
    def change(annotations: dict[str, Any]) -> None:
        annotations["train3"]["timestamps"][1] = window

    bad = changed(task, tmp_path, change)
    with pytest.raises(InputError, match=message):
        train(options(bad, tmp_path / "run", strict=True))
    assert not (tmp_path / "run").exists()


def test_without_strict_windows_are_cut_or_dropped_as_the_official_code_does(
    task: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(annotations: dict[str, Any]) -> None:
        annotations["train3"]["timestamps"] = [[6.0, 6.0], [4.0, 99.0]]

    bad = changed(task, tmp_path, change)
    recipe = dataclasses.replace(options(task, tmp_path).recipe, epochs=1)  # type: ignore[type-var]
    train(options(bad, tmp_path / "run", recipe=recipe))
    assert "left out: the start is not before the end" in caplog.text
    assert sum(line["sentences"] for line in lines(tmp_path / "run") if "metrics" not in line) == 39


def test_missing_videos_are_named(task: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(annotations: dict[str, Any]) -> None:
        annotations["absent"] = annotations["train0"]

    bad = changed(task, tmp_path, change)
    with pytest.raises(InputError, match=r"features: .*features lacks 1 of the 21 videos of .*changed\.json: 'absent'"):
        train(options(bad, tmp_path / "run"))
    recipe = dataclasses.replace(options(task, tmp_path).recipe, epochs=1)  # type: ignore[type-var]
    train(options(bad, tmp_path / "run", recipe=recipe, skip_missing=True))
    assert "they are left out" in caplog.text
    with pytest.raises(
        InputError, match=r"^strict: 1 of 21 videos skipped: they have no features \(first: 'absent'\)$"
    ):
        train(options(bad, tmp_path / "strict", skip_missing=True, strict=True))
    assert not (tmp_path / "strict").exists()


def test_validation_is_held_to_the_same_rules(
    task: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads(task["val_annotations"].read_text())
    name = next(iter(content))
    path = tmp_path / "val.json"
    changed_task = {**task, "val_annotations": path}
    backwards = {**content, name: content[name] | {"timestamps": [[6.0, 5.0]] * len(content[name]["sentences"])}}
    path.write_text(json.dumps(backwards))
    with pytest.raises(InputError, match=rf"val\.json: video '{name}', entry 0: expected start < end"):
        train(options(changed_task, tmp_path / "run", strict=True))
    path.write_text(json.dumps({**content, "absent": content[name]}))
    with pytest.raises(InputError, match="^strict: 1 of 9 videos skipped"):
        train(options(changed_task, tmp_path / "run", strict=True, skip_missing=True))
    path.write_text(json.dumps({"absent": content[name]}))
    with pytest.raises(InputError, match=r"features lacks 1 of the 1 videos of .*val\.json: 'absent'"):
        train(options(changed_task, tmp_path / "run", skip_missing=True))
    assert not (tmp_path / "run").exists()
    path.write_text(json.dumps({**backwards, "absent": content[name]}))
    recipe = dataclasses.replace(options(task, tmp_path).recipe, epochs=2)  # type: ignore[type-var]
    caplog.clear()
    train(options(changed_task, tmp_path / "run", recipe=recipe, skip_missing=True))
    for said in ("val.json: 1 of 9 videos left out", "lacks 1 of the 8 videos of "):
        assert sum(said in record.getMessage() for record in caplog.records) == 1, said


def test_long_sentences_of_training_are_one_warning_and_refused_where_asked(
    task: dict[str, Path], tmp_path: Path
) -> None:
    def change(annotations: dict[str, Any]) -> None:
        for name in ("train0", "train1"):
            annotations[name]["sentences"][0] = "the red thing " * 10

    bad = changed(task, tmp_path, change)
    with pytest.raises(
        InputError, match=r"^strict: 2 of 40 sentences cut: .* encoder's 12 word pieces \(first: 'the red"
    ):
        train(options(bad, tmp_path / "run", strict=True))
    assert not (tmp_path / "run").exists()
    recipe = dataclasses.replace(options(task, tmp_path).recipe, epochs=1)  # type: ignore[type-var]
    with pytest.warns(UserWarning, match="^2 of 40 sentences were cut to the encoder's 12 word pieces") as caught:
        train(options(bad, tmp_path / "run", recipe=recipe))
    assert sum("were cut" in str(one.message) for one in caught) == 1


@pytest.mark.parametrize("cache_gib", [4.0, 0.0])
def test_feature_width_that_differs_is_refused_before_the_first_step(
    cache_gib: float, task: dict[str, Path], tmp_path: Path
) -> None:
    write_task(tmp_path, 4, seed=1)
    np.save(tmp_path / "features" / "train2.npy", np.zeros((5, 7), np.float32))
    bad = {"annotations": tmp_path / "train.json", "features": tmp_path / "features", "tokenizer": task["tokenizer"]}
    message = r"video 'train2': .*features/train2\.npy: expected a float array \[n_src, 12\], got float32 \[5, 7\]"
    with pytest.raises(InputError, match=message):
        train(options(bad, tmp_path / "run", cache_gib=cache_gib))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": "all"}, r"losses: expected one of full, no-cross-video, iou-only, got 'all'"),
        ({"precision": "int8"}, r"precision: expected one of fp32, bf16, fp16, got 'int8'"),
        ({"accumulate": 0}, r"accumulate: expected an integer >= 1, got 0"),
        ({"checkpoint_every": 2.5}, r"checkpoint_every: expected an integer >= 0, got 2.5"),
        ({"seed": True}, r"seed: expected an integer >= 0, got True"),
        ({"dropout": float("nan")}, r"dropout: expected a finite number >= 0, got nan"),
        ({"text_rate": "0.1"}, r"text_rate: expected a finite number >= 0, got '0.1'"),
        ({"cache_gib": float("nan")}, r"cache_gib: expected a finite number >= 0, got nan"),
        ({"dropout": 1.0}, r"dropout: expected a number below 1, got 1.0"),
        ({"accumulate": 3}, r"batch_size: expected a multiple of processes x accumulate, 3, got 8"),
        ({"device": "tpu"}, r"device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"text_encoder": "width=banana"}, r"text_encoder: expected sizes .* got 'width=banana'"),
        ({"text_encoder": "depth=3"}, r"text_encoder: unknown key 'depth'"),
        ({"text_encoder": "width=10,num_heads=3"}, r"text_encoder: width: expected a multiple of num_heads"),
        ({"tokenizer": None}, r"tokenizer: expected one for a text encoder that starts from scratch, got none"),
        ({"preset": "charades-sta"}, r"video 'train0': .*: expected a float array \[n_src, 4096\]"),
    ],
)
def test_options_are_refused_with_a_sentence(
    changes: dict[str, Any], message: str, task: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        train(options(task, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_output_that_is_not_empty_is_refused(task: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"output: .*run is not empty; resume the run in it, or name a new directory"):
        train(options(task, tmp_path / "run"))


def test_resume_refuses_another_run_and_a_damaged_checkpoint(task: dict[str, Path], tmp_path: Path) -> None:
    train(options(task, tmp_path / "run"))
    with pytest.raises(InputError, match=r"resume: .*checkpoint\.pt: seed: the run was begun with 0, got 5"):
        train(options(task, tmp_path / "run", resume=True, seed=5))
    other = dataclasses.replace(options(task, tmp_path).recipe, learning_rate=0.25, epochs=9)  # type: ignore[type-var]
    message = r"checkpoint\.pt: learning_rate: the run was begun with 0\.005, got 0\.25"
    with pytest.raises(InputError, match=message + "$"):
        train(options(task, tmp_path / "run", resume=True, recipe=other))
    with pytest.raises(InputError, match=message + "; also different: dropout, seed$"):
        train(options(task, tmp_path / "run", resume=True, recipe=other, seed=5, dropout=0.3))
    shorter = dataclasses.replace(options(task, tmp_path).recipe, epochs=2)  # type: ignore[type-var]
    with pytest.raises(InputError, match=r"epochs: the run was begun with 3, got 2; it can only be extended"):
        train(options(task, tmp_path / "run", resume=True, recipe=shorter))
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"resume: .*checkpoint\.pt: not a checkpoint of a run"):
        train(options(task, tmp_path / "run", resume=True))


def test_a_bit_of_the_checkpoint_stops_the_run_from_going_on(task: dict[str, Path], tmp_path: Path) -> None:
    result = train(options(task, tmp_path / "run"))
    path, before = tmp_path / "run" / "checkpoint.pt", load_model(result).fingerprint
    whole = path.read_bytes()
    for place in np.random.default_rng(5).integers(len(whole), size=12):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"resume: .*checkpoint\.pt"):
            train(options(task, tmp_path / "run", resume=True))
    path.write_bytes(whole)
    assert load_model(train(options(task, tmp_path / "run", resume=True))).fingerprint == before


def test_loss_that_is_not_finite_stops_the_run(task: dict[str, Path], tmp_path: Path) -> None:
    recipe = dataclasses.replace(options(task, tmp_path).recipe, learning_rate=1e30)  # type: ignore[type-var]
    with pytest.raises(FloatingPointError, match=r"step \d+: loss .* not finite; lower the learning rate"):
        train(options(task, tmp_path / "run", recipe=recipe))


def test_text_encoder_sizes_are_read_from_json(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    path.write_text('{"width": 64, "num_heads": 4}')
    for source in (str(path), path.read_text(), "width=64,num_heads=4"):
        config = parse_text_encoder(source, 99)
        assert (config.vocab_size, config.width, config.num_heads, config.num_layers) == (99, 64, 4, 6)


def test_published_text_encoder_is_taken_as_it_is(task: dict[str, Path], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.DistilBertConfig(
        vocab_size=20, max_position_embeddings=12, dim=16, n_layers=1, n_heads=2, hidden_dim=32
    )
    torch.manual_seed(0)
    published = transformers.DistilBertForMaskedLM(config).eval()
    published.save_pretrained(tmp_path / "distilbert")
    (tmp_path / "distilbert" / "vocab.txt").write_bytes(task["tokenizer"].read_bytes())
    model, sizes, _ = new_model(PRESET, tmp_path / "distilbert", None, None, 0.1)
    assert sizes == TEXT
    ids = torch.tensor([[2, 5, 7, 8, 3]])
    model.eval()
    expected = published.distilbert(ids).last_hidden_state
    check_close(
        model.text_encoder.bert(ids, torch.ones_like(ids, dtype=torch.bool)).detach(), expected.detach(), "text_encoder"
    )


def test_objective_equals_the_seams_of_the_reference_model(task: dict[str, Path]) -> None:
    """Losses of a batch against the dense model with its sentences encoded video by video."""
    from mmn_fast.training.losses import contrastive_loss, iou_loss

    torch.manual_seed(0)
    model, _, _ = new_model(PRESET, TEXT, task["tokenizer"], None, dropout=0.0)
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
