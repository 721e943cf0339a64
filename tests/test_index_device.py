"""A search on a device, here on the operators' twins, finds what the CPU finds; an absent device is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mmn_fast import MomentIndex
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.index import search
from tests.index_task import random_text, random_videos, tiny_engine
from tests.tolerances import check_close


@pytest.mark.parametrize("per_video", [1, 3])
def test_a_device_finds_the_same_moments(tmp_path: Path, per_video: int) -> None:
    engine = tiny_engine(tmp_path)
    text = random_text(engine, 4)
    with MomentIndex.create(tmp_path / "it", engine) as index:
        index.add(random_videos(engine, [f"video {n}" for n in range(9)], 1, cut=(2, 7)))
        snapshot = index._snapshot
        everything, options = snapshot.wanted(None), {"top_k": 6, "per_video": per_video}
        expected = index.search(text, **options)
        found = search.find_moments(snapshot, text, everything, search.Wanted(**options, on=torch.device("cpu")))
        for ours, theirs in zip(found, expected, strict=True):
            assert [(m.video_id, m.start_s, m.end_s) for m in ours] == [
                (m.video_id, m.start_s, m.end_s) for m in theirs
            ]
            check_close([m.score for m in ours], [m.score for m in theirs], "gpu_fused")


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    engine = tiny_engine(tmp_path)
    with MomentIndex.create(tmp_path / "it", engine) as index:
        for device in ("tpu", "cuda:x", 0):
            with pytest.raises(InputError, match=re.escape(f"device: expected cpu, cuda or cuda:N, got {device!r}")):
                index.search(random_text(engine, 1), device=device)  # type: ignore[arg-type]
        if not torch.cuda.is_available():
            with pytest.raises(BackendUnavailable, match="device 'cuda': "):
                index.rank_videos(random_text(engine, 1), device="cuda")
