"""The FastAPI application: routes, and what they take and give."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response
from starlette.types import ASGIApp

from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.features.extractors.base import Extractor
from mmn_fast.serving.batching import Batcher, JobQueue
from mmn_fast.serving.http import described
from mmn_fast.serving.http.admission import Admission
from mmn_fast.serving.http.guard import Guard, ShortCut
from mmn_fast.serving.http.incoming import Incoming
from mmn_fast.serving.http.outgoing import json_response
from mmn_fast.serving.http.problems import REFUSALS, Problem, answer_error, busy
from mmn_fast.serving.library import Library
from mmn_fast.serving.service import Service, check_id, unless_gone
from mmn_fast.serving.settings import Limits
from mmn_fast.serving.work import Ground, Job, Search
from mmn_fast.types import Video
from mmn_fast.version import __version__
from mmn_fast.viz.svg import palette_css
from mmn_fast.viz.svg import static as viz_static

_GROUND = ("sentences", "top_k", "maps", "window_s", "overlap", "video", "video_id", "duration_s", "key", "features")
_SEARCH = ("sentences", "top_k", "per_video", "min_score", "videos")
_ADD = ("video_id", "duration_s", "replace", "window_s", "overlap", "key", "features")
_STATIC = {"serve.js": "text/javascript", "serve.css": "text/css", "icon.svg": "image/svg+xml"}


class _Application(FastAPI):
    """FastAPI with the guard around all of its layers."""

    guard: Callable[[ASGIApp], ASGIApp]

    def build_middleware_stack(self) -> ASGIApp:
        return self.guard(super().build_middleware_stack())


def _telemetry() -> Any:
    """FastAPI's setting: no telemetry, unless OpenTelemetry is configured by now or FastAPI is to configure it.

    By itself, FastAPI asks for every request, which takes a tenth of the event loop's time for an answer by id.
    """
    try:
        from opentelemetry import _logs, metrics, trace
    except ImportError:  # a FastAPI without OpenTelemetry takes no notice of the setting
        return None
    providers = trace.get_tracer_provider(), metrics.get_meter_provider(), _logs.get_logger_provider()
    if os.environ.get("FASTAPI_OTEL_AUTO_CONFIGURE") or not all("Proxy" in type(one).__name__ for one in providers):
        return None
    return {"tracing": False, "metrics": False, "logs": False}


def create_app(
    engine: Engine,
    library: Library,
    folder: Path,
    *,
    limits: Limits | None = None,
    extractor: Extractor | None = None,
    key: str | None = None,
    hosts: Collection[str] | None = None,
    queue: Callable[..., JobQueue[Job]] = Batcher,
) -> FastAPI:
    """Make the application.

    Args:
        engine: the model.
        library: the index that it searches.
        folder: private folder for uploads (`uploads.private_folder`).
        limits: sizes and times; None takes the defaults.
        extractor: makes features of uploaded videos; None refuses them.
        key: API key that requests must bring.
        hosts: accepted names in the Host header; None accepts all.
        queue: makes the queue before the engine, as `Batcher` does.

    Returns:
        The application; `app.state.service` holds its parts, `app.state.admission` is for
        `http.admission.admitting`.
    """
    limits = limits or Limits()
    service = Service(engine, library, folder, limits, extractor, queue)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = _Application(
        title="mmn_fast",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry=_telemetry(),
    )
    app.state.service = service
    app.state.admission = admission = Admission(lambda: service.waiting, limits.max_waiting, service.metrics)
    short_cuts: dict[str, ShortCut] = {}
    app.guard = partial(
        Guard,
        metrics=service.metrics,
        max_active=limits.max_waiting + service.calls * limits.max_batch + limits.max_uploads,
        key=key,
        hosts=hosts,
        draining=lambda: service.draining,
        admission=admission,
        short_cuts=short_cuts,
    )
    for kind in (*REFUSALS, Exception):
        app.add_exception_handler(kind, answer_error)
    short_cuts.update(_add_engine_routes(app, service))
    _add_video_routes(app, service)
    _add_file_routes(app, service)
    _add_state_routes(app, service)
    return app


def _add_engine_routes(app: FastAPI, service: Service) -> dict[str, ShortCut]:
    """Add the routes that ask the engine; return the functions of those that `QUEUED` names."""
    examples = described.examples(service)

    @app.post("/v1/ground", openapi_extra=described.body("ground", examples, service.extractor is not None))
    async def ground(request: Request) -> Response:
        """Find the moments that sentences describe, in one video: its features, its file, or its id in the index."""
        with ExitStack() as stack:
            given = await service.read(request, _GROUND, stack, service.extractor is not None)
            return json_response(await unless_gone(request, _ground(service, given)))

    @app.post("/v1/search", openapi_extra=described.body("search", examples, False))
    async def search(request: Request) -> Response:
        """Find the best moments of all videos of the index."""
        with ExitStack() as stack:
            given = (await service.read(request, _SEARCH, stack, False)).values
        job = Search(**_with_sentences(given))
        return json_response(await unless_gone(request, service.answer(job)))

    @app.get("/v1/model")
    async def model() -> dict[str, Any]:
        """The model and how it runs: sizes, features, backend; and the service's limits."""
        info = service.engine.info()
        info["model"] = Path(str(info["model"])).name  # the rest of a path is no client's business
        return {**info, "uploads": service.extractor is not None, "limits": vars(service.limits)}

    return {"/v1/ground": ground, "/v1/search": search}


