"""The GPU engine on the twins of its kernels, and on a device if there is one."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import mmn_fast
from benchmarks.golden import cases
from mmn_fast import buckets
from mmn_fast.backends import native_gpu
from mmn_fast.backends.native_gpu import NativeGpuBackend
from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.geometry import cells_to_moments, plan_for
from mmn_fast.kernels import reference
from mmn_fast.kernels.cpu import ops
from mmn_fast.postprocess import fuse_scores
from mmn_fast.process.torch_threads import strict_settings
from mmn_fast.request import Request
from mmn_fast.runtime.graph_cache import Captured
from mmn_fast.runtime.graph_runner import Input
from tests.golden.grounded import batch_of
from tests.gpu_engines import Models, gpu_engine
from tests.tolerances import check_close

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    reason = NativeGpuBackend.unavailable_reason("cuda", "auto") if request.param == "cuda" else None
    if reason:
        pytest.skip(reason)
    return str(request.param)


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.SMALL)
def test_golden_cases_in_fp32_and_ground_chooses_the_best_of_the_maps(
    name: str, golden_model: Models, device: str
) -> None:
    case, engine = cases.load(name), gpu_engine(golden_model(name), device)
    batch = batch_of(case)
    every_map = engine.score_maps(batch)
    for maps, expected in zip(every_map, cases.truths(name), strict=True):
        check_close(maps.fused, expected, "gpu_backend", "fp32", name)
    for query, maps, sentences in zip(batch, every_map, engine.ground(batch, top_k=7), strict=True):
        seconds = cells_to_moments(maps.cells, query.video.duration_s, case.preset.num_clips)
        for fused, moments in zip(maps.fused, sentences, strict=True):
            chosen = ops.temporal_nms(fused[None], seconds, case.preset.nms_iou, 7)[0]
            chosen = chosen[chosen >= 0]
            assert [[m.start_s, m.end_s] for m in moments] == seconds[chosen].tolist()
            check_close([m.score for m in moments], fused[chosen], "gpu_fused")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"), [("charades_small", "fp16"), ("charades_small", "bf16"), ("tacos_small", "fp16")]
)
def test_half_precisions_are_at_most_twice_as_far_off_as_rounded_operands(
    name: str, precision: str, golden_model: Models, device: str
) -> None:
    batch = batch_of(cases.load(name))
    engines = {
        "rounded operands": mmn_fast.load(golden_model(name), backend="torch", device="cpu", precision=precision),
        "ours": gpu_engine(golden_model(name), device, precision),
    }
    errors = {
        who: max(
            np.abs(maps.fused - exact).max()
            for maps, exact in zip(engine.score_maps(batch), cases.truths(name), strict=True)
        )
        for who, engine in engines.items()
    }
    assert errors["ours"] <= 2 * errors["rounded operands"], errors


@pytest.mark.slow
def test_values_beyond_fp16_are_an_error_and_not_missing_moments(golden_model: Models, device: str) -> None:
    batch = batch_of(cases.load("tacos_conv_small"))  # its learned map reaches values above 65,504
    engine = gpu_engine(golden_model("tacos_conv_small"), device, "fp16")
    message = "^precision: expected one that holds this model's values, got 'fp16': .* not finite"
    for call in (engine.ground, engine.score_maps):
        with pytest.raises(InputError, match=message):
            call(batch)
    assert all(moments for query in gpu_engine(golden_model("tacos_conv_small"), device, "bf16").ground(batch)
               for moments in query)  # fmt: skip


def test_a_result_in_fp32_has_the_same_bits_in_any_batch(golden_model: Models, device: str) -> None:
    engine = gpu_engine(golden_model("charades_small"), device)
    videos = [mmn_fast.Video(np.random.default_rng(n).standard_normal((9 + n, engine.preset.input_size)), 30.0 + n)
              for n in range(3)]  # fmt: skip
    sentences = ["a", "a b c d e f g h i j k l m n o p q r s t", "b"]
    batch = [mmn_fast.Query(video, sentences[: n + 1]) for n, video in enumerate(videos)]
    together = engine.ground(batch)
    assert [engine.ground([query])[0] for query in batch] == together
    assert engine.ground([mmn_fast.Query(videos[2], ["b"])])[0][0] == together[2][2]
    alone = engine.encode_video(videos[1:2])
    assert np.array_equal(alone.iou[0], engine.encode_video(videos).iou[1])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_request_beyond_the_largest_sizes_is_split(
    precision: str, golden_model: Models, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases.load("charades_small")
    rng = np.random.default_rng(0)
    videos = [mmn_fast.Video(rng.standard_normal((5, case.preset.input_size)), 10.0 + n) for n in range(5)]
    batch = [mmn_fast.Query(v, [f"{'word ' * (7 * n)}end", "same", f"{n}"]) for n, v in enumerate(videos)]
    whole = gpu_engine(golden_model("charades_small"), device, precision)
    expected = whole.ground(batch, top_k=3)
    for module in (native_gpu, buckets):
        monkeypatch.setattr(module, "VIDEO_BUCKETS", (1, 2))
        monkeypatch.setattr(module, "QUERY_BUCKETS", (1, 4))
    small = gpu_engine(golden_model("charades_small"), device, precision)
    assert (small._backend._video_buckets[-1], small._backend._sentence_buckets[-1]) in ((1, 1), (2, 4))  # type: ignore
    for ours, theirs in zip(small.ground(batch, top_k=3), expected, strict=True):
        for moments, others in zip(ours, theirs, strict=True):
            check_close([m.score for m in moments], [m.score for m in others], "gpu_backend", precision)


@pytest.mark.slow
@pytest.mark.parametrize("S", [0, 1, 7, 130])
@pytest.mark.parametrize("graphs", [False, True])
def test_moments_from_embeddings_are_chosen_on_the_device_as_the_reference_chooses_them(
    S: int, graphs: bool, golden_model: Models, device: str, capture: Callable[[Engine], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    engine = gpu_engine(golden_model("charades_small"), device, "fp16", graphs=graphs)
    backend, preset, plan = engine._backend, engine.preset, plan_for(engine.preset)
    assert isinstance(backend, NativeGpuBackend)
    if graphs and device == "cpu":
        capture(engine)
    rng = np.random.default_rng(S)

    def unit(rows: int) -> np.ndarray:
        array = rng.standard_normal((rows, preset.joint_size)).astype(np.float32)
        return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)

    places = rng.integers(0, 9, plan.num_proposals)  # few distinct scores, so there are many ties
    video, text = (unit(9)[places], unit(9)[places]), (unit(S), unit(S))
    moments = cells_to_moments(plan.cells, 31.7, preset.num_clips)
    fused = fuse_scores(*backend.score(video, text), preset)
    with monkeypatch.context() as alone:
        alone.setattr(ops, "temporal_nms", None)  # the host must not choose moments
        for top_k in (5, 300):
            chosen, scores = backend.top_moments(video, text, moments, top_k)
            assert (chosen.dtype, scores.dtype) == (np.int32, np.float32)
            expected = reference.temporal_nms(
                torch.from_numpy(fused), torch.from_numpy(moments), preset.nms_iou, top_k
            ).numpy()
            np.testing.assert_array_equal(chosen, expected)
            kept = chosen >= 0
            check_close(scores[kept], np.take_along_axis(fused, np.maximum(chosen, 0), 1)[kept], "gpu_fused")
            assert not scores[~kept].any()


@pytest.mark.slow
@pytest.mark.parametrize("graphs", [False, True])
def test_embeddings_that_cannot_change_are_copied_to_the_device_once(
    graphs: bool, golden_model: Models, device: str, capture: Callable[[Engine], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = golden_model("charades_small")
    engine, plain = (gpu_engine(model, device, "fp16", graphs=graphs, **o) for o in ({}, {"max_video_mib": 0}))
    if graphs and device == "cpu":
        capture(engine)
    uploaded: list[tuple[int, ...]] = []
    upload = engine._backend._copies._upload  # type: ignore[attr-defined]
    monkeypatch.setattr(
        engine._backend._copies,  # type: ignore[attr-defined]
        "_upload",
        lambda array: (uploaded.append(array.shape), upload(array))[1],
    )
    rng = np.random.default_rng(0)
    videos = [mmn_fast.Video(rng.random((9, engine.preset.input_size), np.float32), 20.0 + n) for n in range(2)]
    video, text = engine.encode_video(videos), engine.encode_text(["a", "a b"])
    expected = plain.score(video, text)
    for _ in range(3):
        assert engine.score(video, text) == expected
    P, J = video.iou.shape[1:]
    assert uploaded == [(P, J)] * 4
    facts = engine.info()
    assert (facts["video_copies"], plain.info()["video_copies"]) == (4, 0)
    # A writable array is read anew: it may have changed, or its address may hold another array now.
    writable = dataclasses.replace(video, contrastive=video.contrastive.copy(), iou=video.iou.copy())
    engine.score(writable, text)
    writable.iou[:] = writable.iou[::-1].copy()
    writable.contrastive[:] = writable.contrastive[::-1].copy()
    swapped = engine.score(writable, text)
    assert [[m.score for m in row] for row in swapped[0]] == [[m.score for m in row] for row in expected[1]]
    assert len(uploaded) == 4
    with pytest.raises(ValueError, match="read-only"):
        video.iou[0] = 0


def test_repeats_are_encoded_once_and_videos_without_sentences_not_at_all(
    golden_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = gpu_engine(golden_model("charades_small"), "cpu")
    features = np.random.default_rng(0).standard_normal((12, engine.preset.input_size)).astype(np.float32)
    seen: list[Request] = []
    ground = engine._backend.ground

    def spy(request: Request, top_k: int) -> Any:
        seen.append(request)
        return ground(request, top_k)

    monkeypatch.setattr(engine._backend, "ground", spy)
    first, copy = mmn_fast.Video(features, 30.0), mmn_fast.Video(features.copy(), 60.0)
    silent = mmn_fast.Query(mmn_fast.Video(features * 2 + 1, 5.0), [])
    result = engine.ground([mmn_fast.Query(first, ["a", "a"]), silent, mmn_fast.Query(copy, ["a"])])
    assert [len(sentences) for sentences in result] == [2, 0, 1]
    assert result[0][0] == result[0][1]
    assert [m.end_s for m in result[2][0]] == pytest.approx([2 * m.end_s for m in result[0][0]], rel=1e-6)
    assert [(len(request.videos), len(request.token_ids)) for request in seen] == [(1, 1)]
    assert seen[0].pairs.videos.tolist() == [0, 0, 0]
    assert engine.ground([]) == []
    assert engine.ground([silent]) == [[]]
    empty = (0, plan_for(engine.preset).num_proposals, engine.preset.joint_size)
    assert engine.encode_video([]).contrastive.shape == empty
    assert engine.encode_text([]).iou.shape == (0, engine.preset.joint_size)


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Callable[[Engine], list[Any]]:
    """Make a function that turns an engine's graphs on, with a simulated capture; it returns the list of captures."""

    def turn_on(engine: Engine) -> list[Any]:
        captured: list[Any] = []

        def record(program: Any, inputs: Any, arguments: Any) -> Captured:
            static = [given.static(torch.device("cpu")) for given in inputs]
            captured.append((program.__name__, [tuple(tensor.shape) for tensor in static], arguments))

            def run(*given: Input) -> Any:
                for place, one in zip(static, given, strict=True):
                    one.copy_to(place)
                return program(*static, *arguments)

            return Captured(run, 2**20)

        assert isinstance(engine._backend, NativeGpuBackend)
        monkeypatch.setattr(engine._backend._runner, "_capture", record)
        monkeypatch.setattr(engine._backend._runner, "graphs_on", True)
        return captured

    return turn_on


