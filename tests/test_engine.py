"""The engine on golden cases: batch independence, threads, inputs that are encoded once, and refusals."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmn_fast
from benchmarks.golden import cases
from mmn_fast.backends.base import Backend
from mmn_fast.engine import Engine
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.presets import Preset
from mmn_fast.process.once import Once
from tests.golden.grounded import batch_of
from tests.tolerances import check_close

Engines = Callable[[str], Engine]
SMALL = cases.load("charades_small")


def _same_maps(one: Any, other: Any) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one.keys())  # noqa: SIM118 - not a dict


@pytest.mark.slow
def test_results_do_not_depend_on_the_batch(golden_engine: Engines) -> None:
    for name in cases.SMALL:
        case, engine = cases.load(name), golden_engine(name)
        batch = batch_of(case)
        together = engine.score_maps(batch)
        backwards = engine.score_maps(batch[::-1])[::-1]
        for query, one, other in zip(batch, together, backwards, strict=True):
            assert _same_maps(one, other)
            assert _same_maps(one, engine.score_maps([query])[0])
            for number, sentence in enumerate(query.sentences):
                (alone,) = engine.score_maps([mmn_fast.Query(query.video, [sentence])])
                assert np.array_equal(alone.fused[0], one.fused[number])


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_threads(golden_model: Callable[[str], Path]) -> None:
    for name in ("charades_small", "tacos_small"):
        batch = batch_of(cases.load(name))
        maps = [mmn_fast.load(golden_model(name), threads=threads).score_maps(batch) for threads in (1, 2)]
        for one, two in zip(*maps, strict=True):
            for field in ("contrastive", "iou", "fused"):
                check_close(one[field], two[field], "threads", what=field)


def test_threads_leave_the_process_setting_alone(golden_model: Callable[[str], Path]) -> None:
    before = torch.get_num_threads()
    engine = mmn_fast.load(golden_model("charades_small"), threads=1)
    engine.ground(batch_of(SMALL))
    assert torch.get_num_threads() == before
    assert engine.info()["threads"] == 1


class _CountingBackend(Backend):
    """Passes all calls on and counts the encoded videos and sentences."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.preset, self.videos, self.sentences, self.threads = inner, inner.preset, 0, 0, None

    @classmethod
    def unavailable_reason(cls, device: str, precision: str) -> str | None:
        return None

    def info(self) -> dict[str, Any]:
        return {}

    def encode_video(self, pre_clips: np.ndarray) -> Any:
        self.videos += len(pre_clips)
        return self.inner.encode_video(pre_clips)

    def encode_text(self, token_ids: Any) -> Any:
        self.sentences += len(token_ids)
        return self.inner.encode_text(token_ids)

    def score(self, video: Any, text: Any) -> Any:
        return self.inner.score(video, text)

    def top_moments(self, video: Any, text: Any, moments: np.ndarray, top_k: int) -> Any:
        return self.inner.top_moments(video, text, moments, top_k)


def test_a_setting_that_the_backend_does_not_have_is_refused(golden_model: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=r"^backend_options: backend 'torch' has none, got 'speed'$"):
        mmn_fast.load(golden_model("charades_small"), backend="torch", backend_options={"speed": 1})


def test_an_engine_with_other_threads_shares_memory_and_gives_the_same_bits() -> None:
    engine = mmn_fast.load("demo", backend="native", threads=1)
    other = engine.with_threads(2)
    assert other is not None
    assert (engine.info()["threads"], other.info()["threads"]) == (1, 2)
    video = mmn_fast.Video(np.random.default_rng(0).random((40, 357), np.float32), 20.0)
    query = mmn_fast.Query(video, ["the violet star drifts to the bottom"])
    assert engine.ground([query]) == other.ground([query])
    with pytest.raises(InputError, match="^threads: "):
        engine.with_threads(0)


def _counting(engine: Engine) -> tuple[Engine, _CountingBackend]:
    backend = _CountingBackend(engine._backend)
    return Engine(engine._model, backend), backend


