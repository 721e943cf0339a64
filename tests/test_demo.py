"""The model in the box: it loads by name, grounds a fresh test split well, and the demo shows it."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mmn_fast
from mmn_fast.backends.registry import backend_class
from mmn_fast.checkpoint import DEMO_MODEL
from mmn_fast.cli import app
from mmn_fast.demo.show import demonstrate
from mmn_fast.demo.split import draw_split
from mmn_fast.errors import InputError
from mmn_fast.evaluation.agreement import LabelledSplit, agreement_with, recall
from mmn_fast.types import ScoreMaps
from tests.conftest import DemoSplit

SplitAndMaps = tuple[LabelledSplit, list[ScoreMaps]]
# Training and the choice of the recipe used seed 0; this seed is fresh.
FRESH_SEED = 20261


@pytest.fixture(scope="module")
def engine() -> mmn_fast.Engine:
    return mmn_fast.load("demo")


@pytest.fixture(scope="module")
def split_and_maps(demo_split: DemoSplit) -> SplitAndMaps:
    """Videos of the test split with over 1,000 sentences, and the float64 reference's score maps."""
    return demo_split(150)


def test_model_in_the_box_is_small() -> None:
    assert sum(path.stat().st_size for path in DEMO_MODEL.iterdir()) <= 8 * 2**20
    for name in ("config.json", "model.safetensors", "tokenizer.json", "log.jsonl", "TRAINING.md"):
        assert (DEMO_MODEL / name).is_file()


@pytest.mark.full
def test_model_in_the_box_grounds_a_fresh_test_split(engine: mmn_fast.Engine, split_and_maps: SplitAndMaps) -> None:
    split, _ = split_and_maps
    assert split.num_sentences >= 1000
    figures = recall(engine, split, engine.score_maps(split.batch))
    assert figures["R@1,IoU@0.5"] >= 0.85
    assert figures["R@1,IoU@0.7"] >= 0.70


@pytest.mark.full
def test_model_in_the_box_grounds_combinations_it_has_never_seen(engine: mmn_fast.Engine) -> None:
    unseen = draw_split(100, seed=FRESH_SEED, split="test_unseen", workers=len(os.sched_getaffinity(0)))
    # The recall is 0.89 on these 147 sentences and on the 290 of 200 videos: 11 standard errors above the bound.
    assert recall(engine, unseen, engine.score_maps(unseen.batch))["R@1,IoU@0.5"] >= 0.60


@pytest.mark.full
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.999), ("bf16", 0.95), ("fp16", 0.99)])
def test_fast_paths_agree_with_the_reference(precision: str, least: float, split_and_maps: SplitAndMaps) -> None:
    split, reference_maps = split_and_maps
    for backend, reason in mmn_fast.available_backends("cpu", precision).items():
        if reason is None and not backend_class(backend).takes_exports:  # tests/test_export.py tests exports
            engine = mmn_fast.load("demo", backend=backend, precision=precision)
            found = agreement_with(engine, reference_maps, split)
            assert found.top1 >= least, backend
            assert abs(found.recall_difference["R@1,IoU@0.5"]) <= 0.01, backend


def test_demonstration_is_the_same_for_the_same_seed(engine: mmn_fast.Engine) -> None:
    first, second = demonstrate(engine, 5), demonstrate(engine, 5)
    assert first.table() == second.table()
    assert first.to_list() == second.to_list()
    assert demonstrate(engine, 6).table() != first.table()
    for query in first.queries:
        assert query.sentence in first.table()


@pytest.mark.slow
def test_demo_command_writes_the_video_grounds_in_the_file_and_writes_the_page(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["demo", "--html", str(tmp_path / "absent" / "demo.html")])
    assert str(refused.exception).startswith("--html: cannot write")
    refused = CliRunner().invoke(app, ["demo", "--html", str(tmp_path / "demo.mp4")])
    assert str(refused.exception).startswith("--html: expected the name of a page, got")
    page, file = tmp_path / "demo.html", tmp_path / "demo.mp4"
    for arguments in ([], ["--json"]):
        done = CliRunner().invoke(app, ["demo", "--seed", "5", "--html", str(page), *arguments])
        assert done.exit_code == 0, done.output
        assert "memory" not in done.stderr
    content = json.loads(done.stdout)
    assert (content["seed"], content["video"]) == (5, str(file))
    html = page.read_text()
    assert base64.b64encode(file.read_bytes()).decode() in html
    for result in content["results"]:
        assert result["query"] in html
        assert len(result["moments"]) >= 1
    sentence = content["results"][0]["query"]
    ground = ["ground", "--model", "demo", "--video", str(file), "-q", sentence, "--json"]
    again = json.loads(CliRunner().invoke(app, ground).stdout)
    assert again["results"][0]["moments"] == content["results"][0]["moments"]


@pytest.mark.slow
def test_demo_without_pyav_stays_in_memory_and_says_so(
    engine: mmn_fast.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    page = tmp_path / "demo.html"
    done = CliRunner().invoke(app, ["demo", "--seed", "5", "--html", str(page), "--json"])
    assert done.exit_code == 0, done.output
    said = "mmn-fast: the video stays in memory: writing videos needs PyAV (pip install mmn_fast[video])"
    assert done.stderr.splitlines()[0] == said
    content = json.loads(done.stdout)
    assert content["video"] is None
    assert content["results"] == demonstrate(engine, 5).to_list()
    assert '<canvas id="screen"' in page.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["demo.html"]


def test_demo_refuses_a_model_of_another_world(golden_engine) -> None:
    with pytest.raises(InputError, match="features: expected"):
        demonstrate(golden_engine("charades_small"), 5)
    with pytest.raises(InputError, match="seed: expected an integer >= 0, got -1"):
        demonstrate(golden_engine("charades_small"), -1)
