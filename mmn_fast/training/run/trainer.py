"""The training loop: the official recipe, resumable to the bit, on one process or several.

Everything random is a function of the seed, the epoch and the generators' states in the checkpoint. A run that resumes
from its checkpoint therefore ends with the weights of an uninterrupted run (bit for bit on the CPU).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mmn_fast.checkpoint import LoadedModel, load_model, model_from_state
from mmn_fast.errors import InputError, WriteError
from mmn_fast.features.contract import FeatureContract
from mmn_fast.features.matching import refuse_other_features
from mmn_fast.precisions import torch_dtype
from mmn_fast.presets import Preset
from mmn_fast.training.data import epoch_order, epoch_parts
from mmn_fast.training.initial import new_model, starts_from_scratch
from mmn_fast.training.run.checkpoint_file import read_checkpoint
from mmn_fast.training.run.inputs import training_data, validation
from mmn_fast.training.run.options import TrainOptions
from mmn_fast.training.run.output import RunOutput
from mmn_fast.training.run.processes import StopRequest, device_of, joined_processes, wait
from mmn_fast.training.run.progress import Log, ProgressBar
from mmn_fast.training.run.resume import check_same_run
from mmn_fast.training.run.schedule import contrastive_weight, learning_rates
from mmn_fast.training.tube_objective import make_objective
from mmn_fast.version import __version__

logger = logging.getLogger(__name__)


@dataclass
class _Position:
    """Progress of a run. Epochs count from 1 as in the official recipe; `step_in_epoch` steps of `epoch` are done."""

    epoch: int = 1
    step_in_epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)


class InterruptedRunError(RuntimeError):
    """A run was asked to stop (SIGINT, SIGTERM) and has written its checkpoint."""


def train(options: TrainOptions) -> Path:
    """Train a model.

    Under `torchrun` every process calls this function; the first process writes.

    W processes that accumulate A parts compute the same as W x A processes of the official code. Part p (process p
    // A) goes through block p of the epoch's order. Each part has its own negatives and BatchNorm statistics, and its
    losses are means over its own sentences. A step's gradient is the mean of the parts' gradients: parts weigh the
    same, however many sentences they have. The model keeps part 0's running statistics. Dropout masks differ from the
    official ones: here every process draws its own masks, while the official processes begin with the same seed. With
    `share_negatives` all processes compute one batch instead, and sentences weigh the same.

    Args:
        options: the run's options.

    Returns:
        The result's converted directory, `<output>/model`.

    Raises:
        InputError: an option or a file cannot be used.
        InterruptedRunError: the process was asked to stop; `resume` continues the run.
    """
    with joined_processes(options), contextlib.ExitStack() as stack:
        if options.threads is not None:
            before = torch.get_num_threads()
            torch.set_num_threads(options.threads)
            stack.callback(torch.set_num_threads, before)
        return _Run(options, stack).train()


class _Run:
    """A training run of this process."""

    def __init__(self, options: TrainOptions, stack: contextlib.ExitStack) -> None:
        self.options = options
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.preset = options.chosen_preset()
        self.recipe = self.preset.recipe
        for name, least in (("epochs", 1), ("batch_size", 1), ("learning_rate", 0), ("contrastive_weight", 0)):
            if getattr(self.recipe, name) < least:
                raise InputError(f"{name}: expected a number >= {least}, got {getattr(self.recipe, name)!r}")
        self.as_one = options.share_negatives and self.world > 1  # all processes compute one batch
        self.accumulate = options.parts_of(self.recipe, self.world)
        self.seed = self.recipe.seed if options.seed is None else options.seed
        self.output = RunOutput(Path(options.output), options.resume)
        self.device = device_of(options.device)
        self.autocast = torch.autocast(
            self.device.type, dtype=torch_dtype(options.precision), enabled=options.precision != "fp32"
        )
        torch.manual_seed(self.seed)
        self.model, self.text, self.tokenizer, initial_contract = new_model(
            self.preset, options.text_encoder, options.tokenizer, options.init, options.dropout
        )
        self._warn_of_a_frozen_start()
        torch.manual_seed(self.seed * self.world + self.rank)  # dropout differs between processes
        shown = options.progress and self.rank == 0
        self.data, self.contract = training_data(options, self.preset, self.tokenizer, stack, shown, initial_contract)
        self.validation = validation(options, self.preset, self.tokenizer, self.device, stack, self.contract)
        self.model.to(self.device)
        for conv in self.model.proposal_conv.convs:
            # Channels last puts a tap's weights in a row, see sparse.py.
            conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective = make_objective(
            self.model, options.losses, self.as_one, options.share_statistics and self.world > 1
        )
        text = [parameter for name, parameter in self.model.named_parameters() if "bert" in name]
        rest = [parameter for name, parameter in self.model.named_parameters() if "bert" not in name]
        self.text_parameters, self.parameters = text, [*rest, *text]
        self.optimizer = torch.optim.AdamW(
            [{"params": rest}, {"params": text}],
            lr=self.recipe.learning_rate,
            betas=(self.recipe.betas[0], self.recipe.betas[1]),
            weight_decay=self.recipe.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "fp16")
        self.position = _Position()
        self.saved_step: int | None = None  # step of the checkpoint on the disk
        self.stop = StopRequest()

    def train(self) -> Path:
        if self.options.resume:
            self._restore()
        self._say(self._beginning())
        try:
            return self._go_on()
        except WriteError as error:
            step = self.saved_step
            whole = "no checkpoint was written yet" if step is None else f"the checkpoint of step {step} is whole"
            raise WriteError(f"{error}; {whole}: free some space, then resume goes on from there (--resume)") from None

    def _go_on(self) -> Path:
        if self.rank == 0:
            self.output.prepare(self.position.step, self.position.epoch)
        shown = self.options.progress and self.rank == 0
        log = Log(self.output.log if self.rank == 0 else None, self.position.step)
        with log, ProgressBar(self._num_steps(), shown) as progress, self.stop.on_signals():
            for epoch in range(self.position.epoch, self.recipe.epochs + 1):
                self._epoch(epoch, log, progress)
        if self.rank == 0:
            self._write_result()
            if log.failure is not None:  # the model is written even if its log is not
                raise WriteError(f"output: cannot write {self.output.log}: {log.failure}")
        wait()
        return self.output.model

    def _say(self, sentence: str) -> None:
        """Log a sentence, also on the screen if progress is shown; only the first process does so."""
        if self.rank == 0:
            logger.info(sentence)
            if self.options.progress:
                print(sentence, file=sys.stderr)

    def _beginning(self) -> str:
        """Say in one sentence how the run begins: anew, resumed at a step, or with nothing left to do."""
        position, steps = self.position, self._num_steps()
        if not position.step:
            absent = f": {self.output.checkpoint} does not exist" if self.options.resume else ""
            return f"starting anew{absent}; {steps} steps in {self.recipe.epochs} epochs"
        if position.epoch > self.recipe.epochs:
            return f"nothing left to do: all {steps} steps of {self.recipe.epochs} epochs are done"
        return f"resuming at step {position.step} of {steps}, epoch {position.epoch} of {self.recipe.epochs}"

    def _warn_of_a_frozen_start(self) -> None:
        """Warn if a text encoder that starts from scratch would never learn."""
        options, recipe = self.options, self.recipe
        if self.rank or not starts_from_scratch(options.text_encoder, options.init):
            return
        if recipe.freeze_text_epochs >= recipe.epochs:
            why = f"it is frozen for all {recipe.epochs} epochs (freeze_text_epochs is {recipe.freeze_text_epochs})"
        elif not options.text_rate:
            why = "its learning rate is 0 (text_rate)"
        else:
            return
        logger.warning("text_encoder: its weights are random and will stay so: %s", why)

    def _num_steps(self) -> int:
        return self.recipe.epochs * -(-len(self.data) // self.recipe.batch_size)

    def _epoch(self, epoch: int, log: Log, progress: ProgressBar) -> None:
        objective = self._objective_of(epoch)
        order = epoch_order(len(self.data), 0 if self.seed == self.recipe.seed else self.seed, epoch)
        steps = epoch_parts(order, self.recipe.batch_size, self.world * self.accumulate, self.as_one)
        for number in range(self.position.step_in_epoch, len(steps)):
            line = self._step(objective, steps[number], epoch)
            self.position.step += 1
            self.position.step_in_epoch = number + 1
            log.write(line)
            progress.update(self.position.step, epoch, self.recipe.epochs, line)
            every, last = self.options.checkpoint_every, number + 1 == len(steps)
            # All processes stop at the same step: a process that was asked to stop tells the others.
            stop = self.stop.of_any_process(self.device)
            if not last and (stop or (every and self.position.step % every == 0)):
                self._save()
            if stop and not last:
                raise InterruptedRunError(f"stopped after step {self.position.step}; resume goes on from there")
        self.position.epoch, self.position.step_in_epoch = epoch + 1, 0
        if self.validation is not None and (epoch % self.options.evaluate_every == 0 or epoch == self.recipe.epochs):
            self._evaluate(epoch, log)
        self._save()
        if self.stop.of_any_process(self.device) and epoch < self.recipe.epochs:
            raise InterruptedRunError(f"stopped after epoch {epoch}; resume goes on from there")

    def _objective_of(self, epoch: int) -> torch.nn.Module:
        """The epoch's objective; the text encoder is frozen first, because DistributedDataParallel must know of it."""
        for parameter in self.text_parameters:
            parameter.requires_grad_(epoch > self.recipe.freeze_text_epochs)
        # Gradients of an earlier epoch are dropped; otherwise the optimizer would apply them again.
        self.optimizer.zero_grad(set_to_none=True)
        if self.world == 1:
            return self.objective
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.objective, device_ids=devices, broadcast_buffers=False)

    def _step(self, objective: torch.nn.Module, parts: Sequence[Any], epoch: int) -> dict[str, Any]:
        """One step of the optimizer, on this process's parts of the batch."""
        started = time.perf_counter()
        position, options = self.position, self.options
        rates = learning_rates(self.recipe, epoch, position.step, options.text_rate, options.warmup_steps)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        weight = contrastive_weight(self.recipe, epoch)
        counts = [(len(part), self.data.sentences_in(part)) for part in parts]
        total = sum(sentences for _, sentences in counts)
        self.optimizer.zero_grad(set_to_none=True)
        losses = torch.zeros(3, device=self.device)
        for number in range(self.accumulate):
            mine = self.rank * self.accumulate + number
            last = number + 1 == self.accumulate
            batch = self.data.batch(parts[mine]).to(self.device)
            share = counts[mine][1] / total if self.as_one else 1 / len(parts)
            with contextlib.nullcontext() if last or self.world == 1 else objective.no_sync():  # type: ignore[operator]
                with self.autocast:
                    terms: Tensor = objective(batch, counts[number :: self.accumulate], number == 0)
                loss = (terms[0] + terms[1]) * weight + terms[2]
                # DistributedDataParallel divides by the number of processes.
                self.scaler.scale(loss * share * self.world).backward()
            losses += terms.detach() * share
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.world > 1:
            dist.all_reduce(losses)
        video, sentence, iou, gradient_norm = torch.cat([losses, norm[None]]).tolist()
        if not (np.isfinite(video + sentence + iou) and (self.scaler.is_enabled() or np.isfinite(gradient_norm))):
            raise FloatingPointError(
                f"step {position.step + 1}: loss {[video, sentence, iou]}, gradient norm {gradient_norm}:"
                f" not finite; lower the learning rate, or use --precision fp32"
            )
        if gradient_norm > self.recipe.max_gradient_norm:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.recipe.max_gradient_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {
            "step": position.step + 1,
            "epoch": epoch,
            "loss": (video + sentence) * weight + iou,
            "loss_video": video,
            "loss_sentence": sentence,
            "loss_iou": iou,
            "gradient_norm": gradient_norm,
            "learning_rate": rates[0],
            "text_learning_rate": rates[1] if epoch > self.recipe.freeze_text_epochs else 0.0,
            "videos": sum(videos for videos, _ in counts),
            "sentences": total,
            "seconds": time.perf_counter() - started,
        }

    def _evaluate(self, epoch: int, log: Log) -> None:
        if self.rank == 0:
            assert self.validation is not None
            started = time.perf_counter()
            model = self._loaded()
            metrics = self.validation.metrics(model)
            log.write(
                {"step": self.position.step, "epoch": epoch, "metrics": metrics,
                 "seconds": time.perf_counter() - started}
            )  # fmt: skip
            logger.info("epoch %d: %s", epoch, ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
            name = self.validation.best
            if not self.position.best_epoch or metrics[name] > self.position.best_metrics[name]:
                self.position.best_epoch, self.position.best_metrics = epoch, metrics
                self.output.save_best(model, epoch)
        wait()

    def _loaded(self) -> LoadedModel:
        """The model with its current weights."""
        state = {
            name: tensor.detach().float().cpu().contiguous().numpy()
            for name, tensor in self.model.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        source = str(self.output.path)
        return model_from_state(self.preset, self.text, state, self.tokenizer, source, self.contract)

    def _identity(self) -> dict[str, Any]:
        """Settings that must match before a run can resume."""
        same = ("text_rate", "warmup_steps", "dropout", "losses", "precision")
        return {
            "preset": self.preset.to_dict(),
            "text_encoder": dataclasses.asdict(self.text),
            "videos": len(self.data),
            "sentences": self.data.num_sentences,
            "processes": self.world,
            **{name: getattr(self.options, name) for name in (*same, "share_negatives", "share_statistics")},
            "seed": self.seed,
            "accumulate": self.accumulate,
        }

    def _save(self) -> None:
        """Write the checkpoint, then remove older best models."""
        generators: list[Any] = [None] * self.world
        mine = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            mine["cuda"] = torch.cuda.get_rng_state(self.device)
        if self.world > 1:
            dist.gather_object(mine, generators if self.rank == 0 else None)
        else:
            generators = [mine]
        if self.rank == 0:
            content = {
                "mmn_fast_version": __version__,
                "run": self._identity(),
                "feature_contract": None if self.contract is None else self.contract.to_dict(),
                "position": dataclasses.asdict(self.position),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "generators": generators,
            }
            self.output.save_checkpoint(content)
            self.saved_step = self.position.step
            self.output.remove_older_best(self.position.best_epoch)
        wait()

    def _restore(self) -> None:
        path = self.output.checkpoint
        if not path.exists():
            return
        content = read_checkpoint(path)
        try:
            # A preset of an earlier version lacks the values that its recipe has by default.
            run = content["run"] | {"preset": Preset.from_dict(content["run"]["preset"]).to_dict()}
            position = _Position(**content["position"])
        except (KeyError, TypeError) as error:
            raise InputError(f"resume: {path}: not a checkpoint of a run ({error!r})") from None
        now, then = (json.loads(json.dumps(settings)) for settings in (self._identity(), run))
        extended = check_same_run(then, now, position.epoch - 1, f"resume: {path}")
        if extended is not None:
            self._say(extended)
        contract = content.get("feature_contract")  # a checkpoint of an earlier version has none
        if contract is not None:
            wanted = FeatureContract.from_dict(contract, f"resume: {path}")
            where = f"features: {self.options.features}"
            refuse_other_features(wanted, self.contract, where, self.options.any_features, "the run's beginning")
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        generators = content["generators"][self.rank]
        torch.set_rng_state(generators["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(generators["cuda"], self.device)
        self.position, self.saved_step = position, position.step

    def _write_result(self) -> None:
        best = self.position.best_epoch
        model = load_model(self.output.best(best)) if best else self._loaded()
        self.output.save_result(model)
        if self.options.official_pth:
            self.output.save_official(model, best or self.recipe.epochs, self.position.step)
