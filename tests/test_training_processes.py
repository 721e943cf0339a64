"""Processes and accumulated parts compute the same as official processes."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import mmn_fast
from mmn_fast.checkpoint import load_model
from mmn_fast.cli import app
from mmn_fast.presets import Preset, get_preset
from mmn_fast.training.data import epoch_order, epoch_parts
from mmn_fast.training.initial import new_model
from mmn_fast.training.objective import Objective
from tests.process_group import Group, command_line
from tests.test_several_moments import two, with_windows
from tests.tolerances import check_close
from tests.training_runs import ROOT, command, data_of, lines
from tests.training_task import PRESET, TEXT

pytestmark = pytest.mark.slow
LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


class OfficialSampler(torch.utils.data.DistributedSampler):  # type: ignore[type-arg]
    """Draws one process's videos like the official samplers.py."""

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self.epoch)
        indices = torch.randperm(len(self.dataset), generator=generator).tolist()  # type: ignore[arg-type]
        indices += indices[: (self.total_size - len(indices))]
        offset = self.num_samples * self.rank
        return iter(indices[offset : offset + self.num_samples])


def official_batches(videos: int, batch: int, world: int, rank: int, epoch: int) -> list[list[int]]:
    sampler = OfficialSampler(list(range(videos)), num_replicas=world, rank=rank)  # type: ignore[arg-type]
    sampler.set_epoch(epoch)
    return list(torch.utils.data.BatchSampler(sampler, batch // world, drop_last=False))


@pytest.mark.parametrize(("videos", "batch", "world"), [(21, 8, 2), (20, 8, 4), (17, 6, 3), (9, 4, 1), (5, 8, 4)])
def test_parts_are_the_batches_of_the_official_processes(videos: int, batch: int, world: int) -> None:
    steps = epoch_parts(epoch_order(videos, seed=0, epoch=3), batch, world)
    for rank in range(world):
        assert [step[rank].tolist() for step in steps] == official_batches(videos, batch, world, rank, epoch=3)


@pytest.fixture(scope="module")
def uneven(task: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The task with one, two or four sentences per video, so that parts of a step differ in number of sentences."""
    annotations = json.loads(task["annotations"].read_text())
    for number, entry in enumerate(annotations.values()):
        for name in ("timestamps", "sentences"):
            entry[name] = (entry[name] * 2)[: (1, 2, 4)[number % 3]]
    path = tmp_path_factory.mktemp("uneven") / "uneven.json"
    path.write_text(json.dumps(annotations))
    return {**task, "annotations": path}


def official_steps(task: dict[str, Path], preset: Preset, world: int, steps: int) -> tuple[list[dict[str, float]], Any]:
    """Compute steps of `world` official processes at a rate of nearly 0: losses, gradient norms, model of process 0.

    DistributedDataParallel gives every process the mean of all gradients; each process has its own running statistics.
    """
    torch.manual_seed(0)
    model, *_ = new_model(preset, TEXT, task["tokenizer"], None, dropout=0.0)
    recipe, data = preset.recipe, data_of(task)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("bert" not in name)
    batches = [official_batches(len(data), recipe.batch_size, world, rank, epoch=1) for rank in range(world)]
    found = []
    for number in range(steps):
        model.zero_grad()
        losses, statistics = torch.zeros(3), copy.deepcopy(dict(model.named_buffers()))
        for rank in range(world):
            terms = Objective(model)(data.batch(batches[rank][number]))
            ((terms[0] + terms[1]) * recipe.contrastive_weight + terms[2]).div(world).backward()
            losses += terms.detach() / world
            if rank == 0:
                statistics = copy.deepcopy(dict(model.named_buffers()))
        for name, buffer in model.named_buffers():
            buffer.copy_(statistics[name])
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 5)
        names = ("loss_video", "loss_sentence", "loss_iou", "gradient_norm")
        found.append(dict(zip(names, [*losses.tolist(), norm.item()], strict=True)))
    return found, model


@pytest.mark.parametrize(
    ("processes", "accumulate"), [(2, 1), (1, 2), (2, 2)], ids=["two processes", "two parts", "two of two"]
)
def test_processes_and_parts_are_official_processes(
    processes: int, accumulate: int, uneven: dict[str, Path], tmp_path: Path, group: Group
) -> None:
    """Losses, gradient norms and running statistics of an epoch equal those of official processes computed by hand.

    The rate is nearly 0, so that later steps can be compared: Adam's first steps divide one rounding error by another.
    """
    arguments = command(
        uneven, tmp_path, "run", "--dropout", "0", "--device", "cpu", "--epochs", "1",
        "--learning-rate", "1e-30", "--accumulate", str(accumulate),
    )  # fmt: skip
    group(command_line, processes, *arguments)
    steps = [line for line in lines(tmp_path / "run") if "metrics" not in line]
    expected, model = official_steps(uneven, get_preset(tmp_path / "tiny.yaml"), processes * accumulate, len(steps))
    for number, step in enumerate(expected):
        for name, value in step.items():
            check_close(steps[number][name], value, "training_parts", "fp32", f"step {number}: {name}")
    state = load_model(tmp_path / "run" / "model").state
    for name, buffer in model.named_buffers():
        if ".running_" in name:
            check_close(state[name], buffer.numpy(), "training_parts", "fp32", name)


def test_parts_weigh_the_same_whatever_their_sentences(uneven: dict[str, Path]) -> None:
    """The two weighings differ by far more than the tolerance, so the test above tells them apart."""
    torch.manual_seed(0)
    model, *_ = new_model(PRESET, TEXT, uneven["tokenizer"], None, dropout=0.0)
    data = data_of(uneven)
    batches = [official_batches(len(data), 8, 2, rank, epoch=1)[0] for rank in (0, 1)]
    counts = np.array([data.sentences_in(batch) for batch in batches])
    assert counts[0] != counts[1]
    norms = []
    for shares in (counts / counts.sum(), (0.5, 0.5)):
        model.zero_grad()
        for share, batch in zip(shares, batches, strict=True):
            (Objective(model)(data.batch(batch)).sum() * share).backward()
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item())
    assert abs(norms[0] / norms[1] - 1) > 1e-3


def test_shared_negatives_split_the_batch_of_one_process() -> None:
    order = epoch_order(20, seed=0, epoch=1)
    for step, start in zip(epoch_parts(order, 8, 2, as_one=True), (0, 8, 16), strict=True):
        assert np.concatenate(step).tolist() == order[start : start + 8].tolist()


def _distributed(task: dict[str, Path]) -> tuple[list[float], Any, Any]:
    """Compute one process's gradients of a batch that is spread over all processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    try:
        found = _gradients(task, torch.distributed.get_rank(), torch.distributed.get_world_size(), share=True)
        torch.distributed.barrier()
        return found
    finally:
        torch.distributed.destroy_process_group()


def _gradients(task: dict[str, Path], rank: int, world: int, share: bool) -> tuple[list[float], Any, Any]:
    torch.manual_seed(0)
    model, *_ = new_model(PRESET, TEXT, task["tokenizer"], None, dropout=0.0)
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


def test_two_processes_with_shared_negatives_and_statistics_equal_one(
    task: dict[str, Path], tmp_path: Path, group: Group
) -> None:
    """One sentence of each video has two moments."""
    task = with_windows(task, tmp_path, two)
    losses, gradients, statistics = group(_distributed, 2, task)[0]
    expected_losses, expected, expected_statistics = _gradients(task, 0, 1, share=False)
    check_close(losses, expected_losses, "distributed", "fp64", "losses")
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        check_close(gradients[name], gradient, "distributed", "fp64", name)
    for name, buffer in expected_statistics.items():
        check_close(statistics[name], buffer, "distributed", "fp64", name)


def test_torchrun_trains_as_one_process_does(task: dict[str, Path], tmp_path: Path) -> None:
    """Losses of the first epoch agree to float32 rounding. Later ones do not: Adam divides one rounding by another."""
    shared = ("--dropout", "0", "--share-negatives", "--share-statistics", "--device", "cpu")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    single = CliRunner().invoke(app, command(task, tmp_path, "one", *shared))
    assert single.exit_code == 0, single.output
    double = [*LAUNCHER, "2", "-m", "mmn_fast", *command(task, tmp_path, "two", *shared)]
    done = subprocess.run(double, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # begins with the message of the rank that aborted
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert len(one) == len(two) == 6
    for name in ("loss_video", "loss_sentence", "loss_iou"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-5)
    mmn_fast.load(tmp_path / "two" / "model", backend="torch")
