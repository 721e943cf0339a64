"""The model of tubes in the box: it loads by name, grounds a fresh test split well, and the demo shows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mmn_fast
from mmn_fast.checkpoint import IN_THE_BOX
from mmn_fast.cli import app
from mmn_fast.demo.show_tubes import demonstrate_tubes
from mmn_fast.demo.tubes import make_tubes
from mmn_fast.errors import InputError
from mmn_fast.evaluation.tubes import TubeSample, evaluate_tubes

# A seed that no training and no choice of the recipe has seen: both used seed 0.
FRESH_SEED = 20261


@pytest.fixture(scope="module")
def engine() -> mmn_fast.Engine:
    return mmn_fast.load("shapes-tubes")


def test_model_in_the_box_is_small() -> None:
    files = {path.name: path.stat().st_size for path in IN_THE_BOX["shapes-tubes"].iterdir()}
    assert set(files) == {"config.json", "model.safetensors", "tokenizer.json", "log.jsonl", "TRAINING.md"}
    assert sum(files.values()) <= 2 * 2**20


@pytest.mark.full
def test_model_in_the_box_grounds_a_fresh_test_split(engine: mmn_fast.Engine) -> None:
    samples, tubes = [], {}
    for number in range(25):
        made = make_tubes("test", FRESH_SEED, number)
        tubes[made.video.video_id] = made.tubes
        for place, (sentence, truth) in enumerate(zip(made.sentences, made.truths, strict=True)):
            name = made.video.video_id
            samples.append(TubeSample(f"{name}-{place}.mp4", name, sentence.text, truth))
    assert len(samples) >= 150
    metrics = evaluate_tubes(engine, samples, tubes).metrics
    assert metrics["m_vIoU"] >= 0.60
    assert metrics["vIoU@0.5"] >= 0.70


def test_demonstration_is_the_same_for_the_same_seed(engine: mmn_fast.Engine) -> None:
    first, second = demonstrate_tubes(engine, 5), demonstrate_tubes(engine, 5)
    assert first.table() == second.table()
    assert first.to_list() == second.to_list()
    for query in first.queries:
        assert query.sentence in first.table()
        assert query.map is not None
        assert query.map.scores.max() == pytest.approx(query.moments[0].score)


@pytest.mark.slow
def test_demo_command_prints_the_table_and_writes_the_page(tmp_path: Path) -> None:
    page = tmp_path / "demo.html"
    for arguments in ([], ["--json"]):
        done = CliRunner().invoke(app, ["demo", "--tubes", "--seed", "5", "--html", str(page), *arguments])
        assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    html = page.read_text()
    for result in content["results"]:
        assert result["query"] in html
        assert {"moments", "true", "viou", "tiou"} <= set(result)


def test_demo_refuses_a_model_of_another_world(engine: mmn_fast.Engine) -> None:
    with pytest.raises(InputError, match="seed: expected an integer >= 0, got -1"):
        demonstrate_tubes(engine, -1)
    with pytest.raises(InputError, match="expected a model of tubes"):
        demonstrate_tubes(mmn_fast.load("demo"), 5)
