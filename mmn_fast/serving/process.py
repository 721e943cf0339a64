"""The process that serves: opens index and videos, runs uvicorn, ends after SIGTERM when its work is done."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.features.extraction.videos import find_videos
from mmn_fast.features.extractors.base import Extractor
from mmn_fast.index import MomentIndex
from mmn_fast.process.environment import api_key
from mmn_fast.serving.app import create_app
from mmn_fast.serving.demo_library import fill
from mmn_fast.serving.http.admission import admitting
from mmn_fast.serving.http.guard import LOOPBACK
from mmn_fast.serving.library import Library
from mmn_fast.serving.settings import Limits
from mmn_fast.serving.uploads import private_folder
from mmn_fast.storage.documents import read_text

# Seconds that a thread may keep the interpreter while others wait. The engine's thread runs Python between its kernels;
# Python's own 5 ms would be many times a request's own work.
_SWITCH_S = 0.0005
# The event loop accepts one connection per listening socket and round; a round takes up to 50 ms under load. One socket
# would let 60 new connections wait for half a second and longer. A connection that comes alone takes about 0.2 ms more
# of the processor with 32, because all of them look for it.
_LISTENERS = 32


@dataclass(frozen=True)
class Place:
    """Where the service listens, and what it serves.

    Attributes:
        host: address to bind.
        port: port; 0 takes a free one.
        index: the index's directory; None makes one that ends with the process.
        media: folder of video files, one per id of the index.
        key_file: file with the API key; None takes MMN_FAST_API_KEY.
        allowed: further names in the Host header, for a service on this machine's own address.
        temporary: folder for uploads; None takes the system's.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    index: Path | None = None
    media: Path | None = None
    key_file: Path | None = None
    allowed: tuple[str, ...] = ()
    temporary: Path | None = None


def read_key(path: Path | None) -> str | None:
    """The API key: of a file, else of MMN_FAST_API_KEY; None if there is none.

    Raises:
        InputError: the file cannot be read, or the key has fewer than 16 characters or odd ones.
    """
    where = "MMN_FAST_API_KEY" if path is None else "--api-key-file"
    key = api_key() if path is None else read_text(path, f"{where}: {path}", 4096).strip()
    if key is None:
        return None
    if len(key) < 16 or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"{where}: expected a key of at least 16 ASCII characters without spaces, got {len(key)}")
    return key


def serve(
    engine: Engine, place: Place, limits: Limits, *, extractor: Extractor | None = None, demo: bool = False
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        engine: the model.
        place: where and what.
        limits: sizes and times.
        extractor: makes features of uploaded videos; None refuses them.
        demo: put videos of the demo's world into an index that ends with the process.

    Raises:
        InputError: index, folder, key or address cannot be used.
    """
    key = read_key(place.key_file)
    hosts = (*LOOPBACK, *place.allowed) if place.host in LOOPBACK else None
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every malformed form
    with ExitStack() as stack:
        stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(_SWITCH_S)
        stack.callback(gc.unfreeze)  # of what `_Server.startup` has frozen
        folder = stack.enter_context(private_folder(place.temporary))
        files = {} if place.media is None else {one.video_id: one.path for one in find_videos([place.media])}
        if place.index is None:
            index = MomentIndex.create(folder / "index", engine)
            if demo:
                files |= fill(index, folder / "videos", extractor)
        else:
            index = MomentIndex.open(place.index, engine)
        stack.enter_context(index)
        library = Library(index, engine, files)
        app = create_app(engine, library, folder, limits=limits, extractor=extractor, key=key, hosts=hosts)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            proxy_headers=False,  # no answer depends on the client's address
            loop="uvloop",
            http=admitting(app.state.admission),
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,  # longer than proxies keep an idle connection, so that none meets a closed one
            timeout_graceful_shutdown=max(1, round(limits.drain_s)),
        )
        listening = stack.enter_context(_listen(place.host, place.port))
        others = [stack.enter_context(listening.dup()) for _ in range(_LISTENERS - 1)]
        _Server(config, app.state.service).run([listening, *others])


def _listen(host: str, port: int) -> socket.socket:
    """Bind the address."""
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while ")[0]  # Python adds the address
        raise InputError(f"--port: cannot listen at {host}, port {port}: {reason}") from None


class _Server(uvicorn.Server):
    """uvicorn's server, which ends well after SIGTERM: it does not raise the signal again."""

    def __init__(self, config: uvicorn.Config, service: Any) -> None:
        super().__init__(config)
        self._service = service

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT while the service runs."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop to accept; a second signal gives up what is in flight."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = self._service.draining = True

    async def startup(self, sockets: Any = None) -> None:
        """Start, and say where."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # collecting all that is loaded by now takes 60 to 150 ms, in which the loop stands still
        for listening in (sockets or ())[:1]:  # the others are the same one
            host, port = listening.getsockname()[:2]
            print(f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/", flush=True)
