"""A run on a disk that fills up keeps the last good checkpoint, says how to resume, and resumes to the same bits."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from mmn_fast.checkpoint import load_model
from mmn_fast.errors import WriteError
from mmn_fast.training.run import output
from mmn_fast.training.run.progress import Log
from mmn_fast.training.run.trainer import train
from tests.training_runs import lines, options
from tests.training_task import write_task


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_task(tmp_path_factory.mktemp("task"), 20, 0)


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one(
    task: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(options(task, tmp_path / "whole"))
    real, calls = output.write_checkpoint, []

    def second_fails(content: Any, path: str) -> None:
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(content, path)

    with monkeypatch.context() as patch:
        patch.setattr(output, "write_checkpoint", second_fails)
        with pytest.raises(WriteError) as caught:
            train(options(task, tmp_path / "cut"))
    step = lines(tmp_path / "whole")[-1]["step"] // 3
    assert str(caught.value) == (
        f"output: cannot write {tmp_path / 'cut' / 'checkpoint.pt'}: No space left on device; the checkpoint of step"
        f" {step} is whole: free some space, then resume goes on from there (--resume)"
    )
    assert not list((tmp_path / "cut").glob(".*"))
    resumed = train(options(task, tmp_path / "cut", resume=True))
    assert load_model(resumed).fingerprint == load_model(whole).fingerprint


def test_lines_of_the_log_wait_for_room(tmp_path: Path) -> None:
    class Full:
        name = "log.jsonl"
        room = 5
        taken = b""

        def write(self, data: bytes) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            part = data[: self.room]
            self.taken, self.room = self.taken + part, self.room - len(part)
            return len(part)

        def close(self) -> None:
            pass

    with Log(tmp_path / "log.jsonl", 0) as log:
        assert log._file is not None
        log._file.close()
        disk = Full()
        log._file = disk  # type: ignore[assignment]
        log.write({"step": 1})
        assert log.failure == "No space left on device"
        assert disk.taken == b'{"ste'
        disk.room = 1000
        log.write({"step": 2})
        assert log.failure is None
    assert [json.loads(line)["step"] for line in disk.taken.splitlines()] == [1, 2]