def _with_sentences(values: dict[str, Any]) -> dict[str, Any]:
    if "sentences" not in values:
        raise InputError("sentences: expected a list of texts, got none")
    return values


def _ground(service: Service, given: Incoming) -> Awaitable[Any]:
    """The answer to a request to ground sentences."""
    values = _with_sentences(given.values)
    names = ("sentences", "top_k", "maps", "window_s", "overlap")
    options: dict[str, Any] = {name: values[name] for name in names if name in values}
    if ("video" in values) + (given.features is not None) + (given.upload is not None) != 1:
        raise InputError("body: expected one of video (an id of the index), features, or an uploaded video")
    if given.upload is not None:
        return _ground_upload(service, given, given.upload, options)
    return service.answer(Ground(values["video"] if "video" in values else _video_of(given), **options))


async def _ground_upload(service: Service, given: Incoming, upload: Path, options: dict[str, Any]) -> Any:
    video = await service.uploaded(upload, _name_of(given))
    return await service.answer(Ground(video, **options), service.limits.upload_deadline_s)


def _name_of(given: Incoming) -> str:
    name: str = given.values.get("video_id", given.name)
    return name


def _video_of(given: Incoming) -> Video:
    """The video that a request brings as features."""
    if "duration_s" not in given.values:
        raise InputError("duration_s: expected the video's length in seconds with features, got none")
    return Video(given.features, given.values["duration_s"], _name_of(given))


def _add_video_routes(app: FastAPI, service: Service) -> None:
    library, examples = service.library, described.examples(service)

    @app.post(
        "/v1/videos", status_code=201, openapi_extra=described.body("add", examples, service.extractor is not None)
    )
    async def add(request: Request) -> Response:
        """Add a video to the index: its features, or its file."""
        with ExitStack() as stack:
            given = await service.reader.read(request, _ADD, stack, service.extractor is not None)
            values, upload = given.values, given.upload
            if (given.features is None) == (upload is None):
                raise InputError("body: expected features, or an uploaded video")
            video_id = check_id(_name_of(given))

            async def work() -> None:
                video = _video_of(given) if upload is None else await service.uploaded(upload, video_id)
                windows = values.get("window_s"), values.get("overlap")
                await service.changing(
                    lambda: _add(service, video, values.get("replace", False), *windows),
                    bounded=upload is None,  # an uploaded video has had its turn
                )

            await unless_gone(request, work())
        return json_response(library.describe(video_id), 201)

    @app.get("/v1/videos")
    async def videos(offset: int = 0, limit: int = 100) -> dict[str, Any]:
        """List the videos of the index."""
        if offset < 0 or not 1 <= limit <= 1000:
            raise Problem(422, f"limit: expected 1 to 1000, and an offset >= 0, got {limit} and {offset}")
        return library.page(offset, limit)

    @app.get("/v1/videos/{video_id:path}")
    async def video(video_id: str) -> dict[str, Any]:
        """One video of the index."""
        return library.describe(video_id)

    @app.delete("/v1/videos/{video_id:path}", status_code=204)
    async def remove(video_id: str) -> Response:
        """Remove a video from the index."""
        await service.changing(lambda: library.remove(video_id))
        return Response(status_code=204)


def _add(service: Service, video: Video, replace: bool, window_s: float | None, overlap: float | None) -> None:
    with service.metrics.stage("add"):
        service.library.add(video, replace, window_s, overlap)


def _add_file_routes(app: FastAPI, service: Service) -> None:
    library = service.library

    @app.get("/v1/thumbnails/{video_id:path}")
    async def thumbnail(video_id: str, at_s: float = 0.0) -> Response:
        """A frame of a video, if its file is at hand."""
        if not 0 <= at_s < 1e9:
            raise Problem(422, f"at_s: expected seconds >= 0, got {at_s}")
        image = await service.looking(lambda: library.thumbnail(video_id, at_s))
        return Response(image, media_type="image/png", headers={"Cache-Control": "private, max-age=600"})

    @app.get("/v1/files/{video_id:path}")
    async def file(video_id: str) -> Response:
        """A video's file, if it is at hand; ranges are served."""
        path = library.file(video_id)
        kinds = {".mp4": "video/mp4", ".webm": "video/webm", ".mkv": "video/webm"}
        return FileResponse(path, media_type=kinds.get(path.suffix.lower(), "application/octet-stream"))


def _add_state_routes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process is alive."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> Response:
        """Whether requests are taken: the engine is warm, and the service is not about to end."""
        if not service.ready or service.draining:
            raise busy("the service is about to end" if service.draining else "the engine is warming up")
        return json_response({"status": "ready"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """What Prometheus reads."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(_static("serve.html"), media_type="text/html")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in _STATIC:
            raise Problem(404, "there is nothing at this path")
        before = palette_css(":root") + viz_static("page.css") if name == "serve.css" else ""
        return Response(before + _static(name), media_type=_STATIC[name])


def _static(name: str) -> str:
    return resources.files("mmn_fast.serving").joinpath("static", name).read_text(encoding="utf-8")
