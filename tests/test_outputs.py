"""Results come first; a failed by-product never costs a result: full disks, closed pipes, killed processes."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import mmn_fast
from mmn_fast.demo.shapes import write_dataset
from mmn_fast.evaluation.datasets import read_annotations
from mmn_fast.evaluation.evaluate import UnwrittenPredictions, evaluate
from mmn_fast.features import open_features

pytestmark = pytest.mark.slow
LIMIT = 2048  # largest size of a file, in bytes: smaller than any page and any file of predictions here


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("shapes") / "data"
    write_dataset(output, 0, {"test": 3}, workers=1)
    return output


def _limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


def _run(
    *arguments: object, limited: bool = False, stdout: Any = subprocess.PIPE, stderr: Any = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmn_fast", *map(str, arguments)]
    done = subprocess.run(
        command, stdout=stdout, stderr=stderr, text=True, timeout=300, preexec_fn=_limit_files if limited else None
    )
    assert "Traceback" not in (done.stderr or "")
    assert "Exception ignored" not in (done.stderr or "")
    return done


def _eval(data: Path, *more: object) -> Sequence[object]:
    return ("eval", "-m", "demo", "--annotations", data / "test.json", "--features", data / "features.h5", *more)


def _messages(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("mmn-fast: ")]


def test_the_figures_are_printed_though_predictions_and_page_fail(shapes: Path, tmp_path: Path) -> None:
    arguments = _eval(shapes, "--predictions", tmp_path / "p.jsonl", "--html", tmp_path / "p.html", "--json")
    whole = _run(*arguments)
    assert whole.returncode == 0, whole.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.html", "p.jsonl"]
    for path in tmp_path.iterdir():
        assert path.stat().st_size > LIMIT
        path.unlink()
    done = _run(*arguments, limited=True)
    assert done.returncode == 1
    assert json.loads(done.stdout)["metrics"] == json.loads(whole.stdout)["metrics"]
    assert _messages(done) == [
        f"mmn-fast: --predictions: cannot write {tmp_path / 'p.jsonl'}: File too large",
        f"mmn-fast: --html: cannot write {tmp_path / 'p.html'}: File too large",
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_figures_go_to_stderr_where_stdout_is_full_and_the_rest_is_written(shapes: Path, tmp_path: Path) -> None:
    arguments = _eval(shapes, "--predictions", tmp_path / "p.jsonl", "--html", tmp_path / "p.html")
    with open("/dev/full", "w") as full:
        done = _run(*arguments, stdout=full)
    assert done.returncode == 1
    assert _messages(done) == ["mmn-fast: stdout: No space left on device; the result follows"]
    assert "R@1,IoU@0.5" in done.stderr
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) > 10
    assert (tmp_path / "p.html").exists()


def test_a_full_stderr_costs_nothing(shapes: Path) -> None:
    with open("/dev/full", "w") as full:
        done = _run(*_eval(shapes), stderr=full)
    assert done.returncode == 0
    assert "R@1,IoU@0.5" in done.stdout


def test_python_gets_the_figures_with_the_error(shapes: Path, tmp_path: Path) -> None:
    engine = mmn_fast.load("demo", threads=1)
    samples = read_annotations(shapes / "test.json", engine.preset)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_features(shapes / "features.h5", engine.preset.feature_key) as store:
        expected = evaluate(engine, samples, store)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
        try:
            with pytest.raises(UnwrittenPredictions, match=r"^predictions: cannot write .*p\.jsonl: ") as caught:
                evaluate(engine, samples, store, predictions=tmp_path / "p.jsonl")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.report.metrics == expected.metrics
    assert list(tmp_path.iterdir()) == []


def test_ground_and_demo_print_though_their_pages_fail(shapes: Path, tmp_path: Path) -> None:
    video = next(iter(json.loads((shapes / "test.json").read_text())))
    page = tmp_path / "p.html"
    ground = ("ground", "-m", "demo", "--features", f"{shapes / 'features.h5'}::{video}", "--duration", 12, "-q", "a")
    for arguments in ((*ground, "--html", page, "--json"), ("demo", "--seed", 1, "--html", page, "--json")):
        done = _run(*arguments, limited=True)
        assert done.returncode == 1
        assert json.loads(done.stdout)["results"]
        *video, message = _messages(done)
        assert message == f"mmn-fast: --html: cannot write {page}: File too large"
        film = page.with_suffix(".mp4")
        assert video == ["mmn-fast: --html: cannot write " + f"{film}: File too large"] * (arguments[0] == "demo")
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_that_does_not_fit_ends_in_one_sentence(tmp_path: Path) -> None:
    arguments = ("data", "shapes", "--train", 2, "--val", 1, "--test", 0, "--workers", 1, "-o", tmp_path / "a" / "b")
    done = _run(*arguments, limited=True)
    assert done.returncode == 1, done.stderr
    assert _messages(done) == [f"mmn-fast: --output: {tmp_path / 'a' / 'b'}: File too large"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("--help",), ("info",)])
def test_stdout_that_takes_nothing_is_one_sentence(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = _run(*arguments, stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("mmn-fast: stdout: No space left on device")
    command = ["sh", "-c", '"$@" >&-', "sh", sys.executable, "-m", "mmn_fast", *arguments]
    closed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert closed.returncode == 1
    assert closed.stderr.startswith("mmn-fast: stdout: Bad file descriptor")


def test_a_closed_pipe_is_quiet(shapes: Path, tmp_path: Path) -> None:
    """The reader leaves before anything is printed; the by-products are still made."""
    reader, writer = os.pipe()
    os.close(reader)
    for arguments, made in (
        (("info",), None),
        (("--help",), None),
        (_eval(shapes, "--predictions", tmp_path / "p.jsonl"), tmp_path / "p.jsonl"),
        (("demo", "--html", tmp_path / "demo.html"), tmp_path / "demo.html"),
    ):
        done = _run(*arguments, stdout=writer)
        assert done.returncode in (1, 141)
        assert _messages(done) == []
        assert made is None or made.exists()
    os.close(writer)


def test_the_next_evaluation_removes_what_a_killed_one_left(shapes: Path, tmp_path: Path) -> None:
    """SIGKILL leaves files, which the next evaluation removes; after SIGTERM nothing is left in the first place."""
    arguments = [*map(str, _eval(shapes, "--predictions", tmp_path / "p.jsonl"))]
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(
            [sys.executable, "-c", _SLOW_EVALUATION, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        while not list(tmp_path.iterdir()):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(number)
        process.wait()
        process.stdout.close()
        assert len(list(tmp_path.iterdir())) == (2 if number == signal.SIGKILL else 0)
    assert _run(*arguments).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


_SLOW_EVALUATION = """
import time
from mmn_fast.engine import Engine
from mmn_fast.cli import main
Engine.score_maps = lambda *_: time.sleep(100)
main()
"""


def test_entries_left_out_are_counted_on_screen_and_in_json_and_refused_if_strict(shapes: Path, tmp_path: Path) -> None:
    content = json.loads((shapes / "test.json").read_text())
    name = next(iter(content))
    content[name]["timestamps"][0] = [5, 3]
    (tmp_path / "test.json").write_text(json.dumps(content))
    arguments = ("eval", "-m", "demo", "--annotations", tmp_path / "test.json", "--features", shapes / "features.h5")
    done = _run(*arguments, "--json")
    (note,) = json.loads(done.stdout)["left_out"]
    total = sum(len(video["sentences"]) for video in content.values())
    assert (note["what"], note["count"], note["total"]) == ("sentences", 1, total)
    (message,) = _messages(done)
    assert message.startswith("mmn-fast: warning: ")
    assert f"1 of {total} sentences left out: " in message
    assert f"first: video {name!r}, sentence {content[name]['sentences'][0]!r}" in message
    refused = _run(*arguments, "--strict")
    assert refused.returncode == 2
    assert name in refused.stderr
