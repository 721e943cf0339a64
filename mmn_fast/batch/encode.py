"""`encode_dataset`: videos or features -> an index, encoded on a Ray cluster and written by one process."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmn_fast.batch.cluster import connected, data_module
from mmn_fast.batch.dataset import Pipeline, Pool
from mmn_fast.batch.encoder import Encoded, Failed, Item, Work
from mmn_fast.checks import Integer, Number, Optional, flag
from mmn_fast.embeddings import VideoEmbeddings
from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.features.extraction.videos import VideoFile, find_videos
from mmn_fast.index import MomentIndex
from mmn_fast.origin import absolute
from mmn_fast.storage.files import check_name
from mmn_fast.types import Video
from mmn_fast.windows.cuts import checked_windows

if TYPE_CHECKING:
    from mmn_fast.features.extractors.base import Extractor

_LOG = logging.getLogger(__name__)
_MOST_ACTORS = 1024


@dataclass
class EncodingReport:
    """What a run of `encode_dataset` did.

    Attributes:
        output: the index.
        added: videos that were added.
        kept: videos that were in the index already.
        failed: file or id -> why the video is not in the index.
        lost: file -> what of it was unreadable; its readable part is in the index.
        replaced: processes that died and were replaced.
        elapsed_s: seconds that the run took.
    """

    output: Path
    added: int = 0
    kept: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    replaced: int = 0
    elapsed_s: float = 0.0


def encode_dataset(
    videos: Iterable[str | Path] | Iterable[VideoFile | Video | VideoEmbeddings],
    engine: Engine,
    output: str | Path,
    *,
    address: str | None = None,
    actors: int | None = None,
    num_cpus: float = 1.0,
    num_gpus: float | None = None,
    extractor: str | Callable[[Engine], Extractor] | None = None,
    any_features: bool = False,
    replace: bool = False,
    storage: str = "fp16",
    window_s: float | None = None,
    overlap: float | None = None,
    progress: Callable[[int], object] | None = None,
) -> EncodingReport:
    """Encode videos on a Ray cluster into an index.

    Ray Data gives the videos to a pool of actors, each with a process that loads the model once, reads, extracts and
    encodes. This process alone writes, in the order of the videos, so that the index is that of `MomentIndex.add`. A
    killed run loses what is not committed yet (a minute at most); the same call goes on, because videos whose ids are
    in the index are skipped.

    Args:
        videos: files, folders, lists and patterns as `find_videos` takes them; or an iterable of files, videos with
            features and embeddings, which is read up to 1 GiB ahead (or 10,000 videos, or ten seconds). All machines
            must see the files, and the model, at the same paths.
        engine: its model encodes; it is loaded again on the cluster.
        output: the index; it is made if it does not exist.
        address: as `batch.cluster.connected` takes it.
        actors: processes; None takes as many as the cluster has room for.
        num_cpus: CPUs of each process, >= 0.
        num_gpus: GPUs of each process; a fraction shares one. None takes 1 for an engine on CUDA, else 0.
        extractor: for files: its name, or a function that makes it; None takes the one of the model's contract.
        any_features: take features of another contract than the model's.
        replace: encode videos that are in the index again.
        storage: of a new index, as for `MomentIndex.create`.
        window_s: cut longer videos into windows, as for `Engine.encode_video`.
        overlap: the same.
        progress: called with the number of videos that are done.

    Returns:
        What was done. A video that fails is in it and is logged as a warning; it does not end the run.

    Raises:
        InputError: an argument cannot be used, Ray is not installed, no cluster answers, or the cluster cannot load
            the model.
        BackendUnavailable: processes of the cluster die before they have loaded the model, or Ray gives up.
        WriteError: the system refuses to write; all committed videos are in the index.
    """
    check_name(output, "output")
    if not isinstance(engine, Engine):
        raise InputError(f"engine: expected mmn_fast.Engine, got {type(engine).__name__}")
    actors = Optional(Integer(1, _MOST_ACTORS))(actors, "actors")
    num_cpus = Number(0)(num_cpus, "num_cpus")
    num_gpus = float(engine.info()["device"] != "cpu") if num_gpus is None else Number(0)(num_gpus, "num_gpus")
    flag(replace, "replace")
    checked_windows(window_s, overlap, engine.preset)
    items, report, started = _items(videos), EncodingReport(Path(output)), time.monotonic()
    data_module()
    made = extractor if callable(extractor) else partial(Engine.extractor, spec=absolute_spec(extractor))
    threads = max(int(num_cpus), 1)
    work = Work(pickle.dumps(engine), made, flag(any_features, "any_features"), window_s, overlap, threads)
    with connected(address) as ray, _opened(report.output, engine, storage) as index:
        pool = Pool(_count(ray, actors, num_cpus, num_gpus), num_cpus, num_gpus)
        pipeline = Pipeline(ray, work, pool, engine.preset)
        with closing(pipeline.run(_wanted(items, index, replace, report))) as results:
            report.added = index.add(_good(results, report, progress), replace=replace)
        report.replaced = pipeline.replaced
    report.elapsed_s = time.monotonic() - started
    return report


def absolute_spec(spec: str | None) -> str | None:
    """An extractor's name that means the same in other working directories."""
    kind, colon, place = (spec or "").partition(":")
    return f"{kind}:{absolute(place)}" if colon else spec


