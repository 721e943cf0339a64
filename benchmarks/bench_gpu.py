"""Times the GPU engine beside PyTorch and, if installed, ONNX Runtime: stages on the device, and whole requests.

The weights come from the golden cases. Stages are timed on a busy device over rotated inputs in its memory, so times do
not include launches (`gpu_timing`). The error is the largest difference of an embedding (unit norm) from the reference
in float32 without TF32. The floor is the larger of two times: work over the measured rate of a matrix product, bytes
over the measured bandwidth of a copy. Work counts the plan's cell x tap products; bytes count weights, input and
embeddings once. Calls that return results to the host are timed by the host's clock and have no floor.

    python -m benchmarks.bench_gpu [--presets charades ...] [--batches 1 8 48] [--seconds 90]
        [--steps ground score encode_text stages encode_video engine] [--compiled] [--rehearse]

Presets, batches and steps run in the given order. The step "engine" runs `ground` and `encode_video` with an engine per
proposal convolution. --compiled adds torch.compile (max-autotune) for one video of a preset of 16 clips; its tuning
takes a minute or more. --rehearse runs all other steps at tiny sizes on the CPU, on the kernels' twins, and writes
nothing.
"""

from __future__ import annotations

import argparse
import copy
import gc
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.bench_moments import official_moments
from benchmarks.golden import cases
from benchmarks.gpu_peers import largest_error
from benchmarks.gpu_requests import CONVS, REFERENCE, SENTENCES, bench_engines, bench_ground, engines, net_of
from benchmarks.gpu_stages import bench_stages, text_flop
from benchmarks.gpu_timing import INPUT_SETS, Bench, add_options, one_of, start
from benchmarks.gpu_videos import bench_videos
from mmn_fast.backends.base import Settings
from mmn_fast.backends.native_gpu import NativeGpuBackend
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.engine import Engine
from mmn_fast.geometry import cells_to_moments, plan_for
from mmn_fast.kernels.gpu.device import strict_arithmetic
from mmn_fast.model import MMN
from mmn_fast.tokenizer import load_tokenizer

STEPS = ("ground", "score", "encode_text", "stages", "encode_video", "engine")


def _encode_text(bench: Bench, model: LoadedModel, net: MMN, batches: list[int]) -> None:
    """Time the encoding of sentences of 16 word pieces on the device."""
    text, length = model.text, min(16, model.text.max_tokens)
    backend = NativeGpuBackend(model, Settings(bench.device, "fp16"))
    half = copy.deepcopy(net.text_encoder).to(torch.float16)
    weights = sum(array.size for name, array in model.state.items() if ".layer." in name)
    for batch in batches:
        ids = [torch.randint(text.vocab_size, (batch, length), device=bench.device) for _ in range(INPUT_SETS)]
        lengths = torch.full((batch,), length, device=bench.device)

        def encoded(
            encoder: nn.Module, number: int, ids: list[torch.Tensor] = ids, lengths: torch.Tensor = lengths
        ) -> Any:
            with torch.inference_mode():
                return [nn.functional.normalize(branch, dim=-1) for branch in encoder(ids[number], lengths)]

        def ours(number: int, ids: list[torch.Tensor] = ids, lengths: torch.Tensor = lengths) -> Any:
            return backend.run("text", [ids[number], lengths])

        with strict_arithmetic():
            expected = encoded(net.text_encoder, 0)
        work = batch * length * text_flop(model), 2.0 * weights
        peers = {"PyTorch fp32": partial(encoded, net.text_encoder), "PyTorch fp16": partial(encoded, half)}
        for peer, run in {"mmn_fast fp16": ours, **peers}.items():
            if bench.out_of_time(f"encode_text, batch {batch}, {peer}"):
                continue
            error, timing = largest_error(run(0), expected), bench.time(run)
            facts = {"preset": model.preset.name, "batch": batch, "tokens": length}
            bench.write("encode_text", peer, timing, error, work, **facts)