def test_a_repeated_video_or_sentence_is_encoded_once(golden_engine: Engines) -> None:
    engine, counts = _counting(golden_engine("charades_small"))
    video, other = SMALL.videos[0], SMALL.videos[1]
    first = mmn_fast.Video(video.features, 30.0, "a")
    batch = [
        mmn_fast.Query(first, ["one", "two"]),
        mmn_fast.Query(mmn_fast.Video(other.features, 10.0), ["one"]),
        mmn_fast.Query(first, ["two"]),
        mmn_fast.Query(mmn_fast.Video(video.features, 60.0, "other length"), ["one"]),
        mmn_fast.Query(mmn_fast.Video(video.features.copy(), 30.0, "read twice"), ["one"]),
    ]
    result = engine.ground(batch)
    assert (counts.videos, counts.sentences) == (2, 2)
    assert result[0][1] == result[2][0]
    assert result[0][0] == result[4][0]
    assert [moment.start_s * 2 for moment in result[0][0]] == [moment.start_s for moment in result[3][0]]


def test_many_videos_are_encoded_in_bounded_groups(golden_engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmn_fast.request.VIDEOS_AT_ONCE", 2)
    engine, counts = _counting(golden_engine("charades_small"))
    rng = np.random.default_rng(0)
    batch = [
        mmn_fast.Query(mmn_fast.Video(rng.standard_normal((n + 1, 20)), 10.0 + n), ["a", "b"][: n % 3])
        for n in range(7)
    ]
    together = engine.ground(batch)
    assert counts.videos == 4  # only videos with sentences are encoded
    assert [len(sentences) for sentences in together] == [0, 1, 2, 0, 1, 2, 0]
    assert together == [engine.ground([query])[0] for query in batch]


@pytest.mark.parametrize("sentences", [[""], ["   ", "\n"], ["word " * 500]], ids=["empty", "blank", "long"])
@pytest.mark.filterwarnings("ignore:a sentence of")
def test_odd_sentences_are_grounded(sentences: list[str], golden_engine: Engines) -> None:
    (result,) = golden_engine("charades_small").ground([mmn_fast.Query(batch_of(SMALL)[0].video, sentences)])
    assert [len(moments) for moments in result] == [5] * len(sentences)


def test_a_long_sentence_is_cut_with_a_warning(golden_engine: Engines) -> None:
    with pytest.warns(UserWarning, match="502 word pieces was cut to the encoder's 64"):
        golden_engine("charades_small").encode_text(["word " * 500])


def test_empty_batches_give_empty_results(golden_engine: Engines) -> None:
    engine = golden_engine("charades_small")
    video = batch_of(SMALL)[0].video
    assert engine.ground([]) == []
    assert engine.ground([mmn_fast.Query(video, [])]) == [[]]
    (maps,) = engine.score_maps([mmn_fast.Query(video, [])])
    assert maps.fused.shape == maps.iou.shape == maps.contrastive.shape == (0, 136)
    assert engine.encode_video([]).contrastive.shape == (0, 136, 24)
    assert engine.encode_text([]).iou.shape == (0, 24)
    assert engine.score(engine.encode_video([]), engine.encode_text(["a"])) == []
    assert engine.score(engine.encode_video([video]), engine.encode_text([])) == [[]]


@pytest.mark.parametrize("convert", [torch.from_numpy, np.asfortranarray, lambda a: a.astype(np.float64)])
def test_features_of_any_kind_give_the_same_moments(convert: Callable, golden_engine: Engines) -> None:
    engine, video = golden_engine("charades_small"), SMALL.videos[0]
    results = [
        engine.ground([mmn_fast.Query(mmn_fast.Video(features, video.duration_s), video.sentences)])
        for features in (video.features, convert(video.features))
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize("rows", [1, 2, 31, 33, 1000])
def test_any_number_of_rows_is_grounded(rows: int, golden_engine: Engines) -> None:
    features = np.random.default_rng(rows).standard_normal((rows, 20)).astype(np.float32)
    ((moments,),) = golden_engine("charades_small").ground([mmn_fast.Query(mmn_fast.Video(features, 9.0), ["a"])])
    assert 1 <= len(moments) <= 5
    assert all(0 <= moment.start_s < moment.end_s <= 9.0 for moment in moments)


def test_top_k_is_a_prefix_and_may_exceed_what_is_left(golden_engine: Engines) -> None:
    engine, batch = golden_engine("charades_small"), batch_of(SMALL)
    everything = engine.ground(batch, top_k=1000)[0][0]
    assert 20 <= len(everything) < 136
    assert engine.ground(batch, top_k=1)[0][0] == everything[:1]
    assert [moment.score for moment in everything] == sorted((m.score for m in everything), reverse=True)


@pytest.mark.slow
def test_engine_is_safe_to_call_from_several_threads(golden_engine: Engines) -> None:
    engine, batch = golden_engine("charades_small"), batch_of(SMALL)
    expected, results = engine.ground(batch), []

    def run() -> None:
        results.extend(engine.ground(batch) for _ in range(5))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 20


VIDEO = mmn_fast.Video(SMALL.videos[0].features, 30.0)


def _bad_features(row: int, value: float) -> np.ndarray:
    features = np.ones((40, 20), np.float32)
    features[row, 3] = value
    return features


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (mmn_fast.Query(VIDEO, ["a"]), "batch: expected a list of Query, got one Query"),
        ([("video", ["a"])], r"batch\[0\]: expected mmn_fast.Query, got tuple"),
        ([mmn_fast.Query(VIDEO.features, ["a"])], r"batch\[0\].video: expected mmn_fast.Video, got ndarray"),
        ([mmn_fast.Query(VIDEO, "a door opens")], r"batch\[0\].sentences: expected a list of str, got one str"),
        ([mmn_fast.Query(VIDEO, ["a", None])], r"batch\[0\].sentences\[1\]: expected str, got NoneType"),
        ([mmn_fast.Query(VIDEO, ["a"]), 3], r"batch\[1\]: expected mmn_fast.Query, got int"),
        ([mmn_fast.Query(mmn_fast.Video(np.ones((4, 21)), 3), ["a"])], r"batch\[0\].video.features: expected .*21"),
        ([mmn_fast.Query(mmn_fast.Video(np.ones((0, 20)), 3), ["a"])], r"batch\[0\].video.features: "),
        ([mmn_fast.Query(mmn_fast.Video(np.ones(20), 3), ["a"])], r"batch\[0\].video.features: "),
        ([mmn_fast.Query(mmn_fast.Video(_bad_features(7, np.nan), 3), ["a"])], r"features: .*row 7"),
        ([mmn_fast.Query(mmn_fast.Video(_bad_features(9, np.inf), 3), ["a"])], r"features: .*row 9"),
        ([mmn_fast.Query(mmn_fast.Video(VIDEO.features, 0), ["a"])], r"batch\[0\].video.duration_s: .*got 0"),
        ([mmn_fast.Query(mmn_fast.Video(VIDEO.features, -3.0), ["a"])], r"duration_s: .*got -3"),
        ([mmn_fast.Query(mmn_fast.Video(VIDEO.features, float("nan")), ["a"])], r"duration_s: .*got nan"),
        ([mmn_fast.Query(mmn_fast.Video(VIDEO.features, float("inf")), [])], r"duration_s: .*got inf"),
        ([mmn_fast.Query(mmn_fast.Video(VIDEO.features, "30"), ["a"])], r"duration_s: .*got '30'"),
    ],
)
def test_bad_batches_are_refused_in_one_sentence(batch: Any, message: str, golden_engine: Engines) -> None:
    engine, counts = _counting(golden_engine("charades_small"))
    with pytest.raises(InputError, match=message) as refusal:
        engine.ground(batch)
    assert "\n" not in str(refusal.value)
    assert counts.videos == 0, "work was done before the input was checked"


