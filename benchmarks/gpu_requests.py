"""Times whole requests on a GPU by the host's clock, from features on the host to moments on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

import mmn_fast
from benchmarks.gpu_timing import INPUT_SETS, Bench
from benchmarks.gpu_videos import Videos, bench_ours
from mmn_fast.backends.base import Settings
from mmn_fast.backends.native_gpu import NativeGpuBackend
from mmn_fast.backends.torch_ref import TorchBackend
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.model import MMN

SENTENCES = ["person turn a light on.", "person flips the switch by the door.", "a man runs.", "she opens a bag."]
CONVS = ("crop", "gather", "fft", "mixed", "auto")
REFERENCE = "PyTorch fp32"


def engines(model: LoadedModel, device: str) -> dict[str, Engine]:
    """Our engine and the reference, by their names in the lines."""
    return {
        "mmn_fast fp16": Engine(model, NativeGpuBackend(model, Settings(device, "fp16"))),
        REFERENCE: Engine(model, cast(Any, TorchBackend(model, Settings(device, "fp32")))),
    }


def bench_ground(bench: Bench, model: LoadedModel, every: Mapping[str, Engine], batches: Sequence[int]) -> None:
    """Time `ground` for each number of videos (one sentence for one video, else four), then for a cached video.

    The embeddings of a cached video exist already, so the engine only encodes and scores the sentence.

    Args:
        bench: device, time limit and results.
        model: gives the inputs' sizes.
        every: engines by name, `REFERENCE` among them.
        batches: numbers of videos.
    """
    for count in batches:
        if bench.out_of_time(f"{model.preset.name}, ground, {count} videos"):
            continue
        batch = _batch(model, count)
        expected = every[REFERENCE].ground(batch)
        for peer, engine in every.items():
            if not bench.out_of_time(f"{model.preset.name}, ground, {count} videos, {peer}"):
                _ground(bench, model, engine, peer, batch, expected)
    if bench.out_of_time(f"{model.preset.name}, cached video"):
        return
    query = _batch(model, 1)[0]
    expected = every[REFERENCE].ground([query])
    for peer, engine in every.items():
        if bench.out_of_time(f"{model.preset.name}, cached video, {peer}"):
            continue
        embedded = engine.encode_video([query.video])
        spoken = [[f"{SENTENCES[0]} {number}"] for number in range(INPUT_SETS)]

        def run(
            number: int, engine: Engine = engine, embedded: Any = embedded, spoken: list[list[str]] = spoken
        ) -> Any:
            return engine.score(embedded, engine.encode_text(spoken[number]))

        error = _score_error([run(0)[0]], expected)
        bench.write("cached video", peer, bench.time_on_host(run), error, preset=model.preset.name, batch=1, queries=1)


def bench_engines(
    bench: Bench, model: LoadedModel, reference: Engine, batches: Sequence[int], convs: Sequence[str]
) -> None:
    """Time `ground` and `encode_video` in fp16 with an engine per proposal convolution.

    Every engine runs one number of videos before any runs the next, so a time limit cuts off the last numbers.

    Args:
        bench: device, time limit and results.
        model: the model of all engines.
        reference: the engine of `REFERENCE`.
        batches: numbers of videos.
        convs: values of the backend's option `conv`.
    """
    backends: dict[str, NativeGpuBackend] = {}
    for count in batches:
        if bench.out_of_time(f"{model.preset.name}, batch {count}, engine"):
            continue
        batch, videos = _batch(model, count), Videos(bench, model, net_of(reference), count)
        expected = reference.ground(batch)
        for conv in convs:
            what = f"{model.preset.name}, batch {count}, engine, {conv}"
            if bench.out_of_time(what):
                continue
            try:
                if conv not in backends:
                    backends[conv] = NativeGpuBackend(model, Settings(bench.device, "fp16", None, {"conv": conv}))
                backend, peer = backends[conv], f"mmn_fast fp16, conv {conv}"
                _ground(bench, model, Engine(model, backend), peer, batch, expected, conv=conv)
                bench_ours(bench, videos, backend, peer, conv=conv)
            except (InputError, RuntimeError, MemoryError) as problem:
                print(f"not measured: {what}: {str(problem).splitlines()[0]}", flush=True)


def net_of(reference: Engine) -> MMN:
    """The model inside the engine of `REFERENCE`, in float32 on the device."""
    return cast(Any, reference._backend).net


def _batch(model: LoadedModel, videos: int) -> list[mmn_fast.Query]:
    rng, queries = np.random.default_rng(0), 1 if videos == 1 else len(SENTENCES)
    return [
        mmn_fast.Query(
            mmn_fast.Video(rng.standard_normal((40, model.preset.input_size)).astype(np.float32), 30.0 + number),
            [f"{sentence} {number}" for sentence in SENTENCES[:queries]],
        )
        for number in range(videos)
    ]


def _ground(
    bench: Bench,
    model: LoadedModel,
    engine: Engine,
    peer: str,
    batch: list[mmn_fast.Query],
    expected: Any,
    **facts: Any,
) -> None:
    error = _score_error(engine.ground(batch), expected)
    timing = bench.time_on_host(lambda _: engine.ground(batch))
    facts |= {"preset": model.preset.name, "batch": len(batch), "queries": len(batch[0].sentences)}
    bench.write("ground", peer, timing, error, **facts)


def _score_error(found: Any, expected: Any) -> float:
    """Largest difference of the best moments' scores."""
    return max(
        abs(ours[0].score - exact[0].score)
        for mine, theirs in zip(found, expected, strict=True)
        for ours, exact in zip(mine, theirs, strict=True)
    )
