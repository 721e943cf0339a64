"""Checkpoints in the forms that other tools write: some load, others are refused, and code in a file never runs."""

from __future__ import annotations

import argparse
import builtins
import collections
import dataclasses
import datetime
import logging
import os
import pathlib
import random
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.serialization import get_safe_globals

from mmn_fast.checkpoint import LoadedModel, convert, load_model
from mmn_fast.errors import InputError
from mmn_fast.weights.official import official_content, text_sizes
from tests.tiny_model import assert_same, tiny_model
from tests.training_task import PRESET, TEXT


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def model(root: Path) -> LoadedModel:
    return tiny_model(root)


@pytest.fixture
def weights(model: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in model.state.items()}


def load(path: Path, root: Path, output: Path | None = None) -> LoadedModel:
    """Load a checkpoint that does not state its number of heads."""
    output = path.with_suffix(".converted") if output is None else output
    return load_model(convert(path, PRESET, root / "vocab.txt", output, text_heads=TEXT.num_heads))


class AttributeDict(dict[str, Any]):
    """Stands for Lightning's class of this name; it is pickled under that class's path."""


def _lightning(weights: dict[str, Any]) -> dict[str, Any]:
    name = "lightning.fabric.utilities.data"
    module = types.ModuleType(name)
    AttributeDict.__module__, module.AttributeDict = name, AttributeDict  # type: ignore[attr-defined]
    for depth in range(1, 5):
        sys.modules.setdefault(".".join(name.split(".")[:depth]), types.ModuleType(name))
    sys.modules[name] = module
    return {
        "epoch": 3,
        "global_step": 90,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{name}": tensor for name, tensor in weights.items()} | {"metric.total": torch.zeros(2)},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best_model_score": torch.tensor(0.5), "dirpath": "x"}},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": np.float64(1e-3)}]}],
        "hyper_parameters": AttributeDict(lr=1e-3, root=Path("data"), args=argparse.Namespace(seed=np.int64(3))),
    }


def _rng_states() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - tools save this state
        "numpy dict": np.random.get_state(legacy=False),  # noqa: NPY002
        "python": random.getstate(),
        "generators": [np.random.default_rng(0), np.random.RandomState(0), random.Random(0)],
    }