@pytest.mark.parametrize("top_k", [0, -1, 2.5, True, "5"])
def test_bad_top_k_is_refused(top_k: Any, golden_engine: Engines) -> None:
    with pytest.raises(InputError, match="top_k: expected an integer >= 1, got"):
        golden_engine("charades_small").ground([], top_k=top_k)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "tpu"}, InputError, "device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"device": "cpu:1"}, InputError, "device: expected auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:x"}, InputError, "device: expected auto, cpu, cuda or cuda:N"),
        ({"precision": "int4"}, InputError, "precision: expected auto or one of fp64, .*got 'int4'"),
        ({"precision": "fp8"}, BackendUnavailable, "backend 'torch': precision 'fp8' is not one of its precisions"),
        ({"precision": "int8"}, BackendUnavailable, "backend 'onnx': it runs exports only; mmn-fast export makes them"),
        ({"backend": "jax"}, InputError, "backend: expected one of auto, native, torch, .*got 'jax'"),
        ({"threads": 0}, InputError, "threads: expected a whole number from 1 to 4096, got 0"),
        ({"threads": True}, InputError, "threads: expected a whole number"),
        ({"threads": "2.5"}, InputError, "threads: expected a whole number"),
    ],
)
def test_bad_options_are_refused(
    options: dict, error: type[Exception], message: str, golden_model: Callable[[str], Path]
) -> None:
    with pytest.raises(error, match=message):
        mmn_fast.load(golden_model("charades_small"), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_cuda_without_a_device_is_refused(device: str, golden_model: Callable[[str], Path]) -> None:
    with pytest.raises(BackendUnavailable, match=f"device '{device}': PyTorch .* sees no CUDA device"):
        mmn_fast.load(golden_model("charades_small"), device=device)


def test_bad_thread_variable_is_refused(golden_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMN_FAST_NUM_THREADS", "many")
    with pytest.raises(InputError, match="MMN_FAST_NUM_THREADS: expected a whole number from 1 to 4096, got 'many'"):
        mmn_fast.load(golden_model("charades_small"))
    monkeypatch.setenv("MMN_FAST_NUM_THREADS", "1")
    assert mmn_fast.load(golden_model("charades_small")).info()["threads"] == 1


def test_info_says_what_was_chosen(golden_engine: Engines, golden_model: Callable[[str], Path]) -> None:
    info = golden_engine("charades_small").info()
    assert info["model"] == str(golden_model("charades_small"))
    assert (info["backend"], info["precision"]) == ("torch", "fp32")
    assert info["preset"] == "charades_small"
    assert info["cpu_isa"] in ("generic", "avx2", "avx512", "avx512_bf16", "amx")


def test_official_checkpoint_loads_directly(golden_files: Callable[[str], Path], golden_engine: Engines) -> None:
    root = golden_files("charades_small")
    engine = mmn_fast.load(root / "model.pth", preset=SMALL.preset, tokenizer=root / "vocab.txt", backend="torch")
    assert engine.ground(batch_of(SMALL)) == golden_engine("charades_small").ground(batch_of(SMALL))
    assert isinstance(engine.preset, Preset)


def test_module_level_ground_keeps_one_engine_per_model(
    golden_model: Callable[[str], Path], golden_engine: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Any] = []
    load = mmn_fast.engine.load  # type: ignore[attr-defined]
    monkeypatch.setattr("mmn_fast.engine.load", lambda *a, **k: loads.append(a) or load(*a, **k))
    monkeypatch.setattr("mmn_fast.kept_engines._engines", Once())
    expected = golden_engine("charades_small").ground(batch_of(SMALL))
    assert mmn_fast.ground(batch_of(SMALL), model=golden_model("charades_small"), backend="torch") == expected
    monkeypatch.setenv("MMN_FAST_MODEL", str(golden_model("charades_small")))
    assert mmn_fast.ground(batch_of(SMALL), backend="torch") == expected
    assert len(loads) == 1
    mmn_fast.ground(batch_of(SMALL), threads=1)
    assert len(loads) == 2


def test_module_level_ground_without_a_model_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r'pass model=, set MMN_FAST_MODEL, .*mmn_fast.load\("demo"\)'):
        mmn_fast.ground([])


def test_score_maps_are_a_mapping(golden_engine: Engines, tmp_path: Path) -> None:
    (maps, *_) = golden_engine("charades_small").score_maps(batch_of(SMALL))
    np.savez(tmp_path / "maps.npz", **maps)
    with np.load(tmp_path / "maps.npz") as stored:
        assert sorted(stored.files) == ["cells", "contrastive", "fused", "iou"]
        assert np.array_equal(stored["fused"], maps.fused)
    with pytest.raises(KeyError):
        maps["absent"]
