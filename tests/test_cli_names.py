"""Messages of the command line name the options that the user typed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mmn_fast.cli import app
from mmn_fast.cli.names import in_typed_names
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.presets import PRESETS
from mmn_fast.version import __version__

NAMES = {
    "top_k": "--top-k", "query": "--query", "features": "--features", "duration": "--duration", "backend": "--backend",
    "backend_option": "--backend-option", "model": "MODEL", "preset": "--preset", "skip_missing": "--skip-missing",
    "annotations": "--annotations",
}  # fmt: skip


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("top_k: expected an integer >= 1, got 0", "--top-k: expected an integer >= 1, got 0"),
        ("batch[0].video.duration_s: expected", "--duration: expected"),
        ("batch[0].video.features: expected", "--features: expected"),
        ("batch[0].sentences[2]: expected text", "--query number 3: expected text"),
        ("sentences: expected a list", "--query: expected a list"),
        ("source: a.h5: no such file", "--features: a.h5: no such file"),
        ("backend_options: backend 'torch' has none", "--backend-option: backend 'torch' has none"),
        ("annotations, features: expected both", "--annotations, --features: expected both"),
        ("model: load it with backend='onnx'", "MODEL: load it with --backend onnx"),
        ("m.pth: needs preset= and tokenizer=; preset= is", "m.pth: needs --preset and tokenizer=; --preset is"),
        (
            "load it with backend_options={'cuda_graphs': False}",
            "load it with --backend-option cuda_graphs=false",
        ),
        (
            "features: none for 2 (skip_missing leaves them out)",
            "--features: none for 2 (--skip-missing leaves them out)",
        ),
        ("a.h5: /data/top_k/x_top_k.h5: 'top_k' in top_k.npy", "a.h5: /data/top_k/x_top_k.h5: 'top_k' in top_k.npy"),
        ("model of preset x: the top_k: of it", "model of preset x: the --top-k: of it"),
        ("other_name: stays", "other_name: stays"),
    ],
)
def test_messages_are_said_with_options(message: str, expected: str) -> None:
    assert in_typed_names(message, NAMES) == expected


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clips.npy"
    width = PRESETS["shapes"].input_size
    np.save(path, np.random.default_rng(0).random((20, width), np.float32))
    return path


EVAL = ("eval", "--model", "demo", "--annotations", "a.json", "--features", "f")
TRAIN = ("train", "--preset", "tacos", "--annotations", "a.json", "--features", "f", "-o", "o")
GROUND = ("ground", "--model", "demo", "-q", "red")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--duration", "0"), "--duration: "),
        (("--duration", "3", "--top-k", "0"), "--top-k: "),
        (("--duration", "3", "--threads", "0"), "--threads: "),
        (("--duration", "3", "--device", "tpu"), "--device: "),
        (("--duration", "3", "--precision", "fp5"), "--precision: "),
        (("--duration", "3", "--backend", "jax"), "--backend: "),
        (("--duration", "3", "--backend", "torch", "--backend-option", "exac=1"), "--backend-option: "),
        (("--duration", "3", "-q", ""), None),
        (("--duration", "3", "--html", "/nowhere/page.html"), "--html: "),
    ],
)
def test_ground_names_the_option(options: tuple[str, ...], named: str | None, clips: Path) -> None:
    done = CliRunner().invoke(app, [*GROUND, "--features", str(clips), *options])
    if named is None:
        assert done.exit_code == 0, done.output
        return
    assert isinstance(done.exception, (InputError, BackendUnavailable))
    assert str(done.exception).startswith(named)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("info", "--model", "nowhere"), "--model: "),
        (("convert", "absent.pth", "--preset", "tacos", "--tokenizer", "t", "-o", "out"), ""),
        (("export", "nowhere", "-o", "out"), "MODEL: "),
        (("bench", "--model", "demo", "--repeats", "0"), "--repeats: "),
        (("bench", "--model", "demo", "--batch", "0"), "--batch: "),
        (("data", "shapes", "-o", "out", "--workers", "0"), "--workers: "),
        (("eval", "--model", "demo", "--annotations", "absent", "--features", "absent"), "--annotations: "),
        (("eval", "--model", "demo", "--annotations", "a.json", "--features", "absent"), "--features: "),
        ((*EVAL, "--protocol", "x"), "--protocol: "),
        ((*EVAL, "--limit", "0"), "--limit: "),
        ((*EVAL, "--batch-size", "0"), "--batch-size: "),
        ((*TRAIN, "--seed", "-1"), "--seed: "),
        ((*TRAIN, "--epochs", "0"), "--epochs: "),
        ((*TRAIN, "--batch-size", "0"), "--batch-size: "),
        ((*TRAIN, "--milestones", "a"), "--milestones: "),
        ((*TRAIN, "--device", "tpu"), "--device: "),
        (
            ("train", "--preset", "shapes", "--annotations", "a.json", "--features", "absent", "-o", "o",
             "--text-encoder", "width=8,num_heads=2", "--tokenizer", "vocab.txt"), "--features: ",
        ),
        (
            ("train", "--preset", "shapes", "--annotations", "a.json", "--features", "f", "-o", "o",
             "--text-encoder", "width=8,num_heads=3", "--tokenizer", "vocab.txt"), "--text-encoder: ",
        ),
        (
            ("train", "--preset", "shapes", "--annotations", "a.json", "--features", "f", "-o", "o",
             "--text-encoder", "width=8,num_heads=2"), "--tokenizer: ",
        ),
    ],
)  # fmt: skip
def test_commands_name_the_option(
    arguments: tuple[str, ...], named: str, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f").mkdir()
    np.save("f/v.npy", np.load(clips))
    Path("a.json").write_text(json.dumps({"v": {"duration": 9.0, "timestamps": [[1.0, 4.0]], "sentences": ["red"]}}))
    Path("vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\n")
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, InputError), done.output
    assert str(done.exception).startswith(named)


def test_a_model_from_the_environment_is_named_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMN_FAST_MODEL", "nowhere")
    done = CliRunner().invoke(app, ["info"])
    assert str(done.exception).startswith("MMN_FAST_MODEL: nowhere")


def test_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"mmn-fast {__version__}\n")