@pytest.mark.slow
def test_every_program_of_static_sizes_is_captured_once_and_gives_the_same_bits(
    golden_model: Models, capture: Callable[[Engine], list[Any]]
) -> None:
    case = cases.load("charades_small")
    plain = gpu_engine(golden_model("charades_small"), "cpu", "fp16")
    engine = gpu_engine(golden_model("charades_small"), "cpu", "fp16", max_graph_mib=10)
    captured = capture(engine)
    batch = batch_of(case)
    engine.warmup(videos=(1,), sentences=(1,), tokens=(9, 16), rows=(3, 64), top_k=4)
    assert [name for name, _, _ in captured] == ["_ground_program"]
    for _ in range(2):
        assert engine.ground(batch, top_k=4) == plain.ground(batch, top_k=4)
        query = mmn_fast.Query(batch[0].video, batch[0].sentences[:1])
        assert engine.ground([query], top_k=4) == plain.ground([query], top_k=4)
    names = [name for name, _, _ in captured]
    assert len(names) == len({repr(item) for item in captured})
    assert engine.info()["graphs"] == len(names)
    assert engine.info()["graph_mib"] == len(names)


def test_a_graph_sees_nothing_of_the_longer_video_before(
    golden_model: Models, capture: Callable[[Engine], list[Any]]
) -> None:
    plain, engine = (gpu_engine(golden_model("charades_small"), "cpu", "fp16") for _ in range(2))
    captured, width = capture(engine), engine.preset.input_size
    rng = np.random.default_rng(0)
    for rows in (60, 3, 17):
        query = mmn_fast.Query(mmn_fast.Video(rng.standard_normal((rows, width)), 9.0), ["a"])
        assert engine.ground([query]) == plain.ground([query])
    assert [shapes[0] for _, shapes, _ in captured] == [(64, width)]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_all_of_a_split_request_runs_in_graphs_and_gives_the_same_bits(
    precision: str, golden_model: Models, capture: Callable[[Engine], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (native_gpu, buckets):
        monkeypatch.setattr(module, "VIDEO_BUCKETS", (1, 2))
        monkeypatch.setattr(module, "QUERY_BUCKETS", (1, 4))
    plain, engine = (gpu_engine(golden_model("charades_small"), "cpu", precision) for _ in range(2))
    captured = capture(engine)
    rng = np.random.default_rng(0)
    videos = [mmn_fast.Video(rng.standard_normal((5 + n, engine.preset.input_size)), 10.0 + n) for n in range(5)]
    batch = [mmn_fast.Query(video, [f"{n} {m}" for m in range(n + 1)] + ["same"]) for n, video in enumerate(videos)]
    assert engine.ground(batch, top_k=3) == plain.ground(batch, top_k=3)
    assert {name for name, _, _ in captured} == {"_features_program", "_text_program", "_score_program"}
    names = [repr(one) for one in captured]
    assert len(names) == len(set(names))


def test_the_reference_takes_no_tf32_for_float32(
    golden_engine: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, cudnn = golden_engine("charades_small"), torch.backends.cudnn
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    net, seen = engine._backend.net, []  # type: ignore[attr-defined]
    encode = net.encode_video
    monkeypatch.setattr(net, "encode_video", lambda x: (seen.append(cudnn.allow_tf32), encode(x))[1])
    engine.encode_video([batch_of(cases.load("charades_small"))[0].video])
    assert (seen, cudnn.allow_tf32) == ([False], True)


def test_settings_are_back_when_the_last_of_several_calls_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn = torch.backends.cudnn
    for name, value in (("allow_tf32", True), ("benchmark", True), ("deterministic", False)):
        monkeypatch.setattr(cudnn, name, value)

    def settings() -> tuple[bool, bool, bool, str]:
        return cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, torch.get_float32_matmul_precision()

    before = settings()
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    for call in (first, second):
        call.enter_context(strict_settings)
    first.close()  # the first call ends while the second still runs, so settings are not restored yet
    assert settings() == (False, False, True, "highest")
    second.close()
    assert settings() == before
