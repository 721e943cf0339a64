"""The public contract at its edges: wrong types, wrong names, extreme sizes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmn_fast
from mmn_fast.checkpoint import DEMO_MODEL
from mmn_fast.embeddings import TextEmbeddings
from mmn_fast.errors import InputError
from mmn_fast.features import load_features, open_features
from mmn_fast.process.cores import usable_cores

FEATURES = np.random.default_rng(0).standard_normal((9, 357)).astype(np.float32)
VIDEO = mmn_fast.Video(FEATURES, 8.0)
QUERY = mmn_fast.Query(VIDEO, ["a red square grows"])
ODD_LISTS: list[Any] = [None, 5, "words", b"words", {"words": 1}, {"words"}]


@pytest.fixture(scope="module", params=["torch", "native"])
def engine(request: pytest.FixtureRequest) -> mmn_fast.Engine:
    return mmn_fast.load("demo", backend=request.param)


@pytest.mark.parametrize("given", ODD_LISTS, ids=repr)
def test_values_other_than_lists_are_refused(given: Any, engine: mmn_fast.Engine) -> None:
    for call, name in (
        (engine.ground, "batch"),
        (engine.score_maps, "batch"),
        (engine.encode_video, "videos"),
        (engine.encode_text, "sentences"),
        (lambda sentences: engine.ground([mmn_fast.Query(VIDEO, sentences)]), r"batch\[0\].sentences"),
        (lambda videos: engine.warmup(videos=videos), "videos"),
    ):
        with pytest.raises(InputError, match=f"^{name}: expected a list of .*, got (one )?{type(given).__name__}"):
            call(given)


def test_top_k_beyond_the_proposals_takes_no_memory(engine: mmn_fast.Engine) -> None:
    every = engine.ground([QUERY], top_k=136)
    assert engine.ground([QUERY], top_k=10**15) == every
    assert engine.score(engine.encode_video([VIDEO]), engine.encode_text(QUERY.sentences), top_k=2**63) == every


@pytest.mark.parametrize("duration_s", [2.0**-99, 2.0**99])
def test_longest_and_shortest_durations_scale_the_moments(duration_s: float, engine: mmn_fast.Engine) -> None:
    """The factors are powers of two, which do not change how an IoU of exactly the threshold rounds."""
    (usual,), (other,) = (
        engine.ground([mmn_fast.Query(mmn_fast.Video(FEATURES, seconds), ["a"])])[0] for seconds in (1.0, duration_s)
    )
    assert [moment.score for moment in other] == [moment.score for moment in usual]
    assert [moment.end_s / duration_s for moment in other] == pytest.approx([moment.end_s for moment in usual])


@pytest.mark.parametrize("duration_s", [1e-31, 1e38, np.float32(3.4e38)])
def test_durations_whose_moments_float32_cannot_hold_are_refused(duration_s: float, engine: mmn_fast.Engine) -> None:
    with pytest.raises(InputError, match="duration_s: expected a positive, finite number of seconds"):
        engine.ground([mmn_fast.Query(mmn_fast.Video(FEATURES, duration_s), ["a"])])


def test_text_that_is_not_unicode_is_refused(engine: mmn_fast.Engine) -> None:
    with pytest.raises(InputError, match=r"^sentences\[1\]: expected text, got '\\udcff' at character 2$"):
        engine.encode_text(["a door", "a \udcff"])


@pytest.mark.parametrize("option", ["model", "preset", "tokenizer"])
@pytest.mark.parametrize("name", [5, b"demo", [], "", "x" * 5000, "a\0b"], ids=lambda name: repr(name)[:9])
def test_bad_names_of_files_are_refused(name: Any, option: str) -> None:
    with pytest.raises(InputError, match=f"^{option}: ") as refusal:
        mmn_fast.load(**{"model": "demo", option: name})
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize("name", [None, 5, "", "x" * 5000], ids=lambda name: repr(name)[:9])
def test_bad_names_of_features_are_refused(name: Any) -> None:
    for read, argument in ((load_features, "source"), (open_features, "path")):
        with pytest.raises(InputError, match=f"^{argument}: ") as refusal:
            read(name)
        assert len(str(refusal.value)) < 200


def test_masked_values_are_refused_and_a_mask_of_nothing_is_not(engine: mmn_fast.Engine) -> None:
    masked = np.ma.masked_array(FEATURES, mask=FEATURES > 3)
    assert masked.mask.any()
    with pytest.raises(InputError, match=r"features: expected a float array .*, got a masked array"):
        engine.ground([mmn_fast.Query(mmn_fast.Video(masked, 8.0), ["a"])])
    whole = mmn_fast.Query(mmn_fast.Video(np.ma.masked_array(FEATURES), 8.0), QUERY.sentences)
    assert engine.ground([whole]) == engine.ground([QUERY])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_a_directory_is_refused_with_the_directory(name: str) -> None:
    with pytest.raises(InputError, match=f"^model: .*{name} is a file of a converted directory; name the directory"):
        mmn_fast.load(DEMO_MODEL / name)


@pytest.mark.parametrize("device", [None, 0, "", "cpu:", "cuda:", "cuda:\u0663", "tpu"])
def test_bad_devices_are_refused_everywhere(device: Any) -> None:
    for ask in (mmn_fast.available_backends, lambda device: mmn_fast.load("demo", device=device)):
        with pytest.raises(InputError, match="^device: expected auto, cpu, cuda or cuda:N, got"):
            ask(device)


@pytest.mark.parametrize("precision", [None, "int4", ["fp32"]])
def test_bad_precisions_are_refused_everywhere(precision: Any) -> None:
    with pytest.raises(InputError, match="^precision: expected auto or one of fp64, fp32"):
        mmn_fast.available_backends(precision=precision)


@pytest.mark.parametrize("given", [[1], "exact", 5])
def test_backend_options_are_a_mapping(given: Any) -> None:
    with pytest.raises(InputError, match="^backend_options: expected a mapping, got"):
        mmn_fast.load("demo", backend_options=given)


def test_a_path_called_demo_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (Path("demo"), Path("./demo"), "./demo"):
        with pytest.raises(InputError, match="^model: demo: no such file"):
            mmn_fast.load(name)


def test_embeddings_are_chosen_as_numpy_chooses(engine: mmn_fast.Engine) -> None:
    text = engine.encode_text(["a", "b", "c"])
    for index, expected in (([True, False, True], "ac"), (np.array([False, True, False]), "b"), ([], ""), (-1, "c")):
        assert "".join(text[index].sentences) == expected
        assert len(text[index].iou) == len(expected)
    for wrong in (3, [0, -4], [True, False], "a"):
        with pytest.raises(IndexError):
            text[wrong]


def test_embeddings_that_cannot_be_written_leave_nothing(tmp_path: Path) -> None:
    text = TextEmbeddings(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), "of no model", ("a",))
    (tmp_path / "folder").mkdir()
    for name in ("folder", "absent/file"):
        with pytest.raises(InputError, match=f"^path: cannot write .*{name}"):
            text.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.slow
def test_more_threads_than_cores_are_not_started() -> None:
    assert mmn_fast.load("demo", backend="torch", threads=4096).info()["threads"] == usable_cores()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("threads", [None, 2])
def test_a_forked_process_does_not_wait_for_its_parents_threads(threads: int | None) -> None:
    code = f"""
import os, sys, numpy as np, mmn_fast
engine = mmn_fast.load("demo", backend="torch", threads={threads})
batch = [mmn_fast.Query(mmn_fast.Video(np.ones((9, 357), np.float32), 3.0), ["a red square"])]
engine.ground(batch)
child = os.fork()
if child == 0:
    import signal
    signal.alarm(30)
    engine.ground(batch)
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""
    status = subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode
    assert status == 0, "killed by the alarm" if status == signal.SIGALRM else f"status {status}"


def test_backends_are_listed_without_pytorch() -> None:
    code = "import sys; sys.modules['torch'] = None\nimport mmn_fast; print(mmn_fast.available_backends()['torch'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "torch is not installed (pip install torch)", done.stderr


def test_progress_does_not_go_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    batch = [mmn_fast.Query(mmn_fast.Video(FEATURES * factor, 8.0), ["a"]) for factor in (1, np.float32(-1))]
    batch += [mmn_fast.Query(mmn_fast.Video(np.roll(FEATURES, number + 1), 8.0), ["a"]) for number in range(16)]
    mmn_fast.load("demo", progress=True).ground(batch)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err != ""  # without a terminal the bar is one empty line
