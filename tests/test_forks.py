"""Forked processes: no child hangs, whatever other threads do during the fork, and results have the parent's bits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmn_fast
from mmn_fast.backends.base import Settings
from mmn_fast.engine import Engine
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.process.forks import Opened
from mmn_fast.process.torch_threads import on_usable_thread, strict_settings
from tests.processes import in_fork, not_for_ever  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[1]
KINDS = {"native-2": 12, "torch-1": 5}
ONNX_KINDS = {"onnx-2": 5, "onnx-1": 5}
"""(backend and threads) -> number of forks. PyTorch with two threads runs in a separate process, below."""


@lru_cache(maxsize=1)
def batch() -> list[mmn_fast.Query]:
    rng = np.random.default_rng(0)
    return [
        mmn_fast.Query(
            mmn_fast.Video(rng.standard_normal((50 + 7 * number, 357), np.float32), 30.0, str(number)),
            ["a red circle moves left", "the square grows", f"person opens door {number}"],
        )
        for number in range(2)
    ]


def keeping(model: str | Path) -> Callable[[str], Engine]:
    """Make a function that gives the engine of a kind ("native-2"), each loaded once."""
    made: dict[str, Engine] = {}

    def engine(kind: str) -> Engine:
        if kind not in made:
            backend, threads = kind.split("-")
            made[kind] = mmn_fast.load(model, backend=backend, threads=int(threads))
        return made[kind]

    return engine


@pytest.fixture(scope="module")
def engines() -> Callable[[str], Engine]:
    return keeping("demo")


@pytest.fixture(scope="module")
def onnx_engines(demo_export: Path) -> Callable[[str], Engine]:
    return keeping(demo_export)


def results(engine: Engine) -> tuple[Any, list[bytes]]:
    """Compute moments, and the bytes of all score maps."""
    maps = engine.score_maps(batch())
    return engine.ground(batch()), [one[name].tobytes() for one in maps for name in one.keys()]  # noqa: SIM118


@contextmanager
def always(work: Callable[[], object]) -> Iterator[None]:
    """Let another thread repeat the work inside this context."""
    stop, started = threading.Event(), threading.Event()

    def run() -> None:
        while not stop.is_set():
            started.set()
            work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        started.wait()
        yield
    finally:
        stop.set()
        thread.join()


def check_forks_in_calls(engine: Engine, forks: int) -> None:
    """Check that forked children have the parent's bits while a thread of the parent is in a call."""
    expected = results(engine)
    with always(lambda: engine.ground(batch())):
        for number in range(forks):
            time.sleep(0.007 * number)  # each fork interrupts the call at another place
            assert in_fork(lambda: results(engine)) == expected
    assert results(engine) == expected


