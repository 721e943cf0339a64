"""Measures a model's stages on this machine, by backend, precision and batch: `mmn-fast bench`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from mmn_fast.artifact.manifest import is_export, read_manifest
from mmn_fast.backends.registry import available_backends, backend_class
from mmn_fast.benchmarking.timing import machine
from mmn_fast.benchmarking.turns import Arrays, Call, Candidate, take_turns
from mmn_fast.checkpoint import load_model
from mmn_fast.engine import Engine, load
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.precisions import PRECISIONS
from mmn_fast.presets import Preset
from mmn_fast.types import Video

PEER = ("torch", "fp32")
"""The backend and precision with ratio 1: its median is the numerator of every ratio."""
EXACT = ("torch", "fp64")
"""The backend and precision that give the exact results, of the first `_EXACT_VIDEOS` videos of a batch."""
_EXACT_VIDEOS = 2  # TACoS takes most of a minute per video in float64; a video has the same bits in any batch
TOP_K = 5
DURATION_S = 60.0
_WORDS = "a the person opens closes door window then walks to picks up puts down cup book red box while another sits"
_CAPTION = (
    "ratio: {0}'s median over this one; peak: MiB of the candidate's own process so far, libraries included;"
    " error: largest difference from {1}"
)


@dataclass(frozen=True)
class BenchOptions:
    """The settings of a measurement.

    Attributes:
        load: arguments of `mmn_fast.load` besides backend and precision.
        backends: names; empty for all that can run here. Then backend torch takes part in fp32 alone, because its bf16
            rounds operands and multiplies in float32, which is slower than fp32.
        precisions: names; empty for fp32 and bf16, or for an export's own precision.
        batches: videos per call of encode_video.
        sentences: sentences per call of encode_text and score.
        repeats: timed calls of each candidate.
        limit_s: seconds after which no further round of a stage begins.
    """

    load: Mapping[str, Any]
    backends: Sequence[str] = ()
    precisions: Sequence[str] = ()
    batches: Sequence[int] = (1, 16)
    sentences: int = 32
    repeats: int = 9
    limit_s: float = 60.0

    def __post_init__(self) -> None:
        for precision in self.precisions:
            if precision not in PRECISIONS:
                raise InputError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
        for name, values in (("batch", self.batches), ("sentences", [self.sentences]), ("repeats", [self.repeats])):
            for value in values:
                if value < 1:
                    raise InputError(f"{name}: expected at least 1, got {value}")


def bench_model(options: BenchOptions, on_event: Callable[[str], object] = lambda event: None) -> dict[str, Any]:
    """Measure a model's stages in several backends and precisions, which take turns, each in its own process.

    Backend torch gives the peer of all ratios, in fp32, and the exact results, in fp64. Torch cannot run an export:
    there the first backend that runs it gives both.

    Features are random and seeded, and sentences are made of common words, because the time does not depend on their
    content. Stages are the engine's own calls, checks and hashing included: `encode_video` of each batch, `encode_text`
    and `score` of all sentences on one video, top 5.

    Args:
        options: the settings.
        on_event: receives a message when a step starts.

    Returns:
        `machine`, `model` (source, preset, proposals), `peer` (of ratios) and `exact` (of errors), such as "torch
        fp32", `unavailable` (why a backend and precision does not run here) and `rows`: stage, batch, backend,
        precision, median_ms, p20_ms, p80_ms, repeats, ratio (the peer's median over this one), peak_mib and max_error,
        or failure.

    Raises:
        InputError: the model or an option cannot be used.
        BackendUnavailable: none of the requested backends and precisions can run here.
    """
    chosen, unavailable = _choose(options, str(options.load.get("device", "auto")))
    backend, precision = chosen[0]
    engine = load(**options.load, backend=backend, precision=precision)  # refuses a bad model before any work
    stages = [f"encode_video {batch}" for batch in options.batches]
    stages += [f"encode_text {options.sentences}", f"score {options.sentences}"]
    candidates = [
        Candidate(f"{backend} {precision}", make_stages, (dict(options.load), backend, precision, stages))
        for backend, precision in chosen
    ]
    truth = candidates[0]
    if chosen[0] == PEER:
        truth = Candidate(" ".join(EXACT), make_exact_stages, (dict(options.load), stages))
    found = take_turns(candidates, stages, options.repeats, truth=truth, limit_s=options.limit_s, on_event=on_event)
    rows = []
    for stage, measured in found.items():
        peer = measured[candidates[0].name].timing
        for (backend, precision), result in zip(chosen, measured.values(), strict=True):
            name, _, batch = stage.partition(" ")
            row = {"stage": name, "batch": int(batch), "backend": backend, "precision": precision}
            if result.timing is None:
                rows.append({**row, "failure": result.failure})
                continue
            ratio = None if peer is None else peer.median_ms / result.timing.median_ms
            facts = {"ratio": ratio, "peak_mib": result.peak_mib, "max_error": result.max_error}
            rows.append({**row, **asdict(result.timing), **facts})
    info = engine.info()
    return {
        "machine": machine(),
        "model": {name: info[name] for name in ("model", "preset", "proposals")},
        "threads": options.load.get("threads"),
        "peer": candidates[0].name,
        "exact": truth.name,
        "unavailable": unavailable,
        "rows": rows,
    }


def table(report: Mapping[str, Any]) -> Table:
    """The rows of `bench_model` as a table."""
    machine, model = report["machine"], report["model"]
    failures: dict[str, str] = dict(report["unavailable"])
    found = Table(
        title=f"{model['model']}, preset {model['preset']}, {machine['cpu']}, {machine['cores']} cores,"
        f" {machine['cpu_isa']}",
    )
    for name in ("stage", "batch", "backend", "median ms", "p20", "p80", "ratio", "peak", "error"):
        found.add_column(name, justify="left" if name in ("stage", "backend") else "right")
    for row in report["rows"]:
        start = (row["stage"], str(row["batch"]), f"{row['backend']} {row['precision']}")
        if "failure" in row:
            found.add_row(*start, "-")
            failures[start[-1]] = row["failure"]
            continue
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        times = (f"{row[name]:.3f}" for name in ("median_ms", "p20_ms", "p80_ms"))
        error = "-" if row["max_error"] is None else f"{row['max_error']:.1e}"
        found.add_row(*start, *times, ratio, f"{row['peak_mib']:.0f}", error)
    caption = _CAPTION.format(report["peer"], report["exact"])
    found.caption = "\n".join([caption, *(escape(f"{name}: {reason}") for name, reason in failures.items())])
    return found


def make_stages(arguments: Mapping[str, Any], backend: str, precision: str, stages: Sequence[str]) -> dict[str, Call]:
    """An engine's calls by stage, such as "encode_video 16"; for `Candidate`."""
    engine = load(**arguments, backend=backend, precision=precision)
    return {stage: _call(engine, stage) for stage in stages}


def make_exact_stages(arguments: Mapping[str, Any], stages: Sequence[str]) -> dict[str, Call]:
    """The calls in float64, with at most `_EXACT_VIDEOS` videos in a batch; for `Candidate`."""
    backend, precision = EXACT
    engine = load(**arguments, backend=backend, precision=precision)
    return {stage: _call(engine, stage, most_videos=_EXACT_VIDEOS) for stage in stages}


def random_videos(preset: Preset, count: int) -> list[Video]:
    """Random videos with as many features as the preset has pre-clips; the same videos on every call."""
    rng = np.random.default_rng(0)
    shape = (preset.num_pre_clips, preset.input_size)
    return [Video(np.abs(rng.standard_normal(shape, np.float32)), DURATION_S, f"{n}") for n in range(count)]


def made_sentences(count: int) -> list[str]:
    """Random sentences of 4 to 15 common words; the same sentences on every call."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(_WORDS.split(), rng.integers(4, 16))) + "." for _ in range(count)]


def _call(engine: Engine, stage: str, most_videos: int | None = None) -> Call:
    name, _, size = stage.partition(" ")
    count = int(size)
    if name == "encode_video":
        videos = random_videos(engine.preset, count)[:most_videos]

        def encode_video() -> Arrays:
            embedded = engine.encode_video(videos)
            return embedded.contrastive, embedded.iou

        return encode_video
    sentences = made_sentences(count)
    if name == "encode_text":

        def encode_text() -> Arrays:
            embedded = engine.encode_text(sentences)
            return embedded.contrastive, embedded.iou

        return encode_text
    video, text = engine.encode_video(random_videos(engine.preset, 1)), engine.encode_text(sentences)

    def score() -> Arrays:
        """The scores alone, in order, because two moments that tie may change places."""
        (result,) = engine.score(video, text, top_k=TOP_K)
        scores = np.zeros((count, TOP_K), np.float32)
        for row, moments in zip(scores, result, strict=True):
            row[: len(moments)] = [moment.score for moment in moments]
        return (scores,)

    return score


def _choose(options: BenchOptions, device: str) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """The (backend, precision) pairs to measure, the peer first, and why other requested pairs do not run here."""
    exported = _exported_precision(options.load)
    chosen: list[tuple[str, str]] = [] if exported else [PEER]
    unavailable, runs = {}, False
    for precision in options.precisions or ([exported] if exported else ["fp32", "bf16"]):
        reasons = available_backends(device, precision)
        for backend in options.backends or reasons:
            if not (options.backends or exported) and backend == PEER[0] and precision != PEER[1]:
                continue
            if backend not in reasons:
                raise InputError(f"backend: expected one of {', '.join(reasons)}, got {backend!r}")
            reason = reasons[backend]
            if reason is None and exported:
                reason = _load_error(options.load, backend, precision)
            elif reason is None and backend_class(backend, device, precision).takes_exports:
                reason = "it runs exports only, and the reference backend 'torch' cannot run those"
            if reason is not None:
                unavailable[f"{backend} {precision}"] = reason
                continue
            runs = True
            if (backend, precision) not in chosen:
                chosen.append((backend, precision))
    if not runs:
        raise BackendUnavailable("; ".join(f"backend {pair}: {reason}" for pair, reason in unavailable.items()))
    return chosen, unavailable


def _exported_precision(arguments: Mapping[str, Any]) -> str | None:
    """The precision of an export, after a check of its files; None for another model."""
    if not is_export(Path(arguments["model"])):
        return None
    load_model(arguments["model"], arguments.get("preset"), arguments.get("tokenizer"))
    return read_manifest(arguments["model"]).precision


def _load_error(arguments: Mapping[str, Any], backend: str, precision: str) -> str | None:
    """Why a backend cannot load a model; None if it can."""
    try:
        load(**arguments, backend=backend, precision=precision)
    except (BackendUnavailable, InputError) as error:
        return str(error)
    return None