BESIDE: dict[str, Callable[[], Any]] = {
    "numpy scalars": lambda: [np.float64(0.5), np.float32(1), np.int64(3), np.bool_(True), np.str_("x"), np.float64],
    "numpy arrays": lambda: {"a": np.arange(5), "b": np.ones((2, 3), np.float32), "c": np.dtype("f4")},
    "rng states": _rng_states,
    "namespace": lambda: argparse.Namespace(lr=1e-3, out=Path("a/b"), more=argparse.Namespace(x=[1, np.int32(2)])),
    "simple namespace": lambda: types.SimpleNamespace(a=1, b=types.SimpleNamespace()),
    "defaultdict": lambda: collections.defaultdict(list, {"loss": [0.5, np.float64(0.25)]}),
    "defaultdict of defaultdicts": lambda: collections.defaultdict(dict, {"a": collections.defaultdict(int, {"b": 1})}),
    "ordered, counted, queued": lambda: [
        collections.OrderedDict(a=1), collections.Counter("abca"), collections.deque([1, 2], maxlen=5),
    ],
    "dates and paths": lambda: [datetime.datetime(2024, 1, 2), datetime.timedelta(3), pathlib.PurePosixPath("a")],
    "versions, types and sizes": lambda: [torch.__version__, torch.float32, torch.Size([2]), torch.device("cpu")],
    "sets and numbers": lambda: [{1, 2}, frozenset({3}), 2**100, 1j, b"bytes", None, True],
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("beside", BESIDE)
def test_harmless_objects_beside_the_weights_are_left_unread(
    beside: str, legacy: bool, weights: dict, model: LoadedModel, root: Path, tmp_path: Path
) -> None:
    content = {"model": weights, "beside": BESIDE[beside](), "epoch": 3}
    torch.save(content, tmp_path / "m.pth", _use_new_zipfile_serialization=not legacy)
    assert_same(load(tmp_path / "m.pth", root), model)


WRAPPED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "state_dict": lambda weights: {"state_dict": weights, "epoch": 1},
    "model_state_dict": lambda weights: {"model_state_dict": weights, "optimizer_state_dict": {"state": {}}},
    "a name under model": lambda weights: {"model": "MMN", "state_dict": weights, "arch": "mmn"},
    "defaultdict of weights": lambda weights: {"model": collections.defaultdict(list, weights)},
    "module.": lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()},
    "module.module.": lambda weights: {"model": {f"module.module.{name}": tensor for name, tensor in weights.items()}},
    "_orig_mod.": lambda weights: {"state_dict": {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}},
    "module._orig_mod.": lambda weights: {f"module._orig_mod.{name}": tensor for name, tensor in weights.items()},
    "_orig_mod.module.": lambda weights: {f"_orig_mod.module.{name}": tensor for name, tensor in weights.items()},
    "a compiled part": lambda weights: {
        name.replace("text_encoder.bert.", "text_encoder.bert._orig_mod."): tensor for name, tensor in weights.items()
    },
    "a wrapped part": lambda weights: {
        name.replace("featpool.", "featpool.module."): tensor for name, tensor in weights.items()
    },
    "net.model.": lambda weights: {"state_dict": {f"net.model.{name}": tensor for name, tensor in weights.items()}},
    "an average": lambda weights: {"n_averaged": torch.tensor(7)}
    | {f"module.{name}": tensor for name, tensor in weights.items()},
    "parameters": lambda weights: {name: torch.nn.Parameter(tensor) for name, tensor in weights.items()},
    "double precision": lambda weights: {name: tensor.double() for name, tensor in weights.items()},
    "not contiguous": lambda weights: {name: tensor.T.contiguous().T if tensor.ndim == 2 else tensor
                                       for name, tensor in weights.items()},
    "lightning": _lightning,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The use of `x.T`")
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_weights_are_found_under_the_names_of_other_tools(
    wrapped: str, weights: dict, model: LoadedModel, root: Path, tmp_path: Path
) -> None:
    torch.save(WRAPPED[wrapped](weights), tmp_path / "m.pth")
    assert_same(load(tmp_path / "m.pth", root), model)


