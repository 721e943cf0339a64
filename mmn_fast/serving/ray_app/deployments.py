"""The processes of the service on a Ray cluster, as deployments of Ray Serve.

Every replica is the application of `serving.app`: it has the engine, and Ray Serve puts its requests into batches. The
index is cut into parts, each searched by an actor of its own. Ray Serve starts actors again that die.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from mmn_fast.batch.cluster import ray_module
from mmn_fast.checks import Integer, Number, Optional, Rule, Text, build, check_fields, check_keys
from mmn_fast.engine import Engine, load
from mmn_fast.errors import InputError
from mmn_fast.features.extraction.videos import find_videos
from mmn_fast.features.extractors.base import Extractor
from mmn_fast.index import MomentIndex
from mmn_fast.index.manifest import read_manifest
from mmn_fast.index.parts import IndexPart
from mmn_fast.storage.documents import parse_yaml

_LOG = logging.getLogger(__name__)
_NAME: Rule = Text(1, 4096)
_PART_DEADLINE_S = 20.0  # less than `Limits.deadline_s`, so that the refusal names its reason
_RULES: dict[str, Rule] = {
    "index": _NAME,
    "model": Optional(_NAME),
    "media": Optional(_NAME),
    "api_key_file": Optional(_NAME),
    "parts": Integer(1, 1024),
    "replicas": Integer(1, 1024),
    "max_replicas": Optional(Integer(1, 1024)),
    "num_cpus": Number(0),
    "num_gpus": Number(0),
    "part_cpus": Number(0),
}


@dataclass(frozen=True)
class Layout:
    """What the cluster serves, and with how many processes.

    Attributes:
        index: the index's directory, at the same path on all machines.
        model: None takes the index's.
        media: folder of video files, one per id.
        api_key_file: file with the key that requests bring.
        parts: processes that search the index, each an equal part of it.
        replicas: processes with an engine.
        max_replicas: under load there are up to so many; None keeps `replicas`.
        num_cpus: CPUs of a replica.
        num_gpus: GPUs of a replica; a fraction shares one.
        part_cpus: CPUs of a part.
    """

    index: str
    model: str | None = None
    media: str | None = None
    api_key_file: str | None = None
    parts: int = 1
    replicas: int = 1
    max_replicas: int | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    part_cpus: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, _RULES, "app")

    @classmethod
    def of(cls, args: dict[str, Any]) -> Layout:
        """The layout of the arguments of `serve run` (all texts) or of a YAML file.

        Raises:
            InputError: an argument is missing, unknown or cannot be used.
        """
        texts = [name for name, rule in _RULES.items() if name in ("index", "model", "media", "api_key_file")]
        check_keys(args, [one.name for one in fields(cls)], "app", ["index"])
        return build(
            cls,
            {
                name: parse_yaml(value, f"app: {name}") if isinstance(value, str) and name not in texts else value
                for name, value in args.items()
            },
            "app",
        )


class Part:
    """A part of the index; a Ray Serve deployment of one actor."""

    def __init__(self, path: str, part: int, parts: int) -> None:
        self._part = IndexPart(Path(path), part, parts)

    def search(self, *question: Any) -> Any:
        """As `IndexPart.search`; a sentence for a question that cannot be answered."""
        try:
            return self._part.search(*question)
        except InputError as error:
            return str(error)


class Replica:
    """An engine and the application; a Ray Serve deployment."""

    def __init__(self, layout: dict[str, Any], *parts: Any) -> None:
        self._layout, self._parts = Layout(**layout), parts
        self._stack = ExitStack()  # the uploads' folder; what a killed replica leaves, the next one removes

    def __serve_build_asgi_app__(self) -> Any:
        """Make the application."""
        from mmn_fast.serving.app import create_app
        from mmn_fast.serving.process import read_key
        from mmn_fast.serving.ray_app.batches import ServeBatches
        from mmn_fast.serving.ray_app.spread import SpreadLibrary
        from mmn_fast.serving.uploads import private_folder

        layout = self._layout
        engine = load(
            layout.model or read_manifest(Path(layout.index)).model or "demo",
            device="auto" if layout.num_gpus else "cpu",
            threads=max(int(layout.num_cpus), 1),
        )
        lost = (ray_module().exceptions.RayError, import_module("ray.serve.exceptions").RayServeException)
        files = {} if layout.media is None else {one.video_id: one.path for one in find_videos([layout.media])}
        index = self._stack.enter_context(MomentIndex.open(layout.index, engine))
        return create_app(
            engine,
            SpreadLibrary(index, engine, files, self._parts, _PART_DEADLINE_S, lost),
            self._stack.enter_context(private_folder()),
            extractor=_extractor(engine),
            key=read_key(None if layout.api_key_file is None else Path(layout.api_key_file)),
            queue=ServeBatches,
        )


def _extractor(engine: Engine) -> Extractor | None:
    """The extractor for uploads; None if the model does not say it, or it cannot be made here."""
    if engine.contract is None:
        return None
    try:
        return engine.extractor()
    except InputError as error:
        _LOG.warning("videos cannot be uploaded: %s", error)
        return None


def app(args: dict[str, Any]) -> Any:
    """Build the application of Ray Serve.

    Args:
        args: fields of `Layout`.

    Returns:
        A Ray Serve `Application`.

    Raises:
        InputError: Ray is not installed, an argument cannot be used, or there is no index.
    """
    ray_module()
    layout = Layout.of(args)
    absolute = asdict(layout)
    for name in ("index", "media", "api_key_file"):
        absolute[name] = absolute[name] and str(Path(absolute[name]).absolute())
    read_manifest(Path(layout.index))  # refuses what is no index before the cluster starts anything
    serve = import_module("ray.serve")
    parts = [
        serve.deployment(Part)
        .options(name=f"part-{number}", num_replicas=1, ray_actor_options={"num_cpus": layout.part_cpus})
        .bind(absolute["index"], number, layout.parts)
        for number in range(layout.parts)
    ]
    options: dict[str, Any] = {
        "name": "service",
        "max_ongoing_requests": 128,  # the replica itself refuses what its queue cannot hold
        "ray_actor_options": {"num_cpus": layout.num_cpus, "num_gpus": layout.num_gpus},
    }
    if layout.max_replicas is None:
        options["num_replicas"] = layout.replicas
    else:
        options["autoscaling_config"] = {
            "min_replicas": layout.replicas,
            "max_replicas": max(layout.max_replicas, layout.replicas),
            "target_ongoing_requests": 16,
        }
    return serve.deployment(serve.ingress()(Replica)).options(**options).bind(absolute, *parts)
