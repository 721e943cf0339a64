"""eval and predict of tubes: the official table, results.json, what is left out, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmn_fast.cli.options import EngineOptions
from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.evaluation.tubes import TubeSample, evaluate_tubes, target_iou, tube_iou
from mmn_fast.features.tubes import TubesWriter
from mmn_fast.presets import PRESETS
from mmn_fast.tubes import Tube, TubeMoment, TubeQuery
from tests.command import run_here
from tests.published_tubes import CASE, near_truth, write_annotations, write_prepared
from tests.tolerances import check_close

QUERIES = CASE.tube_queries


@pytest.fixture
def words(golden_model: Callable[[str], Path], tmp_path: Path) -> list[Any]:
    """Options of eval for the small case."""
    annotations = write_annotations(tmp_path / "val.json", QUERIES, truth=near_truth)
    with TubesWriter(tmp_path / "tubes.h5") as writer:
        for query in QUERIES:
            writer.write(query.video_id, query.tubes)
    files = ["--annotations", annotations, "--features", tmp_path / "tubes.h5"]
    return ["--model", golden_model("hcstvg_small"), *files]


@pytest.fixture
def loaded(golden_engine: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands find the small case's model loaded."""
    monkeypatch.setattr(EngineOptions, "load", lambda *_: golden_engine("hcstvg_small"))


def overlaps(half_open: bool = False) -> np.ndarray:
    """vIoU and tIoU of the official answers with the true tubes near them, [3, 2]."""
    tracks = [(CASE.arrays[f"{query.video_id}.boxes"], near_truth(query)) for query in QUERIES]
    return np.array([tube_iou(a[:, 0], a[:, 1:], b[:, 0], b[:, 1:], half_open) for a, b in tracks])


def official_figures() -> dict[str, float]:
    viou, tiou = overlaps().T
    assert ((viou > 0.1).all(), (viou > 0.3).sum(), (viou > 0.5).sum()) == (True, 3, 2)
    above = {f"vIoU@{m}": float((viou > m).mean()) for m in (0.3, 0.5)}
    return {"m_vIoU": viou.mean(), "m_tIoU": tiou.mean(), **above, "Best_R1": sum(above.values()) / 2}


@pytest.mark.slow
def test_eval_prints_the_official_figures_and_writes_results(words: list[Any], tmp_path: Path) -> None:
    done = run_here("eval", *words, "--predictions", tmp_path / "results.json", "--json")
    assert done.returncode == 0, done.stderr
    report, official = json.loads(done.stdout), official_figures()
    assert report["num_videos"] == len(QUERIES)
    assert report["metrics"].keys() == official.keys()
    for name, value in official.items():
        check_close(report["metrics"][name], value, "golden_viou", what=name)
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == [f"{query.video_id}.mp4" for query in QUERIES]
    for query in QUERIES:
        rows, found = CASE.arrays[f"{query.video_id}.boxes"], results[f"{query.video_id}.mp4"]
        assert (found["st_frame"], found["ed_frame"]) == (rows[0, 0], rows[-1, 0])
        assert list(found["bbox"]) == [str(int(frame)) for frame in rows[:, 0]]
        np.testing.assert_array_equal(np.array(list(found["bbox"].values()), np.float32), rows[:, 1:])


def test_the_table_names_its_protocol(loaded: None, words: list[Any]) -> None:
    mmn, half_open = run_here("eval", *words).stdout, run_here("eval", *words, "--protocol", "half-open").stdout
    official = official_figures()
    for name, value in official.items():
        assert name in mmn
        assert f"{100 * value:.2f}" in mmn
    assert "protocol mmn: x2 and y2 belong to a box" in mmn
    assert "protocol half-open: boxes end before x2 and y2" in half_open
    assert f"{100 * overlaps(half_open=True)[:, 0].mean():.2f}" in half_open