def _score(bench: Bench, model: LoadedModel, engine: Engine) -> None:
    """Time moments from embeddings on the host, beside the official post-processing on the device."""
    preset, plan = model.preset, plan_for(model.preset)
    rng = np.random.default_rng(0)
    video = [rng.standard_normal((plan.num_proposals, preset.joint_size)).astype(np.float32) for _ in range(2)]
    text = [rng.standard_normal((len(SENTENCES), preset.joint_size)).astype(np.float32) for _ in range(2)]
    video, text = ([a / np.linalg.norm(a, axis=1, keepdims=True) for a in side] for side in (video, text))
    moments = cells_to_moments(plan.cells, 30.0, preset.num_clips)
    maps = [torch.zeros(preset.joint_size, preset.num_clips, preset.num_clips, device=bench.device) for _ in range(2)]
    rows, columns = torch.from_numpy(plan.cells).long().unbind(1)
    for map2d, packed in zip(maps, video, strict=True):
        map2d[:, rows, columns] = torch.from_numpy(packed).T.to(bench.device)
    mask, sentences = torch.from_numpy(plan.mask).to(bench.device), [torch.from_numpy(a).to(bench.device) for a in text]
    backend = engine._backend

    def ours(_: int) -> Any:
        return backend.top_moments((video[0], video[1]), (text[0], text[1]), moments, 5)

    def official(_: int) -> Any:
        with torch.inference_mode():
            return official_moments(maps, sentences, mask, preset, 30.0)

    theirs, chosen = official(0), ours(0)[0]
    best = np.stack([found[0].cpu().numpy() for found in theirs])
    error = float(np.abs(moments[chosen[:, 0]] - best).max())
    for peer, run in (("mmn_fast", ours), ("official", official)):
        timing = bench.time_on_host(run, 30, 0.5)
        bench.write("score", peer, timing, error, preset=preset.name, batch=len(SENTENCES))


def _steps(bench: Bench, options: argparse.Namespace, name: str) -> dict[str, Callable[[], None]]:
    """The functions that run each step for a preset, by the step's name."""
    case = cases.load(f"{name}_{'small' if bench.rehearse else 'full'}")
    model = LoadedModel(case.preset, case.text, case.state(), load_tokenizer(cases.VOCAB, case.text.max_tokens), name)
    every = engines(model, bench.device)
    reference = every[REFERENCE]
    net, batches = net_of(reference), [1] if bench.rehearse else options.batches
    compiled = options.compiled and not bench.rehearse and case.preset.num_clips <= 16
    return {
        "ground": partial(bench_ground, bench, model, every, batches),
        "score": partial(_score, bench, model, every["mmn_fast fp16"]),
        "encode_text": partial(_encode_text, bench, model, net, batches),
        "stages": partial(bench_stages, bench, model, [2] if bench.rehearse else batches),
        "encode_video": partial(bench_videos, bench, model, net, batches, compiled),
        # A rehearsal runs only "auto": Triton's interpreter takes seconds per kernel.
        "engine": partial(bench_engines, bench, model, reference, batches, ["auto"] if bench.rehearse else CONVS),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and append its lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, ["charades", "activitynet", "tacos"], [1, 8, 48])
    parser.add_argument("--steps", nargs="+", type=one_of(STEPS), default=list(STEPS), metavar="STEP")
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args(arguments)
    if not options.rehearse:
        reason = NativeGpuBackend.unavailable_reason("cuda", "auto")
        if reason:
            parser.error(f"{reason} (--rehearse runs the steps on the CPU)")
    bench = start(options, "bench_gpu")
    failed: list[str] = []
    for name in ["charades"] if options.rehearse else options.presets:
        if bench.out_of_time(name):
            continue
        steps = _steps(bench, options, name)
        for what in options.steps:
            if bench.out_of_time(f"{name}, {what}"):
                continue
            try:
                steps[what]()
            except Exception:  # the other steps still measure
                traceback.print_exc()
                failed.append(f"{name}, {what}")
            gc.collect()  # engines are in reference cycles, and their graphs hold gigabytes
    if failed:
        parser.exit(1, f"bench_gpu: failed: {'; '.join(failed)}\n")


if __name__ == "__main__":
    main()
