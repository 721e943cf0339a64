"""Fixtures: golden models as converted directories and engines, and exports, made once per run."""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import mmn_fast
from benchmarks.golden import cases
from mmn_fast.checkpoint import convert, model_from_state, save_model
from mmn_fast.demo.split import draw_split
from mmn_fast.evaluation.agreement import LabelledSplit
from mmn_fast.kernels.gpu import interpreter
from mmn_fast.tokenizer import load_tokenizer
from mmn_fast.types import ScoreMaps
from tests import CPUS
from tests.process_group import Group, group_server
from tests.tensorrt_plans import built, cuda, exported  # noqa: F401 - fixtures of several files
from tests.training_task import write_task

Exports = Callable[..., Path]
DemoSplit = Callable[[int], tuple[LabelledSplit, list[ScoreMaps]]]
_MOST_WORKERS = 4  # each takes up to 2 GiB
_EXPORT_FIXTURES = {"exports", "demo_export"}


def pytest_configure(config: pytest.Config) -> None:
    """Choose Triton's interpreter where there is no GPU, before any test imports kernels.

    The process that only hands tests to workers does without PyTorch, whose import takes it two seconds.
    """
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        import torch

        if not torch.cuda.is_available():
            interpreter.enable()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Choose the workers for `-n auto`: one per usable CPU, and one more if slow tests run, which often wait.

    Every worker collects all tests, which takes 10 s.
    """
    return min(CPUS + ("not slow" not in config.option.markexpr), _MOST_WORKERS)


@pytest.hookimpl(tryfirst=True)  # before -m selects tests by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that need an export as slow: an export and its verification take seconds."""
    for item in items:
        if _EXPORT_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("full") is None)  # the longest tests first


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remove the files of a run that passed, up to 8 GiB of models; pytest alone would keep those of three runs."""
    is_worker = hasattr(session.config, "workerinput")
    if exitstatus == pytest.ExitCode.OK and not is_worker:
        files: pytest.TempPathFactory = session.config._tmp_path_factory  # type: ignore[attr-defined]
        shutil.rmtree(files.getbasetemp(), ignore_errors=True)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the package's environment variables from tests, except the ISA that a run forces."""
    for name in list(os.environ):
        if name.startswith("MMN_FAST_") and name != "MMN_FAST_CPU_ISA":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A directory that all processes of this run share; `made_once` fills it."""
    own = tmp_path_factory.getbasetemp()
    # A worker's config marks it as a worker. The environment would also mark pytest runs that a worker's test starts.
    directory = (own.parent if hasattr(pytestconfig, "workerinput") else own) / "shared"
    directory.mkdir(exist_ok=True)
    return directory


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time into this context; the lock file is beside the path."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """Make a path once per run: the first process that asks makes it, whole or not at all; the others wait."""
    with _alone(path):
        if not path.exists():
            make(path)
    return path


@pytest.fixture(scope="session")
def golden_files(shared: Path) -> Callable[[str], Path]:
    """A case's official files: a directory with model.pth, features.h5 and vocab.txt."""

    def write(root: Path, name: str) -> None:
        case, partial = cases.load(name), root.with_name(f"{root.name}.partial")
        partial.mkdir(exist_ok=True)
        case.write_checkpoint(partial / "model.pth")
        case.write_features(partial / "features.h5")
        shutil.copyfile(cases.VOCAB, partial / "vocab.txt")
        partial.rename(root)

    return lambda name: made_once(shared / f"{name}-files", lambda root: write(root, name))


@pytest.fixture(scope="session")
def golden_model(golden_files: Callable[[str], Path], shared: Path) -> Callable[[str], Path]:
    """A case's converted directory; a full-size case, 200 to 600 MB, skips the official file."""

    def make(name: str, root: Path) -> None:
        case = cases.load(name)
        if name in cases.FULL:
            tokenizer = load_tokenizer(cases.VOCAB, case.text.max_tokens)
            save_model(model_from_state(case.preset, case.text, case.state(), tokenizer, name), root)
        else:
            files = golden_files(name)
            convert(files / "model.pth", case.preset, files / "vocab.txt", root)

    return lambda name: made_once(shared / f"{name}-model", lambda root: make(name, root))


@pytest.fixture(scope="session")
def golden_engine(golden_model: Callable[[str], Path]) -> Callable[[str], mmn_fast.Engine]:
    """A case's engine with all options on "auto"."""
    engines: dict[str, mmn_fast.Engine] = {}

    def engine(name: str) -> mmn_fast.Engine:
        if name not in engines:
            engines[name] = mmn_fast.load(golden_model(name), backend="torch")
        return engines[name]

    return engine


@pytest.fixture(scope="session")
def exports(golden_model: Callable[[str], Path], shared: Path) -> Exports:
    """Exports of golden cases and of "demo" by precision, made once; the demo's score.onnx chooses 5 moments.

    A test that changes an export must copy it.
    """
    from mmn_fast.export.to_onnx import export

    def get(name: str, precision: str = "fp32") -> Path:
        model, top_k = ("demo", 5) if name == "demo" else (golden_model(name), None)
        output = shared / f"{name}-{precision}"
        return made_once(output, lambda path: export(model, path, precision=precision, top_k=top_k))

    return get


@pytest.fixture(scope="session")
def demo_export(exports: Exports) -> Path:
    """The demo model's export in float32."""
    return exports("demo")


@pytest.fixture(scope="session")
def demo_split(shared: Path) -> DemoSplit:
    """Videos of the demo's test split and the reference's score maps of them, drawn once per run: 0.1 s a video.

    Training and the choice of the recipe used seed 0; this seed is fresh.
    """

    def make(path: Path) -> None:
        split = draw_split(150, seed=20261, workers=CPUS)
        maps = mmn_fast.load("demo", backend="torch", precision="fp64").score_maps(split.batch)
        path.write_bytes(pickle.dumps((split, maps)))

    def first(videos: int) -> tuple[LabelledSplit, list[ScoreMaps]]:
        split, maps = pickle.loads(made_once(shared / "demo-split.pkl", make).read_bytes())
        return LabelledSplit(split.batch[:videos], split.moments_s[:videos]), maps[:videos]

    return first


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of a task: 20 videos for training and 8 for evaluation."""
    root = tmp_path_factory.mktemp("task")
    paths = write_task(root, 20, seed=1)
    paths["val_annotations"] = write_task(root, 8, seed=2, name="val")["annotations"]
    return paths


@pytest.fixture(scope="session")
def group() -> Iterator[Group]:
    """Run a function in each process of a group, see `group_server`."""
    with group_server() as run:
        yield run
