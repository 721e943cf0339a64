"""serve: a web service on one machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmn_fast.cli.app import app
from mmn_fast.cli.options import EngineOptions, Model
from mmn_fast.errors import InputError

if TYPE_CHECKING:
    from mmn_fast.engine import Engine
    from mmn_fast.features.extractors.base import Extractor

_MIB = 2**20
_NEEDS = "serve: needs FastAPI, uvicorn and others (pip install mmn_fast[serve])"


@dataclasses.dataclass(frozen=True)
class ServingOptions:
    """Limits of the service."""

    max_body_mib: Annotated[int, typer.Option("--max-body", help="Most MiB of JSON or features.")] = 64
    max_upload_mib: Annotated[int, typer.Option("--max-upload", help="Most MiB of an uploaded video.")] = 1024
    max_video_s: Annotated[float, typer.Option("--max-video", help="Longest uploaded video, seconds.")] = 3600.0
    max_rows: Annotated[int, typer.Option("--max-rows", help="Most feature rows of a video.")] = 65_536
    max_sentences: Annotated[int, typer.Option("--max-sentences", help="Most sentences of a request.")] = 64
    max_top_k: Annotated[int, typer.Option("--max-top-k", help="Most moments per sentence.")] = 100
    deadline_s: Annotated[float, typer.Option("--deadline", help="Refuse a request after so many seconds.")] = 30.0
    max_waiting: Annotated[int, typer.Option("--max-waiting", help="Most requests that wait for the engine.")] = 64
    max_batch: Annotated[int, typer.Option("--max-batch", help="Most requests in one call of the engine.")] = 32
    drain_s: Annotated[float, typer.Option("--drain", help="Seconds to finish requests after SIGTERM.")] = 30.0


@app.command()
def serve(
    *,
    model: Model = None,
    index: Annotated[Path | None, typer.Option("--index", help="The index to search; default: an empty one.")] = None,
    media: Annotated[
        Path | None, typer.Option("--media", help="Folder of the index's video files, to show hits with.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="File with the key that requests bring.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="A further name of this machine, if it listens at its own address."),
    ] = None,
    temporary: Annotated[Path | None, typer.Option("--temporary", help="Folder for uploads.")] = None,
    extractor: Annotated[
        str | None, typer.Option("--extractor", help="For uploads: the extractor, if the model does not say it.")
    ] = None,
    limits: ServingOptions,
    loading: EngineOptions,
) -> None:
    """Serve a model on the web: ground, search, a page at /. Without --model, the demo's model and videos."""
    try:
        from mmn_fast.serving import process
        from mmn_fast.serving.settings import Limits
    except ImportError as error:
        raise InputError(f"{_NEEDS}: {error}") from None
    from mmn_fast.index.manifest import read_manifest

    named = model or (None if index is None else read_manifest(index).model)
    demo = named is None
    engine = loading.load(named or "demo", progress=False)  # a bar costs two threads per call
    if engine.preset.of_tubes:
        raise InputError(f"--model: expected a model of videos, got one of tubes, preset {engine.preset.name!r}")
    given = dataclasses.asdict(limits)
    given["max_body_bytes"] = given.pop("max_body_mib") * _MIB
    given["max_upload_bytes"] = given.pop("max_upload_mib") * _MIB
    place = process.Place(host, port, index, media, api_key_file, tuple(allow_host or ()), temporary)
    made = _extractor(engine, extractor)
    process.serve(engine, place, Limits(**given), extractor=made, demo=demo and index is None)


def _extractor(engine: Engine, named: str | None) -> Extractor | None:
    """The extractor for uploads; None if the model does not say how its features are made, or PyAV is missing."""
    from mmn_fast.cli.videos.extractors import chosen_extractor

    if named is not None:
        return chosen_extractor(engine, named, False)
    if engine.contract is None:
        return None
    try:
        return chosen_extractor(engine, None, False)
    except InputError as error:
        typer.echo(f"mmn-fast: warning: videos cannot be uploaded: {error}", err=True)
        return None