def test_prepared_test_files_give_the_same_results(loaded: None, tmp_path: Path, words: list[Any]) -> None:
    """From the published pickles to results.json, without any truth."""
    published = write_prepared(tmp_path, QUERIES, test=True)
    assert run_here("data", "hc-stvg", *published, "-o", tmp_path / "data").returncode == 0
    given = ["--annotations", tmp_path / "data" / "annotations.json", "--features", tmp_path / "data" / "tubes.h5"]
    done = run_here("predict", *given, "-o", tmp_path / "results.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'results.json'}: 3 videos, a sentence each\n"
    run_here("eval", *words, "--predictions", tmp_path / "again.json")
    assert (tmp_path / "results.json").read_bytes() == (tmp_path / "again.json").read_bytes()


def test_videos_without_tubes_are_left_out_and_counted(loaded: None, words: list[Any], tmp_path: Path) -> None:
    content = json.loads((tmp_path / "val.json").read_text())
    (tmp_path / "val.json").write_text(json.dumps(content | {"gone.mp4": content["video0.mp4"]}))
    done = run_here("eval", *words, "--json")
    assert done.returncode == 0
    note = "1 of 4 videos left out: they have no tubes, as in the official evaluation (first: 'gone')"
    assert note in done.stderr
    report = json.loads(done.stdout)
    check_close(report["metrics"]["m_vIoU"], official_figures()["m_vIoU"], "golden_viou")
    assert report["left_out"][0]["count"] == 1
    strict = run_here("eval", *words, "--strict")
    assert (strict.returncode, note in strict.stderr) == (2, True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--protocol", "qvh"), "--protocol: expected 'mmn' or 'half-open' for tubes, got 'qvh'"),
        (("--feature-key", "x"), "--feature-key: expected none with preset 'hcstvg_small', which is of tubes, got x"),
        (("--html", "x.html"), "--html: expected none with preset"),
        (("--features", "nowhere.h5"), "--features: nowhere.h5: no such file"),
        (("--limit", "0"), "--limit: expected a number >= 1, got 0"),
        (("--predictions", "nowhere/results.json"), "--predictions: cannot write nowhere/results.json: no such folder"),
    ],
)
def test_eval_refuses_in_one_sentence(loaded: None, words: list[Any], more: tuple[str, str], message: str) -> None:
    done = run_here("eval", *words, *more)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"mmn-fast: {message}"), done.stderr
    assert not done.stdout


def test_predict_refuses_options_of_videos(loaded: None, words: list[Any], tmp_path: Path) -> None:
    for option, value in (("--top-k", "3"), ("--protocol", "2dtan"), ("--durations", "x.json")):
        done = run_here("predict", *words, option, value, "-o", tmp_path / "results.json")
        assert done.returncode == 2
        assert f"{option}: expected none with preset 'hcstvg_small', which is of tubes" in done.stderr
    full = run_here("predict", *words, "-o", "/dev/full")
    assert full.returncode == 2
    assert "already exists" in full.stderr


class Chooses:
    """An engine that answers with the rows of the best cell of the first tube, or with nothing."""

    preset = PRESETS["hc-stvg"]

    def ground_tubes(self, batch: list[TubeQuery]) -> list[list[list[TubeMoment]]]:
        return [[[TubeMoment(0, 0, 2, 0, 1, query.tubes[0].boxes[:2], 0.5)] if query.tubes else []] for query in batch]


def test_a_video_with_an_empty_list_of_tubes_is_left_out_too() -> None:
    tube = Tube(np.arange(4), np.tile([[0.0, 0, 9, 9]], (4, 1)))
    truth = (np.arange(2), tube.boxes[:2])
    samples = [TubeSample(f"{name}.mp4", name, "He sits.", truth) for name in "abc"]
    answers: list[Any] = []
    tubes = {"a": [tube], "b": [], "c": [tube]}
    report = evaluate_tubes(Chooses(), samples, tubes, batch_size=2, on_answer=answers.append)
    assert (report.num_videos, report.metrics["m_vIoU"]) == (2, 1.0)
    assert [(answer.sample.video_id, answer.viou) for answer in answers] == [("a", 1.0), ("c", 1.0)]
    assert [(note.kind, note.count, note.first) for note in report.notes] == [("left_out", 1, "'b'")]
    with pytest.raises(InputError, match="strict: 1 of 3 videos left out: they have no tubes"):
        evaluate_tubes(Chooses(), samples, tubes, strict=True)
    with pytest.raises(
        InputError, match=r"features: expected tubes of an annotated video \(3, such as 'a', 'b', 'c'\)"
    ):
        evaluate_tubes(Chooses(), samples, {})
    with pytest.raises(InputError, match="samples: expected a true tube for every sentence, got none in 1 of 1 videos"):
        evaluate_tubes(Chooses(), [TubeSample("a.mp4", "a", "He sits.")], tubes)
    assert target_iou([tube], truth, 2)[0, 0, 0] == 1.0