def test_entries_left_out_are_reported(
    weights: dict, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(WRAPPED["an average"](weights), tmp_path / "m.pth")
    with caplog.at_level(logging.WARNING):
        load(tmp_path / "m.pth", root)
    assert "m.pth: left out keys that do not start with module.: n_averaged" in caplog.text


class Config:
    """A class of the training program; malicious files use such classes to run code."""

    def __init__(self, function: Any = None, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call if self.call[0] is not None else (Config, ())


MARK = "the-files-code-ran"


def _touch() -> Config:
    return Config(os.system, f"touch {MARK}")


ATTACKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "system beside": lambda weights: {"model": weights, "beside": _touch()},
    "system as the file": lambda _: _touch(),
    "system among the weights": lambda weights: {"model": weights | {"featpool.conv.bias": _touch()}},
    "system within what is left unread": lambda weights: {"model": weights, "a": argparse.Namespace(x=_touch())},
    "eval": lambda weights: {"model": weights, "a": Config(eval, f"open('{MARK}', 'w')")},
    "exec": lambda weights: {"model": weights, "a": Config(exec, f"open('{MARK}', 'w')")},
    "open": lambda weights: {"model": weights, "a": Config(open, MARK, "w")},
    "a factory": lambda weights: {"model": weights, "a": Config(collections.defaultdict, exec)},
    "getattr": lambda weights: {"model": weights, "a": Config(getattr, Config(__import__, "os"), "system")},
    "touch": lambda weights: {"model": weights, "a": Config(Path.touch, Path(MARK))},
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_code_in_a_file_does_not_run(
    attack: str, legacy: bool, weights: dict, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(ATTACKS[attack](weights), tmp_path / "m.pth", _use_new_zipfile_serialization=not legacy)
    monkeypatch.chdir(tmp_path)
    before = set(get_safe_globals())
    with pytest.raises(InputError, match="runs code|running code") as refusal:
        load(tmp_path / "m.pth", root)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.rglob(MARK))
    assert set(get_safe_globals()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pth"]


def test_classes_that_need_their_code_are_all_named_with_what_to_do(weights: dict, root: Path, tmp_path: Path) -> None:
    torch.save({"model": weights, "a": Config(), "b": argparse.Namespace(x=builtins.print)}, tmp_path / "m.pth")
    with pytest.raises(InputError) as refusal:
        load(tmp_path / "m.pth", root)
    assert "beside tensors (builtins.print, tests.test_official.Config) and is not loaded" in str(refusal.value)
    assert "torch.save({'model': model.state_dict()}, 'weights.pth')" in str(refusal.value)


def test_a_whole_module_is_refused_with_what_to_do(root: Path, tmp_path: Path) -> None:
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "m.pth")
    with pytest.raises(InputError, match=r"torch\.nn\.modules\.linear\.Linear.*model\.state_dict\(\)"):
        load(tmp_path / "m.pth", root)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda w: {"weights": w, "epoch": 3},
            "expected a state dict, or .* a dict of weights, epoch",
        ),
        (lambda w: {"model": w, "state_dict": w}, "expected one state dict, got 2: model, state_dict; save"),
        (
            lambda w: {f"{part}.{name}": tensor for part in ("model", "ema") for name, tensor in w.items()},
            r"expected one model, got 2: ema\., model\.; save the weights alone",
        ),
        (
            lambda w: w | {"module.featpool.conv.bias": w["featpool.conv.bias"]},
            "expected one tensor featpool",
        ),
        (lambda w: w | {"featpool.conv.bias": w["featpool.conv.bias"].long()}, "expected floating-point numbers, got"),
        (lambda w: w | {"featpool.conv.bias": np.zeros(24, np.float32)}, "featpool.conv.bias: expected a tensor, got"),
        (lambda w: w | {"featpool.conv.bias": w["featpool.conv.bias"].to("meta")}, "expected a dense tensor"),
        (lambda w: {"model": None}, "expected a state dict, or a dict with one under"),
        (lambda _: None, "expected a state dict, or a dict with one under .* got NoneType"),
    ],
)
def test_files_without_a_single_model_are_refused(
    make: Callable[[dict], Any], message: str, weights: dict, root: Path, tmp_path: Path
) -> None:
    torch.save(make(weights), tmp_path / "m.pth")
    with pytest.raises(InputError, match=message) as refusal:
        load(tmp_path / "m.pth", root)
    assert "\n" not in str(refusal.value)


def test_pickle_protocols_that_the_reader_does_not_know_are_refused(weights: dict, root: Path, tmp_path: Path) -> None:
    torch.save({"model": weights}, tmp_path / "m.pth", pickle_protocol=4)
    with (
        pytest.warns(UserWarning, match="pickle protocol 4"),
        pytest.raises(InputError, match="save the weights alone"),
    ):
        load(tmp_path / "m.pth", root)


@pytest.mark.slow
def test_threads_read_at_once_and_the_callers_own_allowances_stay(
    weights: dict, model: LoadedModel, root: Path, tmp_path: Path
) -> None:
    torch.save({"model": weights, "args": argparse.Namespace(a=np.float64(1))}, tmp_path / "m.pth")
    failures: list[BaseException] = []

    def read(number: int) -> None:
        try:
            for turn in range(5):
                assert_same(load(tmp_path / "m.pth", root, tmp_path / f"{number}-{turn}"), model)
        except BaseException as error:
            failures.append(error)

    with torch.serialization.safe_globals([argparse.Namespace]):
        before = set(get_safe_globals())
        threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert set(get_safe_globals()) == before


