"""Messages of a run: how it begins, to how many epochs it was extended, and which parts will never learn."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from mmn_fast.errors import InputError
from mmn_fast.presets import TextEncoderConfig
from mmn_fast.training.initial import new_model, parse_text_encoder
from mmn_fast.training.run.trainer import train
from tests.training_runs import Crash, assert_same_run, crash_at, options
from tests.training_task import PRESET, TEXT


def recipe(task: dict[str, Path], **changes: Any) -> Any:
    return dataclasses.replace(options(task, Path()).recipe, **changes)  # type: ignore[type-var]


@pytest.mark.slow
def test_a_run_says_how_it_begins(
    task: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = {"checkpoint_every": 1, "progress": True}
    with monkeypatch.context() as patch:
        crash_at(patch, 4)
        with pytest.raises(Crash):
            train(options(task, tmp_path / "run", **said))
    assert "starting anew; 9 steps in 3 epochs" in capsys.readouterr().err
    train(options(task, tmp_path / "run", resume=True, **said))
    assert "resuming at step 4 of 9, epoch 2 of 3" in capsys.readouterr().err
    train(options(task, tmp_path / "run", resume=True, **said))
    assert "nothing left to do: all 9 steps of 3 epochs are done" in capsys.readouterr().err
    one = recipe(task, epochs=1)
    train(options(task, tmp_path / "other", resume=True, recipe=one, **said))
    assert "starting anew: " in (err := capsys.readouterr().err)
    assert "checkpoint.pt does not exist; 3 steps in 1 epochs" in err
    train(options(task, tmp_path / "quiet", recipe=one))
    assert "starting" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("done", [2, 1], ids=["finished", "in the middle"])
def test_an_extended_run_is_the_one_that_was_begun_with_more_epochs(
    done: int,
    task: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(options(task, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        if done == 1:
            crash_at(patch, 3)
            with pytest.raises(Crash):
                train(options(task, tmp_path / "run", recipe=recipe(task, epochs=2)))
        else:
            train(options(task, tmp_path / "run", recipe=recipe(task, epochs=2)))
    capsys.readouterr()
    train(options(task, tmp_path / "run", resume=True, progress=True))
    said = f"extended from 2 to 3 epochs, of which {done} are done; the milestones stay where they are (2)"
    assert said in capsys.readouterr().err
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "rates", "message"),
    [
        ({"epochs": 1, "freeze_text_epochs": 1}, {}, r"it is frozen for all 1 epochs \(freeze_text_epochs is 1"),
        ({"epochs": 1, "freeze_text_epochs": 0}, {"text_rate": 0}, r"its learning rate is 0 \(text_rate\)"),
        ({"epochs": 1, "freeze_text_epochs": 0}, {}, None),
    ],
)  # fmt: skip
def test_a_fresh_text_encoder_that_never_learns_is_warned_of(
    changes: Any,
    rates: Any,
    message: str | None,
    task: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        first = train(options(task, tmp_path / "run", recipe=recipe(task, **changes), **rates))
    assert ("its weights are random and will stay so" in caplog.text) == (message is not None)
    if message is not None:
        assert re.search(message, caplog.text)
        caplog.clear()
        from_first = {"init": first, "text_encoder": None, "tokenizer": None}
        train(options(task, tmp_path / "next", recipe=recipe(task, **changes), **from_first, **rates))
        assert "random" not in caplog.text


def test_sizes_of_a_text_encoder_follow_from_its_width() -> None:
    assert dataclasses.astuple(parse_text_encoder("width=256", 99)) == (99, 512, 256, 6, 4, 1024)
    assert dataclasses.astuple(parse_text_encoder("width=48,num_layers=2", 99)) == (99, 512, 48, 2, 1, 192)
    assert dataclasses.astuple(parse_text_encoder("width=768", 30522)) == dataclasses.astuple(TextEncoderConfig())
    assert dataclasses.astuple(parse_text_encoder("num_layers=1", 7)) == (7, 512, 768, 1, 12, 3072)
    with pytest.raises(InputError, match="width: expected a multiple of num_heads"):
        parse_text_encoder("width=200", 99)


def test_the_vocabulary_is_as_large_as_the_tokenizers(task: dict[str, Path]) -> None:
    sizes = TextEncoderConfig(max_tokens=12, width=16, num_layers=1, num_heads=2, ffn_width=32)
    _, config, tokenizer, _ = new_model(PRESET, sizes, task["tokenizer"], None, 0.1)
    assert config == TEXT
    assert config.vocab_size == tokenizer.vocab_size
    wrong = dataclasses.replace(sizes, vocab_size=99)
    with pytest.raises(InputError, match="vocab_size: expected the tokenizer's 20, got 99"):
        new_model(PRESET, wrong, task["tokenizer"], None, 0.1)
