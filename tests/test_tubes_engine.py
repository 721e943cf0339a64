"""Engines on tubes: the official answers in every backend, embeddings, suppression, odd tubes, and refusals."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmn_fast
from benchmarks.golden import cases
from mmn_fast.embeddings import TubeEmbeddings
from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.export.to_tensorrt import build_plans
from mmn_fast.features import pre_clips, tube_pre_clips
from mmn_fast.presets import PRESETS
from mmn_fast.tubes import Tube, TubeMoment, TubeQuery, tube_iou
from tests.cuda_runtime_double import CudaRuntime
from tests.gpu_engines import gpu_engine
from tests.tolerances import check_close

Models = Callable[[str], Path]
Engines = Callable[[str], Engine]
SMALL = cases.load("hcstvg_small")
QUERIES = SMALL.tube_queries
TUBE = QUERIES[0].tubes[0]
ROWS = len(TUBE.frames)


@pytest.fixture
def engine(golden_engine: Engines) -> Engine:
    return golden_engine("hcstvg_small")


def check_answers(engine: Engine, op: str = "golden_maps") -> None:
    """Check that maps are near the official ones, and that tube, rows and boxes are equal.

    `test_golden.py` has more backends and sizes.
    """
    maps: list[Any] = []
    score: Any = engine._backend.score

    def recorded(*branches: Any) -> Any:
        maps.append(score(*branches))
        return maps[-1]

    engine._backend.score = recorded  # type: ignore[method-assign]
    try:
        found = engine.ground_tubes(QUERIES)
    finally:
        del engine._backend.score  # type: ignore[method-assign]
    for query, result in zip(QUERIES, found, strict=True):
        truth = {part: SMALL.arrays[f"{query.video_id}.{part}"] for part in ("contrastive", "iou", "tube", "boxes")}
        for number in range(len(query.tubes)):
            contrastive, iou = maps.pop(0)
            what = f"{query.video_id} tube {number}"
            check_close(contrastive[0], truth["contrastive"][number], op, what=what)
            check_close(iou[0], truth["iou"][number], f"{op}_iou", what=what)
        ((moment,),) = result
        assert [moment.tube, moment.start_row, moment.end_row] == truth["tube"].tolist()
        frames = truth["boxes"][:, 0]
        assert (moment.start_frame, moment.end_frame) == (frames[0], frames[-1])
        np.testing.assert_array_equal(moment.boxes, truth["boxes"][:, 1:])
        check_close(moment.score, (truth["contrastive"] * truth["iou"]).max(), op)
    assert not maps


def test_native_gives_the_official_answers(golden_model: Models) -> None:
    check_answers(mmn_fast.load(golden_model("hcstvg_small"), backend="native"))


@pytest.mark.slow
def test_torch_in_fp32_gives_the_official_answers(engine: Engine) -> None:
    check_answers(engine, "torch_maps")


@pytest.mark.slow
def test_the_twins_of_the_cuda_path_give_the_official_answers(golden_model: Models) -> None:
    check_answers(gpu_engine(golden_model("hcstvg_small"), "cpu"))


def test_onnx_gives_the_official_answers(exports: Callable[..., Path]) -> None:
    check_answers(mmn_fast.load(exports("hcstvg_small"), backend="onnx", device="cpu"), "torch_maps")


@pytest.mark.long
def test_plans_of_tensorrt_give_the_official_answers(
    exports: Callable[..., Path], cuda: CudaRuntime, tmp_path: Path
) -> None:
    """On doubles of TensorRT and CUDA."""
    directory = Path(shutil.copytree(exports("hcstvg_small"), tmp_path / "plans"))
    build_plans(directory)
    check_answers(mmn_fast.load(directory, backend="tensorrt"), "torch_maps")
    assert cuda.launches > 0


def same(one: TubeMoment, other: TubeMoment) -> bool:
    return one.to_dict() == other.to_dict()


@pytest.mark.slow
def test_answers_do_not_depend_on_the_batch_and_equal_those_from_embeddings(
    golden_model: Models, tmp_path: Path
) -> None:
    native = mmn_fast.load(golden_model("hcstvg_small"), backend="native")
    sentences = ["A man turns.", *QUERIES[0].sentences]
    batch = [TubeQuery(query.tubes, sentences, "same name") for query in QUERIES]
    together = native.ground_tubes([*batch, batch[1]], top_k=3)
    text = native.encode_text(sentences)
    for number, query in enumerate(batch):
        alone = native.ground_tubes([query], top_k=3)[0]
        path = tmp_path / f"{number}.safetensors"
        native.encode_tubes(query.tubes, "video").save(path)
        embeddings = TubeEmbeddings.load(path)
        assert embeddings.video_ids == ("video",) * len(query.tubes)
        scored = native.score_tubes(embeddings, text, top_k=3)
        for of_sentence in zip(together[number], alone, scored, strict=True):
            for moments in zip(*of_sentence, strict=True):
                assert same(moments[0], moments[1])
                assert same(moments[0], moments[2])
    assert all(same(*pair) for pair in zip(together[1][0], together[3][0], strict=True))
    halves = embeddings[:2] + embeddings[2:]
    assert all(same(a[0], b[0]) for a, b in zip(native.score_tubes(halves, text), scored, strict=True))


def test_suppression_leaves_moments_that_overlap_little(engine: Engine) -> None:
    query = TubeQuery([*QUERIES[2].tubes, QUERIES[2].tubes[4]], QUERIES[2].sentences)  # the best tube comes twice
    ((first,),), ((*several,),) = (engine.ground_tubes([query], top_k=k)[0] for k in (1, 400))
    assert same(first, several[0])
    assert first.tube == 4  # the first of two equal tubes
    scores = [moment.score for moment in several]
    assert scores == sorted(scores, reverse=True)
    assert 1 < len(several) < 400
    tracks = [(np.arange(moment.start_frame, moment.end_frame + 1), moment.boxes) for moment in several[:12]]
    for number, track in enumerate(tracks):
        assert all(tube_iou(*track, *better)[0] <= engine.preset.nms_iou for better in tracks[:number])


def test_pre_clips_of_streams() -> None:
    """Each stream is normalised and averaged separately, so one array of both streams gives the same pre-clips."""
    preset = SMALL.preset
    both = np.concatenate(TUBE.features, axis=1)
    made = tube_pre_clips(TUBE, preset)
    np.testing.assert_array_equal(made, pre_clips(both, preset))
    given = dataclasses.replace(TUBE, features=None, pre_clips=2 * made)
    np.testing.assert_array_equal(tube_pre_clips(given, preset), 2 * made)
    shorter = dataclasses.replace(TUBE, features=[TUBE.features[0], TUBE.features[1][:3]])
    np.testing.assert_array_equal(tube_pre_clips(shorter, preset)[:, :1024], made[:, :1024])
    assert np.isfinite(tube_pre_clips(shorter, preset)).all()


def short(rows: int, made: np.ndarray) -> Tube:
    return Tube(np.arange(7, 7 + rows), TUBE.boxes[:rows], pre_clips=made)


@pytest.mark.slow
def test_odd_tubes_have_answers(golden_model: Models) -> None:
    native = mmn_fast.load(golden_model("hcstvg_small"), backend="native")
    made = tube_pre_clips(TUBE, SMALL.preset)
    empty, silent, one, few, many = native.ground_tubes(
        [
            TubeQuery([], ["a", "b"]),
            TubeQuery([TUBE], []),
            TubeQuery([short(1, made)], ["a"]),
            TubeQuery([short(rows, made) for rows in (2, 9, 15)], ["a"]),
            TubeQuery([short(1 + number % ROWS, made) for number in range(200)], ["a"]),
        ],
        top_k=3,
    )
    assert (empty, silent) == ([[], []], [])
    ((only,),) = one
    assert (only.start_row, only.end_row, only.start_frame, only.end_frame) == (0, 1, 7, 7)
    np.testing.assert_array_equal(only.boxes, TUBE.boxes[:1])
    for moment in [*few[0], *many[0]]:
        assert moment.start_row < moment.end_row
        assert len(moment.boxes) == moment.end_row - moment.start_row
        assert moment.end_frame - moment.start_frame + 1 == len(moment.boxes)
    assert native.ground_tubes([]) == []
    nothing = native.encode_tubes([])
    assert native.score_tubes(nothing, native.encode_text(["a", "b"])) == [[], []]
    assert native.score_tubes(native.encode_tubes([TUBE]), native.encode_text([])) == []


def tube(**changes: Any) -> list[TubeQuery]:
    """Make a query of video "abc" whose second tube is the first one with changed values."""
    return [TubeQuery([TUBE, dataclasses.replace(TUBE, **changes)], ["a"], "abc")]


NAN = np.where(np.arange(1024) == 3, np.nan, np.ones((5, 1024), np.float32))
WHERE = r"^batch\[0\].tubes\[1\] \(video 'abc'\): "


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (TubeQuery([], []), "^batch: expected a list of TubeQuery, got one TubeQuery; put it in a list"),
        ([mmn_fast.Query(None, ["a"])], r"^batch\[0\]: expected mmn_fast.TubeQuery, got Query; Engine.ground takes it"),  # type: ignore[arg-type]
        ([TubeQuery(TUBE, ["a"])], r"^batch\[0\].tubes: expected a list of Tube, got Tube"),  # type: ignore[arg-type]
        ([TubeQuery([TUBE, 3], ["a"], "abc")], WHERE + "expected mmn_fast.Tube, got int"),  # type: ignore[list-item]
        ([TubeQuery([TUBE], "a")], r"^batch\[0\].sentences: expected a list of str, got one str"),
        (tube(frames=np.arange(ROWS) * 2), WHERE + "frames: expected consecutive frame numbers, got 0 in row 0 and 2"),
        (tube(boxes=TUBE.boxes[:, [2, 1, 0, 3]]), WHERE + "boxes: expected x1, y1, x2, y2 with x1 <= x2"),
        (tube(boxes=TUBE.boxes[:-1]), WHERE + rf"boxes: expected float \[{ROWS}, 4\], a box per frame"),
        (tube(boxes=np.full((ROWS, 4), np.nan)), WHERE + "boxes: expected finite numbers"),
        (tube(features=None), WHERE + "expected features or pre_clips, got neither"),
        (tube(pre_clips=np.zeros((32, 2048), np.float32)), WHERE + "expected features or pre_clips, got both"),
        (tube(features=TUBE.features[:1]), WHERE + "features: expected 2 streams, 1024 and 1024 wide .*, got 1"),
        (
            tube(features=np.concatenate(TUBE.features, axis=1)),
            WHERE + r"features: expected a list of 2 float arrays \[n_src, D\], one per stream .*, got float32",
        ),
        (tube(features=3), WHERE + "features: expected a list of 2 float arrays .*, got int"),
        (
            tube(features=[TUBE.features[0], np.ones((5, 512), np.float32)]),
            WHERE + r"features\[1\]: expected a float array \[n_src, 1024\] for preset 'hcstvg_small', got .*5, 512",
        ),
        (tube(features=[TUBE.features[0], NAN]), WHERE + r"features\[1\]: expected finite float32 values, got nan"),
        (
            tube(features=None, pre_clips=np.zeros((16, 2048), np.float32)),
            WHERE + r"pre_clips: expected a float array \[32, 2048\] for preset .*, got float32 \[16, 2048\]",
        ),
        (
            tube(features=None, pre_clips=[]),
            WHERE + r"pre_clips: expected a float array \[32, 2048\] .*, got float64 \[0\]",
        ),
        (
            tube(features=None, pre_clips=np.full((32, 2048), np.inf, np.float32)),
            WHERE + "pre_clips: expected finite float32 values, got inf",
        ),
    ],
)
def test_tubes_that_cannot_be_used_are_refused(batch: Any, message: str, engine: Engine) -> None:
    with pytest.raises(InputError, match=message):
        engine.ground_tubes(batch)


def test_the_wrong_kind_of_model_or_query_is_refused(engine: Engine) -> None:
    videos = mmn_fast.load("demo")
    message = r": expected a model of tubes \(score_fusion 'product'\), got preset 'shapes'"
    with pytest.raises(InputError, match="^ground_tubes" + message):
        videos.ground_tubes(QUERIES)
    with pytest.raises(InputError, match="^encode_tubes" + message):
        videos.encode_tubes([TUBE])
    with pytest.raises(InputError, match=r"^batch\[0\]: expected mmn_fast.Query, got TubeQuery; Engine.ground_tubes"):
        engine.ground(QUERIES)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="^tubes: expected TubeEmbeddings, got TextEmbeddings"):
        engine.score_tubes(engine.encode_text(["a"]), engine.encode_text(["a"]))  # type: ignore[arg-type]
    mixed = engine.encode_tubes([TUBE], "abc") + engine.encode_tubes([TUBE], "def")
    with pytest.raises(InputError, match=r"^tubes: expected tubes of one video, got those of \['abc', 'def'\]"):
        engine.score_tubes(mixed, engine.encode_text(["a"]))
    with pytest.raises(InputError, match=r"^tubes\[0\] \(video 'abc'\): frames: expected consecutive"):
        engine.encode_tubes([dataclasses.replace(TUBE, frames=np.arange(ROWS) * 2)], "abc")
    with pytest.raises(InputError, match="^top_k: expected an integer >= 1, got 0"):
        engine.ground_tubes(QUERIES, top_k=0)
    assert next(preset.name for preset in PRESETS.values() if preset.of_tubes) == "hc-stvg"


def test_info_says_what_a_tube_needs(engine: Engine) -> None:
    expected = engine.info()["features"]["expects"]
    assert expected == "per tube float [n_s, 1024] and float [n_s, 1024], rows in temporal order, not normalised"


def test_damaged_files_of_tube_embeddings_are_refused(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "tubes.safetensors"
    found = engine.encode_tubes([TUBE])
    ((frames, boxes),) = found.tracks
    dataclasses.replace(found, tracks=((frames * 2, boxes),)).save(path)
    with pytest.raises(InputError, match="tubes.safetensors: tube 0: frames: expected consecutive frame numbers"):
        TubeEmbeddings.load(path)
    dataclasses.replace(found, tracks=()).save(path)
    with pytest.raises(InputError, match=r"tubes.safetensors: rows: expected int64 \[1\] >= 1, got int64 \[0\]"):
        TubeEmbeddings.load(path)