def check_threads_of_a_child(engine: Engine, forks: bool) -> None:
    """Check a forked child's threads for the parent's bits, and a child that it forks after these threads ended."""
    expected = results(engine)

    def child() -> list[Any]:
        found = [results(engine)]
        threads = [threading.Thread(target=lambda: found.append(results(engine)), daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [*found, in_fork(lambda: results(engine), 40)] if forks else found

    with always(lambda: engine.ground(batch())):
        assert in_fork(child, 80) == [expected] * (4 if forks else 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_fork_in_the_middle_of_a_call_has_the_parents_bits(kind: str, engines: Callable[[str], Engine]) -> None:
    check_forks_in_calls(engines(kind), KINDS[kind])


@pytest.mark.parametrize("kind", ONNX_KINDS)
def test_a_fork_in_the_middle_of_a_call_of_onnx_has_the_parents_bits(
    kind: str, onnx_engines: Callable[[str], Engine]
) -> None:
    check_forks_in_calls(onnx_engines(kind), ONNX_KINDS[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_forks_of_a_forked_child_work_too(kind: str, engines: Callable[[str], Engine]) -> None:
    # PyTorch multiplies with MKL. If a process forks just after threads that used MKL have ended, the child hangs in
    # MKL's `mm_account_ptr_by_tid` about once in fifty times. This package cannot renew that lock.
    check_threads_of_a_child(engines(kind), forks=not kind.startswith("torch"))


def test_threads_and_forks_of_a_forked_child_of_onnx_work_too(onnx_engines: Callable[[str], Engine]) -> None:
    check_threads_of_a_child(onnx_engines("onnx-2"), forks=True)


@pytest.mark.slow
def test_a_forked_child_does_not_wait_for_openmp_threads_of_the_parent() -> None:
    script = """
import mmn_fast
from tests import test_forks
engine = mmn_fast.load("demo", backend="torch", threads=2)
test_forks.check_forks_in_calls(engine, 3)
test_forks.check_threads_of_a_child(engine, forks=False)
expected = test_forks.results(engine)
assert test_forks.in_fork(lambda: test_forks.results(mmn_fast.load("demo", backend="torch"))) == expected
"""
    # On loaded cores, threads that spin while they wait turn milliseconds into seconds.
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=150, cwd=ROOT, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "precision"), [("torch", "fp32"), ("torch", "bf16"), ("native", "fp32")])
def test_a_forked_child_loads_models_while_another_thread_of_the_parent_does(backend: str, precision: str) -> None:
    load = lambda: mmn_fast.load("demo", backend=backend, precision=precision, threads=1)  # noqa: E731
    expected = results(load())
    with always(load):
        for _ in range(2):
            assert in_fork(lambda: results(load())) == expected


def test_a_forked_child_imports_what_another_thread_was_importing(tmp_path: Path) -> None:
    (tmp_path / "slow_module.py").write_text("import time\ntime.sleep(1)\nvalue = 1\n")
    script = """
import os, signal, sys, threading, time
from mmn_fast.backends import registry
thread = threading.Thread(target=lambda: registry._imported("slow_module:value"))
thread.start()
time.sleep(0.3)
child = os.fork()
if child == 0:
    signal.alarm(10)
    import slow_module
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60, env=environment)


def test_settings_of_a_running_call_do_not_stay_in_a_forked_child() -> None:
    def state() -> tuple[Any, ...]:
        cudnn = torch.backends.cudnn
        return cudnn.deterministic, cudnn.allow_tf32, torch.get_float32_matmul_precision(), strict_settings._calls

    before, inside, leave = state(), threading.Event(), threading.Event()

    def call() -> None:
        with strict_settings:
            inside.set()
            leave.wait()

    def child() -> tuple[Any, ...]:
        found = state()
        with strict_settings:
            pass
        return found, state()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    inside.wait()
    assert state() != before
    assert in_fork(child) == (before, before)
    leave.set()
    thread.join()
    assert state() == before


@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_has_the_parents_number_of_torch_threads(threads: int, engines: Callable[[str], Engine]) -> None:
    engine, before = engines("torch-1"), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with always(lambda: engine.ground(batch())):
            for _ in range(2):
                assert in_fork(lambda: (torch.get_num_threads(), on_usable_thread(torch.get_num_threads))) == (
                    threads,
                    threads,
                )
    finally:
        torch.set_num_threads(before)


def test_bfloat16_features_are_read_in_a_forked_child(engines: Callable[[str], Engine]) -> None:
    results(engines("torch-1"))
    rows = torch.randn(4000, 357, generator=torch.Generator().manual_seed(0)).bfloat16()  # enough work for threads
    query = mmn_fast.Query(mmn_fast.Video(rows, 30.0), ["a red circle"])
    expected = engines("native-2").ground([query])
    assert in_fork(lambda: engines("native-2").ground([query])) == expected


def test_a_forked_child_with_onnx_sessions_ends_as_a_program_does(demo_export: Path) -> None:
    script = f"""
import os, signal, sys
import numpy as np
import mmn_fast
engine = mmn_fast.load({str(demo_export)!r}, backend="onnx", threads=2)
for used in (False, True):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        if used:
            engine.encode_text(["a red circle"])
        sys.exit(0)  # modules and sessions come to their end
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120, cwd=ROOT)


def test_an_export_that_changed_is_refused_where_a_forked_child_opens_it_again(
    demo_export: Path, tmp_path: Path
) -> None:
    import shutil

    copy = shutil.copytree(demo_export, tmp_path / "export")
    engine = mmn_fast.load(copy, backend="onnx", threads=2)
    with (copy / "text.onnx").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    assert engine.encode_text(["a"]).contrastive.shape[0] == 1
    with pytest.raises(InputError, match="text.onnx is not the file that was verified"):
        in_fork(lambda: engine.encode_text(["a"]))


def test_objects_open_on_a_gpu_are_refused_in_a_forked_child() -> None:
    opened = Opened.here("device 'cuda:0'")
    opened.check()
    message = r"^device 'cuda:0' was opened in process \d+, and this one, \d+, was forked from it: CUDA does not work"
    with pytest.raises(BackendUnavailable, match=message):
        in_fork(opened.check)


def test_backends_on_a_gpu_refuse_a_forked_child(
    engines: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmn_fast.backends.native_gpu import NativeGpuBackend
    from mmn_fast.checkpoint import load_model

    loaded = load_model("demo")
    engine = Engine(loaded, NativeGpuBackend(loaded, Settings("cpu", "fp32")))  # the kernels' twins on the CPU
    for call in (lambda: engine.ground(batch()), engine.info):
        with pytest.raises(BackendUnavailable, match="was forked from it"):
            in_fork(call)
    runner = engines("torch-1")._backend._runner  # type: ignore[attr-defined]
    monkeypatch.setattr(runner, "device", torch.device("cuda:0"))
    with pytest.raises(BackendUnavailable, match="was forked from it"):
        in_fork(lambda: engines("torch-1").ground(batch()))
    monkeypatch.setattr("mmn_fast.process.torch_build.has_cuda", lambda: True)
    monkeypatch.setattr("torch.cuda._is_in_bad_fork", lambda: True)
    with pytest.raises(BackendUnavailable, match="this process was forked from one that used CUDA"):
        mmn_fast.load("demo", backend="torch", device="cuda")
