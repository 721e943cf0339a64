"""Writers of an index are killed at random moments while others read it: nobody sees half a change, nothing is lost.

Videos come and go in pairs, and the embeddings of a video follow from its name, so that a reader can check what it
sees.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mmn_fast
from mmn_fast import MomentIndex
from mmn_fast.embeddings import VideoEmbeddings
from mmn_fast.index import writing
from tests.index_task import brute_force, random_text, random_videos, tiny_engine
from tests.processes import not_for_ever  # noqa: F401 - a fixture

TEXT_SEED = 5


def _pair(engine: mmn_fast.Engine, number: int) -> VideoEmbeddings:
    return random_videos(engine, [f"{number} a", f"{number} b"], number, cut=(number % 3,))


def _child(work: Callable[[], object]) -> int:
    """Run a function in a forked child that never returns; the child's number."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _write(path: Path, engine: mmn_fast.Engine, first: int, pipe: int) -> None:
    """Change the index for ever; say every change before and after it happens."""
    os.fsync = lambda *_: None  # matters for power cuts; without its wait, kills fall into all other steps
    rng, number = random.Random(first), first
    with MomentIndex.open(path, engine) as index:
        while True:
            pairs = sorted({int(name.split()[0]) for name in index.video_ids})
            change = rng.choice(["add", "add", "add", "replace", "remove", "compact"])
            if change == "add" and len(pairs) < 12:
                os.write(pipe, f"add {number}\n".encode())
                index.add(_pair(engine, number))
                number += 1
            elif change == "replace" and pairs:
                chosen = rng.choice(pairs)
                os.write(pipe, f"replace {chosen}\n".encode())
                index.add(_pair(engine, chosen), replace=True)
            elif change == "remove" and pairs:
                chosen = rng.choice(pairs)
                os.write(pipe, f"remove {chosen}\n".encode())
                index.remove([f"{chosen} a", f"{chosen} b"])
            else:
                os.write(pipe, b"compact\n")
                index.compact()
            os.write(pipe, b"done\n")


def _read(path: Path, engine: mmn_fast.Engine, stop: Path, pipe: int) -> None:
    """Search the index until a file appears, and check every state that is seen."""
    text, rng, states = random_text(engine, 1, TEXT_SEED), random.Random(1), 0
    index = MomentIndex.open(path, engine)
    while not stop.exists():
        states += index.refresh()
        if rng.random() < 0.3:
            index.close()
            index = MomentIndex.open(path, engine)
        _check(index, engine, rng)
        found = index.search(text, 4, 2)[0]
        ids = [name for name in index.video_ids if name in {match.video_id for match in found}]
        chosen = index.embeddings(ids)
        assert found == brute_force(engine, chosen, text, 4, 2)[0]
    os.write(pipe, f"{states}\n".encode())


def _check(index: MomentIndex, engine: mmn_fast.Engine, rng: random.Random) -> None:
    """Videos stand in pairs, and a video has the embeddings of its name."""
    ids = index.video_ids
    assert ids[1::2] == [name[:-1] + "b" for name in ids[::2]]
    if ids:
        number = int(rng.choice(ids).split()[0])
        found, wanted = index.embeddings([f"{number} a", f"{number} b"]), _pair(engine, number)
        assert np.array_equal(found.iou, wanted.iou.astype(np.float16).astype(np.float32))
        assert found.spans == wanted.spans


def _after(pairs: list[int], change: str) -> list[int]:
    """The pairs that are there after a change."""
    kind, _, number = change.partition(" ")
    if kind == "compact":
        return pairs
    left = [pair for pair in pairs if pair != int(number)]
    return left if kind == "remove" else [*left, int(number)]


def _kill_writers(root: Path, kills: int) -> None:
    engine = tiny_engine(root)
    path, stop, rng = root / "it", root / "stop", random.Random(kills)
    MomentIndex.create(path, engine).close()
    ours, theirs = os.pipe()
    reader = _child(lambda: _read(path, engine, stop, theirs))
    pairs: list[int] = []
    half_done = finished = 0  # changes that were not reported as done, and those among them that had happened
    for kill in range(kills):
        said, says = os.pipe()
        writer = _child(lambda kill=kill, says=says: _write(path, engine, 1000 * (kill + 1), says))  # type: ignore[misc]
        os.close(says)
        with os.fdopen(said) as log:
            lines = [log.readline().rstrip() for _ in range(rng.choice((1, 3, 5)))]  # in the middle of this change
            time.sleep(rng.choice((0.001, 0.005, 0.02)) * rng.random())
            os.kill(writer, signal.SIGKILL)
            assert os.waitpid(writer, 0)[1] == signal.SIGKILL, "the writer failed by itself"
            lines += log.read().splitlines()
        changes = [line for line in lines if line != "done"]
        for change in changes[: lines.count("done")]:
            pairs = _after(pairs, change)
        with MomentIndex.open(path, engine) as index:
            found = [int(name.split()[0]) for name in index.video_ids[::2]]
            after = _after(pairs, changes[-1]) if len(changes) > lines.count("done") else pairs
            assert found in (pairs, after), (pairs, changes[-1:])
            half_done += after != pairs
            finished += after != pairs and found == after
            pairs = found
            _check(index, engine, rng)
            assert index.verify() == []
        assert os.waitpid(reader, os.WNOHANG) == (0, 0), "the reader failed"
    stop.touch()
    assert os.waitpid(reader, 0)[1] == 0, "the reader failed"
    states = int(os.read(ours, 100))
    print(f"{kills} kills, {half_done} within a change, {finished} of these after its commit; {states} states read")
    assert states > kills // 4
    assert half_done > kills // 4
    with writing.writing(path) as manifest:
        named = {record.file for record in manifest.shards}
    assert {file.name for file in (path / "shards").iterdir()} == named
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "shards", "write.lock"]


@pytest.mark.slow
def test_killed_writers_leave_the_last_state(tmp_path: Path) -> None:
    _kill_writers(tmp_path, 30)


@pytest.mark.long
def test_two_hundred_killed_writers(tmp_path: Path) -> None:
    _kill_writers(tmp_path, 200)
