"""Commands report in one line, and in their JSON, what they cut, skip or leave out; --strict refuses it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.command import run_here as run

pytestmark = pytest.mark.slow
LONG = "the red circle grows " * 200
KINDS = {"left_out", "clamped", "cut", "skipped", "limited"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set: two videos with features and one without; three of the eight sentences are too long."""
    root = tmp_path_factory.mktemp("notes")
    videos = {
        "a": {"duration": 8.0, "sentences": ["the red circle grows", LONG, LONG], "timestamps": [[0, 4]] * 3},
        "b": {"duration": 8.0, "sentences": ["the square leaves", "x " + LONG], "timestamps": [[2, 3]] * 2},
        "nowhere": {"duration": 8.0, "sentences": ["it goes", "it comes", "it stays"], "timestamps": [[2, 3]] * 3},
    }
    (root / "all.json").write_text(json.dumps(videos))
    (root / "short.json").write_text(json.dumps({name: short(video) for name, video in videos.items()}))
    with h5py.File(root / "f.h5", "w") as file:
        for name in ("a", "b"):
            file[name] = np.random.RandomState(0).rand(32, 357).astype(np.float32)
    return root


def short(video: dict[str, Any]) -> dict[str, Any]:
    return video | {"sentences": [sentence[-30:].strip() for sentence in video["sentences"]]}


def warnings_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    prefix = "mmn-fast: warning: "
    return [line.removeprefix(prefix) for line in done.stderr.splitlines() if line.startswith(prefix)]


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_eval_and_predict_say_what_they_cut_and_skip(command: str, data: Path, tmp_path: Path) -> None:
    arguments: list[object] = [command, "-m", "demo", "--features", data / "f.h5", "--skip-missing", "--json"]
    if command == "predict":
        arguments += ["-o", tmp_path / "p.jsonl"]
    done = run(*arguments, "--annotations", data / "all.json", "--batch-size", 1)
    facts = json.loads(done.stdout)
    assert set(facts) >= KINDS
    assert [(note["what"], note["count"], note["total"]) for note in facts["cut"]] == [("sentences", 3, 5)]
    assert [(note["count"], note["total"], note["first"]) for note in facts["skipped"]] == [(1, 3, "'nowhere'")]
    assert [facts[kind] for kind in ("left_out", "clamped", "limited")] == [[], [], []]
    skipped, cut = warnings_of(done)
    assert skipped == "1 of 3 videos skipped: they have no features (first: 'nowhere')"
    assert cut.startswith("3 of 5 sentences cut: they are longer than the text encoder's ")
    if command == "predict":
        (tmp_path / "p.jsonl").unlink()
    refused = run(*arguments, "--annotations", data / "all.json", "--strict")
    assert refused.returncode == 2
    assert refused.stderr == f"mmn-fast: --strict: {skipped}\n"
    arguments.remove("--skip-missing")
    both = json.loads((data / "all.json").read_text())
    del both["nowhere"]
    (tmp_path / "both.json").write_text(json.dumps(both))
    refused = run(*arguments, "--annotations", tmp_path / "both.json", "--strict")
    assert (refused.returncode, refused.stderr) == (2, f"mmn-fast: --strict: {cut}\n")
    assert not (tmp_path / "p.jsonl").exists()


def test_limit_is_said_and_strict_allows_it(data: Path, tmp_path: Path) -> None:
    both = json.loads((data / "short.json").read_text())
    del both["nowhere"]
    (tmp_path / "both.json").write_text(json.dumps(both))
    common = ("-m", "demo", "--annotations", tmp_path / "both.json", "--features", data / "f.h5", "--limit", 1)
    done = run("eval", *common, "--strict", "--json")
    (note,) = json.loads(done.stdout)["limited"]
    assert (note["count"], note["total"]) == (1, 2)
    assert warnings_of(done) == ["first 1 of 2 videos only: limit 1"]


def test_ground_says_what_it_cuts(data: Path) -> None:
    arguments = ["ground", "-m", "demo", "--features", f"{data / 'f.h5'}::a", "--duration", 8, "--json"]
    arguments += ["-q", "a circle", "-q", LONG, "-q", "x " + LONG]
    done = run(*arguments)
    (note,) = json.loads(done.stdout)["cut"]
    assert (note["what"], note["count"], note["total"]) == ("sentences", 2, 3)
    (line,) = warnings_of(done)
    assert line.startswith("2 of 3 sentences were cut to the encoder's ")
    refused = run(*arguments, "--strict")
    assert refused.returncode == 2
    assert refused.stderr.startswith("mmn-fast: --strict: 2 of 3 sentences cut: ")


def test_score_file_says_what_is_missing_and_foreign(data: Path, tmp_path: Path) -> None:
    names = ["a#0", "a#1", "b#0", "b#1", "other"]
    lines = [json.dumps({"qid": name, "pred_relevant_windows": [[0, 4, 0.5]]}) for name in names]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    content = json.loads((data / "short.json").read_text())
    content["a"]["timestamps"][0] = [0, 9]
    (tmp_path / "a.json").write_text(json.dumps(content))
    arguments = ("score-file", tmp_path / "p.jsonl", "--annotations", tmp_path / "a.json", "--skip-missing", "--json")
    done = run(*arguments)
    facts = json.loads(done.stdout)
    found = {(kind, note["what"], note["count"], note["total"]) for kind in KINDS for note in facts[kind]}
    expected = {("skipped", "sentences", 4, 8), ("left_out", "predictions", 1, 5), ("clamped", "windows", 1, 8)}
    assert found == expected
    assert len(warnings_of(done)) == 3
    refused = run(*arguments, "--strict")
    assert refused.returncode == 2
    assert "annotations" in refused.stderr
    refused = run(*arguments[:2], "--annotations", data / "short.json", "--skip-missing", "--strict")
    assert refused.returncode == 2
    assert refused.stderr.startswith("mmn-fast: --strict: 4 of 8 sentences skipped: they have no predictions")


def test_a_video_without_sentences_is_counted_by_predict(data: Path, tmp_path: Path) -> None:
    content = {"a": {"duration": 8.0, "sentences": ["it goes"]}, "b": {"duration": 8.0, "sentences": []}}
    (tmp_path / "a.json").write_text(json.dumps(content))
    common = ("-m", "demo", "--annotations", tmp_path / "a.json", "--features", data / "f.h5", "--json")
    done = run("predict", *common, "-o", tmp_path / "p.jsonl")
    assert [(note["what"], note["count"]) for note in json.loads(done.stdout)["left_out"]] == [("videos", 1)]
    (line,) = warnings_of(done)
    assert line.endswith("1 of 2 videos left out: they have no sentence (first: video 'b')")
    assert run("predict", *common, "-o", tmp_path / "q.jsonl", "--strict").returncode == 2
