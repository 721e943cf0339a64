"""`mmn-fast export`: early refusals, the files that it makes, and what remains if it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmn_fast.cli import app
from mmn_fast.errors import InputError
from mmn_fast.export.deploy import Deployment
from mmn_fast.export.to_onnx import export
from mmn_fast.export.verify import verify

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "options",
    [
        *(["--precision", "fp32"], ["--what", "all"], ["--raw-features"], ["--top-k", "5"]),
        *(["--max-recall-loss", "1"], ["--preset", "shapes"], ["--tokenizer", "x"]),
    ],
)
def test_options_of_the_graphs_are_not_ignored_where_the_model_is_an_export(
    options: list[str], demo_export: Path, tmp_path: Path
) -> None:
    command = ["export", str(demo_export), "--triton-repository", str(tmp_path / "models"), *options]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, InputError)
    assert str(result.exception).startswith(f"{options[0]}: this option is for making graphs, but {demo_export} is an")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--raw-features", "--triton-repository", "{tmp}/models"], "video.onnx takes source rows, but a batch needs"),
        (["--what", "video,score", "--triton-repository", "{tmp}/models"], "{tmp}/out has no text graph; export the"),
        (["--triton-repository", "{tmp}/out"], "{tmp}/out would contain the export {tmp}/out; name another"),
        (["--triton-repository", "{tmp}"], "{tmp} exists; name a directory that does not"),
    ],
)
def test_exports_that_could_not_be_served_are_refused_before_they_are_made(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmn_fast.export.to_onnx.load_model", lambda *_: pytest.fail("work was begun"))
    filled = [option.format(tmp=tmp_path) for option in options]
    result = CliRunner().invoke(app, ["export", "demo", "-o", str(tmp_path / "out"), *filled])
    assert isinstance(result.exception, InputError), result.exception
    assert message.format(tmp=tmp_path) in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_plans_of_source_rows_are_refused_before_the_graphs_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmn_fast.export.deploy.tensorrt_unavailable", lambda: None)
    wish = Deployment(True, "same-gpu", False, False, None)
    with pytest.raises(InputError, match="tensorrt: video.onnx takes source rows, but a plan needs pre-clips"):
        wish.check(tmp_path / "out", ["video"], True)
    wish.check(tmp_path / "out", ["text", "score"], True)
    wish.check(tmp_path / "out", ["video"], False)


def test_weights_that_pass_two_gigabytes_stand_in_a_file_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmn_fast.export.to_onnx._EXTERNAL_DATA_BYTES", 1000)
    output = export("demo", tmp_path / "out", what=["text"]).rename(tmp_path / "a moved éxport")
    assert (output / "text.onnx").stat().st_size < (output / "text.onnx.data").stat().st_size
    verify(output)
    (output / "text.onnx.data").rename(output / "other.data")
    with pytest.raises(InputError, match=r"text.onnx.data is missing; the manifest lists it"):
        verify(output)


def test_an_export_leaves_files_that_another_process_is_writing(tmp_path: Path) -> None:
    """The other process may even have the same number, as is common in containers."""
    other = tmp_path / f".out.partial-{os.getpid()}"
    other.mkdir()
    (other / "video.onnx").write_bytes(b"half")
    export("demo", tmp_path / "out", what=["score"])
    assert (other / "video.onnx").read_bytes() == b"half"


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_export_leaves_nothing(stop: signal.Signals, status: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmn_fast", "export", "demo", "-o", str(tmp_path / "out")]
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Shells start background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not list(tmp_path.glob(".out.partial-*")):
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    running.send_signal(stop)
    running.communicate(timeout=60)
    assert running.returncode == status
    assert list(tmp_path.iterdir()) == []
