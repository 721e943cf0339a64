"""The model's steps at static sizes on a device, as CUDA graphs where those are on.

A program is a function of tensors of fixed sizes that queues work and never waits: the same operations with and without
a graph. Without a device it runs the kernels' twins (`gpu_ops`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mmn_fast.geometry import plan_for
from mmn_fast.kernels import gpu_moment_ops
from mmn_fast.kernels.gpu_device import out_of_memory, strict_arithmetic
from mmn_fast.kernels.gpu_graphs import MIB, Captured, GraphCache
from mmn_fast.kernels.gpu_video import VideoBranch
from mmn_fast.presets import Preset
from mmn_fast.types import TextEncoderConfig

TextBranch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Token ids int64 [S, L] and lengths int64 [S] to contrastive and iou, dtype [S, J] each, not normalised."""


class Programs:
    """Runs programs, one call at a time; a lack of memory is one sentence and leaves them usable.

    Args:
        preset: sizes and scoring.
        text: sizes of the sentence side, for the count of memory.
        make_video: makes the video branch; called here, since loading may lack memory too.
        make_text: makes the sentence side.
        num_weights: values in both, for the count of memory.
        dtype: of operands.
        device: where they run.
        graphs: whether to capture CUDA graphs.
        limit_bytes: device memory that graphs may hold.

    Raises:
        MemoryError: the device has too little memory for the weights.
    """

    def __init__(
        self,
        preset: Preset,
        text: TextEncoderConfig,
        make_video: Callable[[], VideoBranch],
        make_text: Callable[[], TextBranch],
        num_weights: int,
        dtype: torch.dtype,
        device: torch.device,
        graphs: bool,
        limit_bytes: int,
    ) -> None:
        self.device, self.dtype, self.graphs_on = device, dtype, graphs
        self._preset, self._plan, self._text_config, self._num_weights = preset, plan_for(preset), text, num_weights
        self._on_cuda = device.type == "cuda"
        self._lock = threading.RLock()  # static inputs and outputs are one set
        self._graphs = GraphCache(limit_bytes, self._release_pool)
        self._programs: dict[str, Callable[..., tuple[Tensor, ...]]] = {
            "video": self._video_program,
            "text": self._text_program,
            "ground": self._ground_program,
        }
        self._doing: tuple[str, Sequence[Tensor]] = ("load", ())
        with self.running():
            self.video, self._text = make_video(), make_text()
            self._cells = torch.from_numpy(self._plan.cells).to(device)
            if self._on_cuda:
                self._pool = torch.cuda.graph_pool_handle()
                self._side = torch.cuda.Stream(device)

    def _video_program(self, pre_clips: Tensor) -> tuple[Tensor, ...]:
        return self.video.encode(pre_clips)

    def _text_program(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        branches = self._text(ids, lengths)
        return tuple(F.normalize(branch.float(), dim=-1).to(self.dtype) for branch in branches)

    def score(
        self,
        video: tuple[Tensor, Tensor],
        text: tuple[Tensor, Tensor],
        pair_videos: Tensor,
        pair_sentences: Tensor,
        durations: Tensor,
        top_k: int,
    ) -> tuple[Tensor, ...]:
        """Moments of pairs from embeddings: chosen and scores [Q, top_k], and bool [Q], whether all were finite."""
        fused = self.pair_scores(video, text, pair_videos, pair_sentences)[2]
        preset = self._preset
        found = gpu_moment_ops.pair_moments(fused, self._cells, durations, top_k, preset.num_clips, preset.nms_iou)
        return (*found, fused.isfinite().all(1))

    def pair_scores(
        self, video: tuple[Tensor, Tensor], text: tuple[Tensor, Tensor], pair_videos: Tensor, pair_sentences: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Contrastive, iou and fused scores of pairs, float32 [Q, P] each (`gpu_moment_ops.pair_scores`)."""
        power, product = self._preset.score_power, self._preset.score_fusion == "product"
        scores: tuple[Tensor, Tensor, Tensor]
        scores = gpu_moment_ops.pair_scores(*video, *text, pair_videos, pair_sentences, power, product)
        return scores

    def _ground_program(
        self,
        pre_clips: Tensor,
        ids: Tensor,
        lengths: Tensor,
        videos: Tensor,
        sentences: Tensor,
        durations: Tensor,
        top_k: int,
    ) -> tuple[Tensor, ...]:
        text: tuple[Tensor, ...]
        if self._on_cuda:
            main = torch.cuda.current_stream(self.device)
            self._side.wait_stream(main)
            with torch.cuda.stream(self._side):
                text = self._text_program(ids, lengths)
            video = self._video_program(pre_clips)
            main.wait_stream(self._side)
            for branch in text:
                branch.record_stream(main)
        else:
            text, video = self._text_program(ids, lengths), self._video_program(pre_clips)
        return self.score((video[0], video[1]), (text[0], text[1]), videos, sentences, durations, top_k)

    def run(self, kind: str, inputs: Sequence[Tensor], top_k: int = 0) -> tuple[Tensor, ...]:
        """Run a program on inputs of static sizes, by its graph if there are graphs.

        Args:
            kind: "video" (pre-clips, dtype [B, T, D]), "text" (ids int64 [S, L] and lengths int64 [S]) or "ground"
                (all of these, and videos, sentences and durations [Q] of pairs).
            inputs: its tensors, on the device or in pinned memory.
            top_k: of "ground".

        Returns:
            Its outputs on the device, the caller's own: embeddings dtype [B, P, J] or [S, J] twice; of "ground" as
            `score`.
        """
        program = self._programs[kind]
        arguments = (top_k,) if top_k else ()
        self._doing = kind, inputs
        if self.graphs_on:
            key = (kind, *(tuple(tensor.shape) for tensor in inputs), top_k)
            captured = self._graphs.get(key, lambda: self._capture(program, inputs, arguments))
            if captured is not None:
                outputs: tuple[Tensor, ...] = captured.run(*inputs)
                return outputs
        return program(*(tensor.to(self.device, non_blocking=True) for tensor in inputs), *arguments)

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        """A tensor of an array's values on the device, through pinned memory and without waiting."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        # The allocator of pinned memory gives a block again only when the copies from it are done.
        return tensor.pin_memory().to(self.device, non_blocking=True) if self._on_cuda else tensor

    @contextmanager
    def running(self) -> Iterator[None]:
        """What every use of the programs stands in.

        Raises:
            MemoryError: the device had too little memory; says for which program, at which sizes, and how much that
                needs. Graphs were let go, and the programs stay usable.
        """
        with self._lock, strict_arithmetic():
            try:
                with torch.cuda.device(self.device) if self._on_cuda else nullcontext():
                    yield
            except RuntimeError as error:
                cause = out_of_memory(error)
                if cause is None:
                    raise
                kind, inputs = self._doing
                self._doing = "load", ()
                self._graphs.clear()
                sizes = " and ".join(str(list(tensor.shape)) for tensor in inputs[:2]) or "the weights"
                raise MemoryError(
                    f"native: out of device memory in the program {kind!r} for {sizes}, which needs about"
                    f" {self._needed_mib(kind, inputs):,} MiB: {str(cause).splitlines()[0]}; graphs were let go, the"
                    " engine stays usable"
                ) from None

    def info(self) -> dict[str, Any]:
        """The device, and the graphs and memory held on it, in MiB."""
        facts: dict[str, Any] = {
            "device": str(self.device),
            "proposal_conv": self.video.conv.name,
            "torch": torch.__version__,
            "use_graphs": self.graphs_on,
            **self._graphs.info(),
        }
        if self._on_cuda:
            facts["device"] += f" ({torch.cuda.get_device_name(self.device)})"
            facts["device_mib"] = round(torch.cuda.memory_reserved(self.device) / MIB, 1)
            facts["peak_device_mib"] = round(torch.cuda.max_memory_allocated(self.device) / MIB, 1)
        return facts

    def _capture(
        self, program: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], arguments: tuple[int, ...]
    ) -> Captured:
        torch.cuda.empty_cache()  # as the capture does: what it frees must not count against the graph
        before = torch.cuda.memory_reserved(self.device)
        static = [tensor.to(self.device, copy=True) for tensor in inputs]
        warm = torch.cuda.Stream(self.device)
        warm.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(warm):  # the libraries make their handles and workspaces outside of the capture
            program(*static, *arguments)
        torch.cuda.current_stream(self.device).wait_stream(warm)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = program(*static, *arguments)

        def run(*given: Tensor) -> tuple[Tensor, ...]:
            for place, tensor in zip(static, given, strict=True):
                place.copy_(tensor, non_blocking=True)
            graph.replay()
            # Graphs share a pool: the next one may write where this one's outputs are.
            return tuple(output.clone() for output in outputs)

        return Captured(run, max(torch.cuda.memory_reserved(self.device) - before, 0))

    def _release_pool(self) -> None:
        if self._on_cuda:
            self._pool = torch.cuda.graph_pool_handle()
            torch.cuda.empty_cache()

    def _needed_mib(self, kind: str, inputs: Sequence[Tensor]) -> int:
        """What a program holds at most, counted: the map and two layers, the text's feed-forward, the weights."""
        preset, size, needed = self._preset, self.dtype.itemsize, 0
        if kind in ("video", "ground"):
            sides = sorted(layer.side for layer in self._plan.layers)
            cells = (preset.num_clips + self._plan.layers[0].side) ** 2 // 2 + 2 * sides[-1] ** 2
            needed += len(inputs[0]) * cells * max(preset.hidden_size, preset.conv_hidden_size) * size
        if kind in ("text", "ground"):
            ids = inputs[kind == "ground"]
            needed += ids.numel() * (self._text_config.ffn_width + 6 * self._text_config.width) * size
        if kind == "load":
            needed += self._num_weights * size
        return max(needed // MIB, 1)
