"""The processes of a run: choose each one's device, join them, and stop them together."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

import torch
import torch.distributed as dist

from mmn_fast.errors import InputError
from mmn_fast.training.run.options import TrainOptions


def device_of(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise InputError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device: {name!r}: PyTorch {torch.__version__} sees no CUDA device")
    if name == "cuda" and dist.is_initialized():
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def joined_processes(options: TrainOptions) -> Iterator[None]:
    """Join the processes that torchrun started, if there are any and this process has not joined yet."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    cuda = options.device != "cpu" and torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def wait() -> None:
    if dist.is_initialized():
        dist.barrier()


class StopRequest:
    """Whether this process was asked to stop by SIGINT or SIGTERM."""

    def __init__(self) -> None:
        self._asked = False

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM: finish the step and write the checkpoint; a second signal interrupts at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self._asked:
                raise KeyboardInterrupt
            self._asked = True

        try:
            before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: the owner of the signals stops the run
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def of_any_process(self, device: torch.device) -> bool:
        """Whether any process of the run was asked to stop; all processes must call this together."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return self._asked
        flag = torch.tensor([int(self._asked)], device=device)
        dist.all_reduce(flag)
        return bool(flag.item())