def test_the_number_of_heads_is_asked_for_unless_the_width_is_published(
    weights: dict, model: LoadedModel, root: Path, tmp_path: Path
) -> None:
    path, vocabulary = tmp_path / "m.pth", root / "vocab.txt"
    torch.save(weights, path)
    for refused in (
        lambda: load_model(path, PRESET, vocabulary),
        lambda: convert(path, PRESET, vocabulary, tmp_path / "a"),
    ):
        with pytest.raises(InputError, match=r"width .*, got 16: .* with text_heads=, the .*--text-heads N"):
            refused()
    for wrong in (3, 0, -2, True, 2.0):
        with pytest.raises(InputError, match="text_heads: expected a divisor of the text encoder's width, 16, got"):
            convert(path, PRESET, vocabulary, tmp_path / "a", text_heads=wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "a").exists()
    other = load_model(convert(path, PRESET, vocabulary, tmp_path / "four", text_heads=4))
    assert other.text.num_heads == 4
    assert other.fingerprint != model.fingerprint


def test_a_published_width_has_its_heads() -> None:
    names = ("embeddings.word_embeddings", "embeddings.position_embeddings", "transformer.layer.0.ffn.lin1")
    state = {f"text_encoder.bert.{name}.weight": np.zeros((9, 768), np.float32) for name in names}
    assert text_sizes(state, "here").num_heads == 12
    assert text_sizes(state, "here", 8).num_heads == 8


def record_of(model: LoadedModel) -> dict[str, Any]:
    return {
        "preset": model.preset.to_dict(),
        "text_encoder": {
            "vocab_size": 20,
            "max_tokens": 12,
            "width": 16,
            "num_layers": 1,
            "num_heads": 2,
            "ffn_width": 32,
        },
        "tokenizer": model.tokenizer.to_json(),
    }


def test_a_checkpoint_that_says_what_it_is_needs_nothing_else(model: LoadedModel, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(official_content(model.state, record_of(model), PRESET, 3, 9), path)
    assert_same(load_model(path), model)
    assert_same(load_model(path, PRESET, root / "vocab.txt"), model)
    with pytest.raises(InputError, match=r"preset: .*model\.pth was trained with preset 'tiny', got 'tacos' \(num"):
        load_model(path, "tacos")
    with pytest.raises(InputError, match=r"text_heads: .*model\.pth was trained with 2, got 4"):
        convert(path, None, None, tmp_path / "a", text_heads=4)


def test_a_checkpoint_of_tubes_has_the_official_layers_that_nothing_reads(model: LoadedModel, tmp_path: Path) -> None:
    preset = dataclasses.replace(PRESET, score_fusion="product")
    content = official_content(model.state, record_of(model) | {"preset": preset.to_dict()}, preset, 3, 9)
    unused = {name: list(tensor.shape) for name, tensor in content["model"].items() if ".featpool.fc" in name}
    assert unused == {
        "module.featpool.fc1.weight": [256, PRESET.input_size],
        "module.featpool.fc1.bias": [256],
        "module.featpool.fc2.weight": [256, 256],
        "module.featpool.fc2.bias": [256],
    }
    torch.save(content, tmp_path / "model.pth")
    loaded = load_model(tmp_path / "model.pth")
    assert loaded.preset.of_tubes
    assert loaded.state.keys() == model.state.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 9}, "format_version: expected 1, got 9"),
        ({"text_encoder": {"width": 24}}, r"preset 'tiny' expects \[30522, 24\]"),
        ({"text_encoder": 5}, "mmn_fast: expected an object with vocab_size"),
        ({"preset": {}}, "missing"),
        ({"preset": "tacos"}, "preset: expected an object"),
        ({"tokenizer": "{}"}, "not a tokenizer.json"),
        ({"tokenizer": None}, "not a tokenizer.json"),
    ],
)
def test_a_record_that_cannot_be_is_refused(
    change: dict[str, Any], message: str, model: LoadedModel, tmp_path: Path
) -> None:
    content = official_content(model.state, record_of(model), PRESET, 3, 9)
    content["mmn_fast"] |= change
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(InputError, match=message) as refusal:
        load_model(tmp_path / "m.pth")
    assert "\n" not in str(refusal.value)
