"""If the cache of tunings cannot be written, this call still works, and the next one measures again."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mmn_fast.geometry import plan_for
from mmn_fast.kernels.cpu import autotune
from mmn_fast.kernels.gpu.conv import block_sizes
from mmn_fast.kernels.gpu.conv.block_sizes import GatherConfig
from tests.training_task import PRESET


def test_a_tuning_that_cannot_be_kept_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").touch()  # a file, so no cache can be written there
    monkeypatch.setenv("MMN_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(autotune, "_measure", lambda *_: 1.0)
    plan = plan_for(PRESET)
    with caplog.at_level(logging.WARNING, "mmn_fast"):
        seconds = autotune.tuned_seconds(plan, [(24, 24)] * len(plan.layers), "fp32", True, 1)
    assert len(seconds) == len(plan.layers)
    assert "cannot be kept" in caplog.text


def test_choices_that_cannot_be_kept_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    triton_tuning = pytest.importorskip("mmn_fast.kernels.gpu.conv.autotune")
    (tmp_path / "cache" / "tuning").mkdir(parents=True)
    monkeypatch.setenv("MMN_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(block_sizes, "write_whole", lambda *_, **__: (tmp_path / "missing" / "x").write_bytes(b""))
    with caplog.at_level(logging.WARNING, "mmn_fast"):
        triton_tuning._keep("sm_90", "key", GatherConfig(64, 64, 64, 4, 3, 1))
    assert "cannot be kept" in caplog.text


def test_without_a_home_directory_there_is_a_warning_and_no_cache(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def home() -> Path:
        raise RuntimeError(
            "Could not determine home directory."
        )  # Python's error if HOME is unset and the user unknown

    for name in ("MMN_FAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)
    monkeypatch.setattr(autotune, "_measure", lambda *_: 1.0)
    plan = plan_for(PRESET)
    with caplog.at_level(logging.WARNING, "mmn_fast"):
        assert len(autotune.tuned_seconds(plan, [(24, 24)] * len(plan.layers), "fp32", True, 1)) == len(plan.layers)
        assert block_sizes.kept_config((9, 0), "key") is None
        assert block_sizes.kept_times("sm_90", "key") is None
    (record,) = caplog.records
    assert (
        "the tuning cannot be kept (there is no home directory; MMN_FAST_CACHE can name another)" in record.getMessage()
    )
    triton_tuning = pytest.importorskip("mmn_fast.kernels.gpu.conv.autotune")
    with caplog.at_level(logging.WARNING, "mmn_fast"):
        triton_tuning._keep("sm_90", "key", GatherConfig(64, 64, 64, 4, 3, 1))
    assert "tuned choices cannot be kept (there is no home directory" in caplog.text
