"""The native backend on a CUDA device: raw features and word pieces in, moments out, nothing waited for in between.

A request is padded to static sizes (`kernels.gpu_graphs`), each of which is captured as a CUDA graph once. One that
fits a single size is one graph, text and video on two streams that join before the scores; a larger one is split into
a graph per piece of text and of videos, and two launches per piece of pairs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mmn_fast.backends.base import NO_OPTIONS, Branches, DeviceBackend, Pairs, Selection
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.features import pre_clip_spans
from mmn_fast.geometry import plan_for
from mmn_fast.kernels import gpu_ops, native
from mmn_fast.kernels.gpu_graphs import (
    MIB,
    QUERY_BUCKETS,
    VIDEO_BUCKETS,
    Captured,
    GraphCache,
    bucket_for,
    split,
    tokens_for,
)
from mmn_fast.kernels.gpu_video import VideoBranch
from mmn_fast.postprocess import select_moments
from mmn_fast.text_encoder import build_text_encoder
from mmn_fast.types import FloatArray, InputError

_PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_LEAST_CAPABILITY = (8, 0)  # of the machine code in csrc/cuda
_MAX_GRAPH_MIB = 16384


class NativeGpuBackend(DeviceBackend):
    """CUDA kernels of our own around the library's products; fp16 by default.

    In fp32 (no TF32) every video and every sentence is encoded at a size of its own, so that its bits do not depend on
    the rest of the call. In fp16 and bf16 the library may take another algorithm for another batch, within what the
    precision promises.

    Constructed with device "cpu" it runs the same path on the kernels' twins, for tests; `unavailable_reason` offers
    that to nobody.
    """

    name = "native"
    OPTIONS: ClassVar[Mapping[str, str]] = {
        "graphs": "whether to capture CUDA graphs (default true)",
        "max_graph_mib": f"device memory that graphs may hold, in MiB (default {_MAX_GRAPH_MIB})",
    }

    @classmethod
    def not_worth_it(cls, model: LoadedModel) -> str | None:
        return "it has not been measured on a GPU yet; backend='native' takes it"

    @classmethod
    def unavailable_reason(cls, device: str, precision: str) -> str | None:
        if precision not in ("auto", *_PRECISIONS):
            return f"precision {precision!r} is not one of its precisions on CUDA ({', '.join(_PRECISIONS)})"
        if device == "cpu":
            return "device 'cpu': this class runs on CUDA devices only"
        if not native.build_info()["cuda"]:
            return (
                f"device {device!r}: this build of mmn_fast has no CUDA kernels; install it with MMN_FAST_CUDA=ON and"
                " nvcc on PATH"
            )
        if torch.version.cuda is None:
            return f"device {device!r}: PyTorch {torch.__version__} is built without CUDA"
        if not torch.cuda.is_available():
            return f"device {device!r}: PyTorch {torch.__version__} finds no CUDA driver or no device"
        index, count = _device_index(device), torch.cuda.device_count()
        if index >= count:
            return f"device {device!r}: there are {count} CUDA devices"
        capability = torch.cuda.get_device_capability(index)
        if capability < _LEAST_CAPABILITY:
            needed, got = (".".join(map(str, pair)) for pair in (_LEAST_CAPABILITY, capability))
            name = torch.cuda.get_device_name(index)
            return f"device {device!r}: it needs compute capability {needed}, {name} has {got}"
        return None

    def __init__(
        self,
        model: LoadedModel,
        device: str,
        precision: str,
        threads: int | None,
        options: Mapping[str, Any] = NO_OPTIONS,
    ) -> None:
        graphs, limit = _checked(options)
        self.preset, self.threads = model.preset, threads
        self.precision = "fp16" if precision == "auto" else precision
        self._dtype = _PRECISIONS[self.precision]
        self._on_cuda = device != "cpu"
        self._graphs_on = graphs and self._on_cuda
        self.device = torch.device("cuda", _device_index(device)) if self._on_cuda else torch.device("cpu")
        exact = self.precision == "fp32"
        self._video_buckets = (1,) if exact else VIDEO_BUCKETS
        self._sentence_buckets = (1,) if exact else QUERY_BUCKETS
        self._plan, self._text_config = plan_for(model.preset), model.text
        self._cells = torch.from_numpy(self._plan.cells).to(self.device)
        self._lock = threading.RLock()  # static inputs and outputs are one set
        self._graphs = GraphCache(limit * MIB, self._release_pool)
        self._programs: dict[str, Callable[..., tuple[Tensor, ...]]] = {
            "video": self._video_program,
            "text": self._text_program,
            "ground": self._ground_program,
        }
        self._num_weights = sum(array.size for array in model.state.values())
        self._doing: tuple[str, Sequence[Tensor]] = ("load", ())
        with self._running():
            self._video = VideoBranch(model.preset, model.state, self._dtype, self.device)
            self._text = build_text_encoder(model.text, model.preset.joint_size, model.state).to(
                self.device, self._dtype
            )
            if self._on_cuda:
                self._pool = torch.cuda.graph_pool_handle()
                self._side = torch.cuda.Stream(self.device)

    # ---- Programs: fixed sizes, no waiting, the same operations with and without a graph -------------------------

    def _video_program(self, pre_clips: Tensor) -> tuple[Tensor, ...]:
        return self._video.encode(pre_clips)

    def _text_program(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        branches = self._text(ids, lengths)
        return tuple(F.normalize(branch.float(), dim=-1).to(self._dtype) for branch in branches)

    def _score_program(
        self,
        video: tuple[Tensor, Tensor],
        text: tuple[Tensor, Tensor],
        pair_videos: Tensor,
        pair_sentences: Tensor,
        durations: Tensor,
        top_k: int,
    ) -> tuple[Tensor, ...]:
        preset = self.preset
        product = preset.score_fusion == "product"
        scores = gpu_ops.pair_scores(*video, *text, pair_videos, pair_sentences, preset.score_power, product)
        found = gpu_ops.pair_moments(scores[2], self._cells, durations, top_k, preset.num_clips, preset.nms_iou)
        return (*found, scores[2].isfinite().all(1))

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
        return self._score_program((video[0], video[1]), (text[0], text[1]), videos, sentences, durations, top_k)

    def run(self, kind: str, inputs: Sequence[Tensor], top_k: int = 0) -> tuple[Tensor, ...]:
        """Run one program on inputs of static sizes, without waiting; for benchmarks.

        Args:
            kind: "video" (pre-clips, dtype [B, T, D]), "text" (ids int64 [S, L] and lengths int64 [S]) or "ground".
            inputs: its tensors, on the device.
            top_k: of "ground".

        Returns:
            Its outputs on the device: embeddings dtype [B, P, J] or [S, J] twice; of "ground" chosen and scores
            [Q, top_k], and bool [Q], whether all scores were finite.

        Raises:
            MemoryError: the device has too little memory.
        """
        with self._running():
            return self._run(kind, inputs, top_k)

    def _run(self, kind: str, inputs: Sequence[Tensor], top_k: int = 0) -> tuple[Tensor, ...]:
        """Run a program on inputs of static sizes, by its graph if there are graphs; the outputs are the caller's."""
        program = self._programs[kind]
        arguments = (top_k,) if top_k else ()
        self._doing = kind, inputs
        if self._graphs_on:
            key = (kind, *(tuple(tensor.shape) for tensor in inputs), top_k)
            captured = self._graphs.get(key, lambda: self._capture(program, inputs, arguments))
            if captured is not None:
                outputs: tuple[Tensor, ...] = captured.run(*inputs)
                return outputs
        return program(*(tensor.to(self.device, non_blocking=True) for tensor in inputs), *arguments)

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
        preset, size, needed = self.preset, self._dtype.itemsize, 0
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

    # ---- Requests --------------------------------------------------------------------------------------------

    def encode_video(self, pre_clips: FloatArray) -> Branches:
        shape = (len(pre_clips), self._plan.num_proposals, self.preset.joint_size)
        if not len(pre_clips):
            return np.empty(shape, np.float32), np.empty(shape, np.float32)
        with self._running():
            blocks = []
            for first, count, bucket in split(len(pre_clips), self._video_buckets):
                padded = np.zeros((bucket, *pre_clips.shape[1:]), np.float32)
                padded[:count] = pre_clips[first : first + count]
                branches = self._run("video", [self._upload(padded).to(self._dtype)])
                blocks.append([branch[:count].float().cpu().numpy() for branch in branches])
        contrastive, iou = (np.concatenate(branch) for branch in zip(*blocks, strict=True))
        return contrastive, iou

    def encode_text(self, token_ids: Sequence[npt.NDArray[np.int64]]) -> Branches:
        if not token_ids:
            return tuple(np.empty((0, self.preset.joint_size), np.float32) for _ in range(2))  # type: ignore[return-value]
        with self._running():
            contrastive, iou = (branch.float().cpu().numpy() for branch in self._embed_sentences(token_ids))
        return contrastive, iou

    def score(self, video: Branches, text: Branches) -> Branches:
        contrastive, iou, _ = self._scores(video, text)
        return contrastive, iou

    def score_moments(self, video: Branches, text: Branches, moments: FloatArray, top_k: int) -> Selection:
        fused = self._scores(video, text)[2]
        chosen = select_moments(fused, moments, self.preset.nms_iou, top_k, self.threads)
        return chosen, np.where(chosen >= 0, np.take_along_axis(fused, np.maximum(chosen, 0), 1), np.float32(0))

    def ground(
        self,
        features: Sequence[FloatArray],
        token_ids: Sequence[npt.NDArray[np.int64]],
        pairs: Pairs,
        top_k: int,
    ) -> Selection:
        if not len(pairs.videos):
            return np.empty((0, top_k), np.int32), np.empty((0, top_k), np.float32)
        with self._running():
            video_bucket = bucket_for(len(features), self._video_buckets)
            sentence_bucket = bucket_for(len(token_ids), self._sentence_buckets)
            if video_bucket and sentence_bucket and len(pairs.videos) <= QUERY_BUCKETS[-1]:
                ids = self._padded_ids(token_ids, sentence_bucket, max(map(len, token_ids)))
                pair_tensors = self._padded_pairs(pairs)
                selection = self._run("ground", [self._pre_clips(features, video_bucket), *ids, *pair_tensors], top_k)
                found = [[tensor[: len(pairs.videos)].cpu().numpy() for tensor in selection]]
            else:
                found = self._ground_in_pieces(features, token_ids, pairs, top_k)
        chosen, scores, finite = (np.concatenate(parts) for parts in zip(*found, strict=True))
        self._require_finite(finite)
        return chosen, scores

    def _require_finite(self, finite: npt.NDArray[np.bool_]) -> None:
        """Suppression passes over NaN: without this, values beyond fp16 would come out as moments that are missing."""
        if not finite.all():
            raise InputError(
                f"precision: expected one that holds this model's values, got {self.precision!r}, in which"
                f" {int((~finite).sum())} of {len(finite)} sentences get scores that are not finite; bf16 and fp32 hold"
                " larger values"
            )

    def _ground_in_pieces(
        self,
        features: Sequence[FloatArray],
        token_ids: Sequence[npt.NDArray[np.int64]],
        pairs: Pairs,
        top_k: int,
    ) -> list[list[npt.NDArray[Any]]]:
        text = self._embed_sentences(token_ids)
        selections, rows = [], []
        for first, count, _ in split(len(features), VIDEO_BUCKETS):
            blocks = []
            for start, held, size in split(count, self._video_buckets):
                inputs = self._pre_clips(features[first + start : first + start + held], size)
                blocks.append([branch[:held] for branch in self._run("video", [inputs])])
            video = [torch.cat(branch) for branch in zip(*blocks, strict=True)]
            mine = np.flatnonzero((pairs.videos >= first) & (pairs.videos < first + count))
            for start, held, _ in split(len(mine), QUERY_BUCKETS):
                chosen = mine[start : start + held]
                piece = Pairs(pairs.videos[chosen] - first, pairs.sentences[chosen], pairs.durations[chosen])
                selection = self._score_program((video[0], video[1]), text, *self._padded_pairs(piece), top_k)
                selections.append([tensor[:held] for tensor in selection])
                rows.append(chosen)
        order = np.argsort(np.concatenate(rows))
        return [[torch.cat(parts).cpu().numpy()[order] for parts in zip(*selections, strict=True)]]

    def warmup(self, videos: Sequence[int], sentences: Sequence[int], tokens: Sequence[int], top_k: int) -> None:
        width = (self.preset.num_pre_clips, self.preset.input_size)
        with self._running():
            for count in videos:
                for spoken in sentences:
                    for length in tokens:
                        pairs = Pairs(
                            np.zeros(spoken, np.int32), np.arange(spoken, dtype=np.int32), np.ones(spoken, np.float32)
                        )
                        ids = [np.ones(min(length, self._text_config.max_tokens), np.int64)] * spoken
                        self.ground([np.ones(width, np.float32)] * count, ids, pairs, top_k)

    def info(self) -> dict[str, Any]:
        device = str(self.device)
        if self._on_cuda:
            device += f" ({torch.cuda.get_device_name(self.device)})"
        facts: dict[str, Any] = {
            "device": device,
            "precision": self.precision,
            "threads": native.num_threads(self.threads),
            "proposal_conv": self._video.conv.name,
            "torch": torch.__version__,
            "use_graphs": self._graphs_on,
            **self._graphs.info(),
        }
        if self._on_cuda:
            facts["device_mib"] = round(torch.cuda.memory_reserved(self.device) / MIB, 1)
            facts["peak_device_mib"] = round(torch.cuda.max_memory_allocated(self.device) / MIB, 1)
        return facts

    # ---- Pieces ----------------------------------------------------------------------------------------------

    @contextmanager
    def _running(self) -> Iterator[None]:
        """One call at a time, without gradients, TF32 or algorithms that are picked by the clock."""
        cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with self._lock, torch.inference_mode(), cudnn:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            try:
                if self._on_cuda:
                    with torch.cuda.device(self.device):
                        yield
                else:
                    yield
            except RuntimeError as error:
                cause = _out_of_memory(error)
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
            finally:
                torch.set_float32_matmul_precision(before)

    def _upload(self, array: npt.NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        # The allocator of pinned memory gives a block again only when the copies from it are done.
        return tensor.pin_memory().to(self.device, non_blocking=True) if self._on_cuda else tensor

    def _pre_clips(self, features: Sequence[FloatArray], bucket: int) -> Tensor:
        """dtype [bucket, T, D] from raw features; the videos that fill up are the first one again."""
        preset = self.preset
        spans = [pre_clip_spans(len(rows), preset.num_pre_clips, preset.clamp_pre_clips) for rows in features]
        offsets = np.cumsum([0, *(len(rows) for rows in features)])
        order = [*range(len(features)), *[0] * (bucket - len(features))]
        starts, ends = (
            np.concatenate([spans[number][side] + offsets[number] for number in order]).astype(np.int32)
            for side in range(2)
        )
        rows = features[0] if len(features) == 1 else np.concatenate(list(features))
        pooled = gpu_ops.feature_pool(
            self._upload(rows), self._upload(starts), self._upload(ends), list(preset.feature_streams), self._dtype
        )
        shaped: Tensor = pooled.view(bucket, preset.num_pre_clips, preset.input_size)
        return shaped

    def _padded_ids(
        self, token_ids: Sequence[npt.NDArray[np.int64]], bucket: int, longest: int
    ) -> tuple[Tensor, Tensor]:
        """int64 [bucket, tokens] and int64 [bucket]; the sentences that fill up are one word piece long."""
        ids = np.zeros((bucket, tokens_for(longest, self._text_config.max_tokens)), np.int64)
        lengths = np.ones(bucket, np.int64)
        for row, sentence in enumerate(token_ids):
            ids[row, : len(sentence)] = sentence
            lengths[row] = len(sentence)
        return self._upload(ids), self._upload(lengths)

    def _padded_pairs(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """Videos, sentences and durations at the size of a query bucket; the pairs that fill up have video -1."""
        fill = (0, (bucket_for(len(pairs.videos), QUERY_BUCKETS) or len(pairs.videos)) - len(pairs.videos))
        return (
            self._upload(np.pad(pairs.videos, fill, constant_values=-1)),
            self._upload(np.pad(pairs.sentences, fill)),
            self._upload(np.pad(pairs.durations, fill, constant_values=1)),
        )

    def _embed_sentences(self, token_ids: Sequence[npt.NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
        """dtype [S, J] twice; sentences of like lengths go together."""
        order = sorted(range(len(token_ids)), key=lambda row: len(token_ids[row]))
        blocks = []
        for first, count, bucket in split(len(order), self._sentence_buckets):
            sentences = [token_ids[row] for row in order[first : first + count]]
            branches = self._run("text", self._padded_ids(sentences, bucket, len(sentences[-1])))
            blocks.append([branch[:count] for branch in branches])
        back = self._upload(np.argsort(order))
        contrastive, iou = (torch.cat(branch)[back] for branch in zip(*blocks, strict=True))
        return contrastive, iou

    def _scores(self, video: Branches, text: Branches) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Contrastive, iou and fused float32 [S, P] of one video from embeddings on the host."""
        sentences, product = len(text[0]), self.preset.score_fusion == "product"
        with self._running():
            on_device = [self._upload(array).to(self._dtype) for array in (*video, *text)]
            pairs = self._upload(np.stack([np.zeros(sentences, np.int32), np.arange(sentences, dtype=np.int32)]))
            scores = gpu_ops.pair_scores(
                on_device[0][None],
                on_device[1][None],
                *on_device[2:],
                pairs[0],
                pairs[1],
                self.preset.score_power,
                product,
            )
            contrastive, iou, fused = (score.cpu().numpy() for score in scores)
        self._require_finite(np.isfinite(fused).all(1))
        return contrastive, iou, fused


def _out_of_memory(error: BaseException | None) -> BaseException | None:
    """The lack of memory behind an error: where a capture was under way, ending it raises another one over it."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__context__
    return error


def _device_index(device: str) -> int:
    if device in ("auto", "cuda"):
        return torch.cuda.current_device() if torch.cuda.is_available() else 0
    return int(device.partition(":")[2] or 0)


def _checked(options: Mapping[str, Any]) -> tuple[bool, int]:
    graphs, limit = options.get("graphs", True), options.get("max_graph_mib", _MAX_GRAPH_MIB)
    if not isinstance(graphs, bool):
        raise InputError(f"backend_options: graphs: expected true or false, got {graphs!r}")
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise InputError(f"backend_options: max_graph_mib: expected a whole number of MiB >= 0, got {limit!r}")
    return graphs, limit
