"""Everything that goes between processes pickles: engines, embeddings, stores, presets, results."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import multiprocessing
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import mmn_fast
from benchmarks.golden import cases
from mmn_fast import engine as engine_module
from mmn_fast.artifact.manifest import read_manifest
from mmn_fast.backends.base import Settings
from mmn_fast.backends.native_cpu import NativeBackend
from mmn_fast.backends.registry import backend_class
from mmn_fast.checkpoint import DEMO_MODEL, load_model, save_model
from mmn_fast.errors import BackendUnavailable, InputError, WriteError
from mmn_fast.evaluation.datasets import read_annotations
from mmn_fast.evaluation.evaluate import EvaluationReport, UnwrittenPredictions, evaluate
from mmn_fast.features.store import open_features
from mmn_fast.origin import absolute
from tests.tiny_model import tiny_model

WIDTH = mmn_fast.PRESETS["shapes"].input_size
SENTENCES = ("a red square moves left", "the circle grows")
METHODS = ("spawn", "forkserver")


@cache
def rows(seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((40, WIDTH)).astype(np.float32)


def query() -> mmn_fast.Query:
    return mmn_fast.Query(mmn_fast.Video(rows(), 20.0, "v"), SENTENCES)


def results(engine: mmn_fast.Engine) -> list[bytes]:
    """The bytes of all answers of an engine."""
    (maps,) = engine.score_maps([query()])
    moments = [moment for found in engine.ground([query()])[0] for moment in found]
    return [array.tobytes() for array in vars(maps).values()] + [repr(moments).encode()]


def answer(engine: mmn_fast.Engine) -> tuple[list[bytes], dict[str, Any]]:
    return results(engine), engine.info()


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, their arrays bit for bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[name], b[name]) for name in a)
    if isinstance(a, BaseException):
        return str(a) == str(b) and same(vars(a), vars(b))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b)) and same(getattr(a, "notes", 0), getattr(b, "notes", 0))
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return bool(a == b)


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.fixture(scope="module")
def engine() -> mmn_fast.Engine:
    return mmn_fast.load("demo", threads=1)


@contextmanager
def pool(method: str) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([])
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        yield executor


def test_values_survive_a_pickle(engine: mmn_fast.Engine, tmp_path: Path) -> None:
    from mmn_fast.training.run.options import TrainOptions  # imports PyTorch, which workers need not

    annotations = tmp_path / "a.json"
    video = {"duration": 20.0, "timestamps": [[0, 4], [9, 2]], "sentences": list(SENTENCES)}
    annotations.write_text(json.dumps({"v": video}))
    samples = read_annotations(annotations, engine.preset)
    assert samples.notes
    found: list[Any] = []
    report = evaluate(engine, samples, {"v": rows()}, on_result=found.append)
    values = {
        "video": query().video,
        "query": query(),
        "moments": engine.ground([query()]),
        "maps": engine.score_maps([query()]),
        "video embeddings": engine.encode_video([query().video]),
        "text embeddings": engine.encode_text(SENTENCES),
        "presets": mmn_fast.PRESETS,
        "annotations": samples,
        "report": report,
        "result": found,
        "training options": TrainOptions(engine.preset, Path("a.json"), Path("f.h5"), Path("o")),
        "errors": [
            InputError("a: b"),
            WriteError("c"),
            BackendUnavailable("d"),
            UnwrittenPredictions("e", report),
        ],
    }
    assert isinstance(report, EvaluationReport)
    for name, value in values.items():
        assert same(pickled(value), value), name


def test_a_model_and_its_tokenizer_survive_a_pickle() -> None:
    model = load_model("demo")
    again = pickled(model)
    assert again.fingerprint == model.fingerprint
    assert same(again.state, model.state)
    assert same(again.tokenizer.encode(SENTENCES), model.tokenizer.encode(SENTENCES))
    assert again.tokenizer.digest() == model.tokenizer.digest()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_engine_pickles_as_the_arguments_of_its_loading(backend: str, protocol: int) -> None:
    engine = mmn_fast.load("demo", backend=backend, threads=1)
    data = pickle.dumps(engine, protocol)
    assert len(data) < 2000
    assert pickle.loads(data) is engine


def test_a_copy_of_an_engine_is_the_engine(engine: mmn_fast.Engine) -> None:
    assert copy.copy(engine) is engine
    assert copy.deepcopy({"e": engine})["e"] is engine


@pytest.mark.slow
def test_an_engine_is_loaded_once_for_as_long_as_it_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    loads, load = [], mmn_fast.load
    monkeypatch.setattr(engine_module, "load", lambda model, **options: loads.append(model) or load(model, **options))
    data = pickle.dumps(mmn_fast.load("demo", threads=1, backend_options={"exact": True}))
    gc.collect()
    first = pickle.loads(data)
    assert pickle.loads(data) is first is pickled(first)
    assert loads == ["demo"]
    del first
    gc.collect()
    pickle.loads(data)
    assert loads == ["demo"] * 2


def test_everything_that_load_was_given_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments: paths relative to another directory, another tokenizer, threads from the environment."""
    shutil.copytree(DEMO_MODEL, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMN_FAST_NUM_THREADS", "1")
    options: dict[str, Any] = {"exact": True, "max_packed_mib": 1}
    engine = mmn_fast.load("model", "shapes", "model/tokenizer.json", "cpu", "fp32", backend_options=options)
    expected, data = answer(engine), pickle.dumps(engine)
    del engine
    gc.collect()
    monkeypatch.chdir("/")
    monkeypatch.delenv("MMN_FAST_NUM_THREADS")
    again = pickle.loads(data)
    assert answer(again) == expected
    assert again.info()["model"] == "model"
    assert again.info()["threads"] == 1


@pytest.mark.slow
def test_an_official_checkpoint_comes_back_with_its_preset_and_tokenizer(
    golden_files: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(golden_files("charades_small"))
    engine = mmn_fast.load("model.pth", cases.load("charades_small").preset, "vocab.txt", threads=1)
    fingerprint, expected = engine.info()["fingerprint"], engine.encode_text(SENTENCES)
    data = pickle.dumps(engine)
    del engine
    gc.collect()
    monkeypatch.chdir("/")
    again = pickle.loads(data)
    assert again.info()["fingerprint"] == fingerprint
    assert same(again.encode_text(SENTENCES), expected)


def test_names_mean_the_same_in_every_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("owner/name") == "owner/name"  # a hub id stays
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert absolute("owner/name") == str(tmp_path / "owner" / "name")
    assert absolute("./model.pth") == str(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "backends", [("auto", "native"), pytest.param(("torch",), marks=pytest.mark.slow)], ids="-".join
)
@pytest.mark.parametrize("method", METHODS)
def test_processes_answer_with_the_same_bits(method: str, backends: tuple[str, ...]) -> None:
    engines = [mmn_fast.load("demo", backend=backend, threads=1) for backend in backends]
    with pool(method) as executor:
        assert list(executor.map(answer, engines)) == [answer(engine) for engine in engines]


@pytest.mark.parametrize("method", METHODS)
def test_processes_answer_with_the_same_bits_from_an_export(method: str, demo_export: Path) -> None:
    engine = mmn_fast.load(demo_export, threads=1)
    with pool(method) as executor:
        assert executor.submit(answer, engine).result() == answer(engine)


def test_an_engine_made_of_a_model_in_memory_pickles_the_weights(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    engine = mmn_fast.Engine(model, NativeBackend(model, Settings("cpu", "fp32", 1, {"exact": True})))
    again = pickled(engine)
    clips = np.random.default_rng(1).standard_normal((9, model.preset.input_size)).astype(np.float32)
    batch = [mmn_fast.Query(mmn_fast.Video(clips, 9.0), ["a dog sings"])]
    assert again is not engine
    assert again.ground(batch) == engine.ground(batch)
    assert again.info() == engine.info()
    by_default = NativeBackend(model, Settings("cpu", "fp32", threads=1))
    assert same(pickled(by_default).encode_text([np.array([2, 5, 3])]), by_default.encode_text([np.array([2, 5, 3])]))


@pytest.mark.slow
def test_changed_weights_are_refused(tmp_path: Path) -> None:
    save_model(tiny_model(tmp_path), tmp_path / "model")
    data = pickle.dumps(mmn_fast.load(tmp_path / "model", threads=1))
    gc.collect()
    assert isinstance(pickle.loads(data), mmn_fast.Engine)
    gc.collect()
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(InputError, match="model: .*model: no such file or directory"):
        pickle.loads(data)
    save_model(tiny_model(tmp_path, seed=1), tmp_path / "model")
    with pytest.raises(InputError, match=r"has changed since the engine was pickled: expected fingerprint \w+, got"):
        pickle.loads(data)


def test_another_export_of_the_model_is_refused(demo_export: Path, tmp_path: Path) -> None:
    directory = tmp_path / "export"
    shutil.copytree(demo_export, directory)
    model = load_model(directory)
    by_hand = pickle.dumps(mmn_fast.Engine(model, backend_class("onnx")(model, Settings("cpu", "auto", 1))))
    loaded = pickle.dumps(mmn_fast.load(directory, threads=1))
    assert results(pickle.loads(by_hand)) == results(pickle.loads(loaded))
    gc.collect()
    dataclasses.replace(read_manifest(directory), source="another").write(directory)
    with pytest.raises(InputError, match="is not the export that was pickled"):
        pickle.loads(loaded)
    with pytest.raises(InputError, match="another export now"):
        pickle.loads(by_hand)


def test_another_kind_of_device_is_refused(engine: mmn_fast.Engine) -> None:
    origin = engine._origin
    assert origin is not None
    with pytest.raises(BackendUnavailable, match="ran on cuda, but device 'auto' is cpu here; name the device"):
        dataclasses.replace(origin, runs_on="cuda").check(origin)


@pytest.fixture
def stores(tmp_path: Path) -> list[str]:
    """Names of a store of each kind, relative to `tmp_path`."""
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_group("v").update({"other": rows()[:3], "wanted": rows()})
    (tmp_path / "directory").mkdir()
    np.savez(tmp_path / "directory" / "v.npz", other=rows()[:3], wanted=rows())
    return ["f.h5", "directory"]


def test_stores_open_again(stores: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in stores:
        monkeypatch.chdir(tmp_path)
        with open_features(name, "wanted", WIDTH) as store:
            monkeypatch.chdir("/")
            with pickled(store) as again:
                assert (again.feature_key, again.width, again.ids()) == ("wanted", WIDTH, ["v"])
                assert same(again["v"], rows())
        with pytest.raises(InputError, match=f"path: {name} has been closed"):
            pickle.dumps(store)


class Grounding:
    """A map-style data set; the engine computes its items from the store."""

    def __init__(self, engine: mmn_fast.Engine, store: Any) -> None:
        self.engine, self.store = engine, store

    def __len__(self) -> int:
        return 2

    def __getitem__(self, number: int) -> tuple[Any, int]:
        video = mmn_fast.Video(self.store["v"], 20.0)
        (maps,) = self.engine.score_maps([mmn_fast.Query(video, SENTENCES)])
        return maps.fused, multiprocessing.current_process().pid or 0


@pytest.mark.parametrize("method", ["fork", *(pytest.param(name, marks=pytest.mark.slow) for name in METHODS)])
def test_workers_of_a_data_loader_hold_an_engine_and_a_store(
    method: str, engine: mmn_fast.Engine, stores: list[str], tmp_path: Path
) -> None:
    from torch.utils.data import DataLoader

    expected = engine.score_maps([query()])[0].fused
    with open_features(tmp_path / stores[0], "wanted", WIDTH) as store:
        data: Any = Grounding(engine, store)
        loader = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context=method, collate_fn=tuple)
        found = list(loader)
    assert len(found) == 2
    for fused, process in found:
        assert same(fused, expected)
        assert process != multiprocessing.current_process().pid


def test_cloudpickle_pickles_an_engine(engine: mmn_fast.Engine) -> None:
    """Ray pickles with cloudpickle."""
    cloudpickle = pytest.importorskip("cloudpickle")
    ground = pickle.loads(cloudpickle.dumps(lambda batch: engine.ground(batch)))
    assert ground([query()]) == engine.ground([query()])
