"""`data vocab`, `info --model`, and the messages of backend onnx about its two distributions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mmn_fast.backends import ort
from mmn_fast.cli import app
from mmn_fast.errors import InputError
from mmn_fast.presets import PRESETS, PUBLISHED_FEATURES
from mmn_fast.tokenizer import load_tokenizer
from mmn_fast.training.vocabulary import build_vocabulary

SENTENCES = [f"a {colour} {shape} jumps over the {other} one" for colour in ("red", "blue", "teal") for shape in
             ("square", "circle", "star") for other in ("big", "small", "lazy")]  # fmt: skip


def annotations(path: Path, sentences: list[str]) -> Path:
    times = [[0.0, 4.0]] * len(sentences)
    path.write_text(json.dumps({"v": {"duration": 9.0, "timestamps": times, "sentences": sentences}}))
    return path


def test_vocab_builds_word_pieces_that_the_tokenizer_reads(tmp_path: Path) -> None:
    one, two = annotations(tmp_path / "a.json", SENTENCES[:9]), annotations(tmp_path / "b.json", SENTENCES[9:])
    arguments = [
        "data",
        "vocab",
        "--annotations",
        str(one),
        "--annotations",
        str(two),
        "-o",
        str(tmp_path / "vocab.txt"),
    ]
    done = CliRunner().invoke(app, [*arguments, "--size", "200"])
    assert done.exit_code == 0, done.output
    assert "entries from 27 sentences" in done.output
    entries = (tmp_path / "vocab.txt").read_text().splitlines()
    assert entries[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(set(entries)) == len(entries) <= 200
    tokenizer = load_tokenizer(tmp_path / "vocab.txt")
    for ids in tokenizer.encode(["a red square jumps", "a lazy star"]):
        assert 1 not in ids.tolist()
    assert "already exists" in str(CliRunner().invoke(app, arguments).exception)


@pytest.mark.slow
def test_vocabulary_does_not_depend_on_process_or_order() -> None:
    code = "import json, sys; from mmn_fast.training.vocabulary import build_vocabulary;"
    code += "print(json.dumps(build_vocabulary(json.loads(sys.argv[1]), 300)))"
    rng = np.random.default_rng(0)  # random words: many pairs of letters are equally frequent
    many = ["".join(rng.choice(list("abcdefghij"), 6)) for _ in range(600)]
    expected = build_vocabulary(many, 300)
    for seed, sentences in (("1", many), ("2", many[::-1]), ("3", many)):
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(sentences)],
            env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert json.loads(done.stdout) == expected


def test_vocabulary_refuses_what_gives_none() -> None:
    with pytest.raises(InputError, match="size: expected an integer >= 100, got 5"):
        build_vocabulary(SENTENCES, 5)
    with pytest.raises(InputError, match="sentences: expected at least one word"):
        build_vocabulary([], 200)


def test_info_shows_sizes_and_features_of_a_model() -> None:
    done = CliRunner().invoke(app, ["info", "--model", "demo", "--json"])
    engine, preset = json.loads(done.output)["engine"], PRESETS["shapes"]
    sizes = engine["sizes"]
    assert [sizes[name] for name in "DTNJ"] == [
        preset.input_size, preset.num_pre_clips, preset.num_clips, preset.joint_size,
    ]  # fmt: skip
    assert sizes["P"] == engine["proposals"]
    assert engine["features"]["streams"] == list(preset.feature_streams)
    assert engine["features"]["extractor"] == "mmn_fast.features.PixelFeatures"
    assert "not normalised" in engine["features"]["expects"]
    assert set(PUBLISHED_FEATURES) == set(PRESETS)
    shown = CliRunner().invoke(app, ["info", "--model", "demo"]).output
    for name in ("D: 357", "extractor: ", "normalisation: "):
        assert name in shown


def test_cuda_of_onnxruntime_says_which_distribution_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "version", lambda name: {"onnxruntime": "1.0", "onnxruntime-gpu": "2.0"}[name])
    assert "onnxruntime 1.0 and onnxruntime-gpu 2.0 are both installed" in ort._how_to_get_cuda()

    def only_cpu(name: str) -> str:
        if name == "onnxruntime":
            return "1.0"
        raise ort.PackageNotFoundError(name)

    monkeypatch.setattr(ort, "version", only_cpu)
    assert "the two cannot be installed together" in ort._how_to_get_cuda()