def _opened(path: Path, engine: Engine, storage: str) -> MomentIndex:
    return MomentIndex.open(path, engine) if path.exists() else MomentIndex.create(path, engine, storage)


def _items(videos: object) -> Iterable[Item | VideoEmbeddings]:
    """The argument `videos`, read lazily; names of files are looked for at once."""
    if isinstance(videos, (str, Path)):
        return find_videos([videos])
    if isinstance(videos, VideoEmbeddings):
        return [videos]
    if isinstance(videos, (bytes, Mapping, Video)) or not isinstance(videos, Iterable):
        raise InputError(f"videos: expected files or a list of Video, got {type(videos).__name__}")
    if isinstance(videos, (list, tuple)) and any(isinstance(one, (str, Path)) for one in videos):
        return find_videos(videos)
    return videos


def _wanted(
    items: Iterable[Item | VideoEmbeddings], index: MomentIndex, replace: bool, report: EncodingReport
) -> Iterator[Item | VideoEmbeddings]:
    """Leave out the videos that are in the index."""
    for number, item in enumerate(items):
        if isinstance(item, VideoEmbeddings):
            new = [n for n, video_id in enumerate(item.video_ids) if replace or video_id not in index]
            report.kept += len(item) - len(new)
            if new:
                yield item[new]
        elif not isinstance(item, (Video, VideoFile)):
            raise InputError(f"videos[{number}]: expected a file, Video or VideoEmbeddings, got {type(item).__name__}")
        elif replace or item.video_id not in index:
            # processes of the cluster have other working directories
            yield item if isinstance(item, Video) else VideoFile(item.video_id, item.path.absolute())
        else:
            report.kept += 1


def _good(
    results: Iterator[Encoded | Failed], report: EncodingReport, progress: Callable[[int], object] | None
) -> Iterator[VideoEmbeddings]:
    """Pass the embeddings on, and record what else happened."""
    for number, result in enumerate(results, 1):
        if isinstance(result, Failed):
            report.failed[result.name] = result.reason
            _LOG.warning("skipped: %s", result.reason)
        else:
            if result.lost is not None:
                report.lost[result.name] = result.lost
                _LOG.warning("%s: %s; the rest of it is used", result.name, result.lost)
            yield result.embeddings
        if progress is not None:
            progress(number)


def _count(ray: Any, actors: int | None, num_cpus: float, num_gpus: float) -> int:
    """How many actors to start: so many as were named, else as the cluster has room for."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return actors_for([(has.get("CPU", 0), has.get("GPU", 0)) for has in machines], actors, num_cpus, num_gpus)


def actors_for(machines: Sequence[tuple[float, float]], actors: int | None, num_cpus: float, num_gpus: float) -> int:
    """How many actors a cluster gets.

    Args:
        machines: CPUs and GPUs of each.
        actors: the wanted number; None takes as many as there is room for.
        num_cpus: CPUs of an actor.
        num_gpus: GPUs of an actor.

    Raises:
        InputError: no machine has room for one.
    """
    if not num_cpus and not num_gpus:
        return actors or 1
    room = sum(
        min(int(have / need) for have, need in zip(machine, (num_cpus, num_gpus), strict=True) if need > 0)
        for machine in machines
    )
    if room < 1:
        has = ", ".join(f"{cpus:g} and {gpus:g}" for cpus, gpus in sorted(set(machines), reverse=True))
        raise InputError(
            f"num_cpus, num_gpus: a process needs {num_cpus:g} CPUs and {num_gpus:g} GPUs, but no machine of the"
            f" cluster has as many: {has or 'there is none'}"
        )
    if actors is not None and room < actors:
        _LOG.warning("actors: the cluster has room for %d of %d processes", room, actors)
    return min(room, actors or _MOST_ACTORS)
