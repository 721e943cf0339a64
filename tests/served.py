"""An application over the demo's model, for tests of the service."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from starlette.testclient import TestClient

import mmn_fast
from mmn_fast.demo.shapes import make_video
from mmn_fast.serving.app import create_app
from mmn_fast.serving.library import Library
from mmn_fast.serving.settings import Limits
from mmn_fast.types import Video

SENTENCES = ["the violet star drifts to the bottom", "the yellow triangle is sliding downwards"]


def shapes(number: int) -> Video:
    """A video of the demo's world, as its features."""
    drawn = make_video("test", 0, number)
    return Video(drawn.features, drawn.duration_s, drawn.video_id)


@contextmanager
def made_app(folder: Path, *, videos: int = 2, files: dict[str, Path] | None = None, **options: Any) -> Iterator[Any]:
    """An application with an index of some videos; it has not started."""
    engine = mmn_fast.load("demo", threads=1)
    (folder / "private").mkdir()
    with mmn_fast.MomentIndex.create(folder / "index", engine) as index:
        if videos:
            index.add(shapes(number) for number in range(videos))
        options.setdefault("limits", Limits())
        yield create_app(engine, Library(index, engine, files), folder / "private", **options)


@contextmanager
def client_of(folder: Path, **options: Any) -> Iterator[TestClient]:
    """A client of a started application; `client.app.state.service` holds its parts."""
    with made_app(folder, **options) as app, TestClient(app, raise_server_exceptions=False) as client:
        yield client


@contextmanager
def serving(index: Path, *options: str) -> Iterator[tuple[Any, str]]:
    """A process that serves an index, and its address."""
    command = [sys.executable, "-m", "mmn_fast", "serve", "--model", "demo", "--index", str(index), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.communicate()
        for _ in range(500):
            if httpx.get(f"{address}readyz").status_code == 200:
                break
            time.sleep(0.02)
        yield process, address
    finally:
        process.kill()
        process.communicate()
