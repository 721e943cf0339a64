"""Videos -> results, with a pool of actors of Ray Data."""

from __future__ import annotations

import gc
import logging
import pickle
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from mmn_fast.batch.cluster import data_module, quiet
from mmn_fast.batch.encoder import Encoded, Failed, Item, Work
from mmn_fast.embeddings import VideoEmbeddings
from mmn_fast.errors import BackendUnavailable
from mmn_fast.features.extraction.videos import VideoFile
from mmn_fast.features.messages import first_line
from mmn_fast.geometry import plan_for
from mmn_fast.presets import Preset
from mmn_fast.types import Video

_LOG = logging.getLogger(__name__)
# Videos with features per block: a block costs Ray some 12 ms, and a dead process's is repeated.
_AT_ONCE = 32
_FEATURE_BYTES = 16 << 20
_EMBEDDING_BYTES = 64 << 20
_PER_ACTOR = 4  # blocks at least, so that no actor has much left when the others are done
_IN_FLIGHT = 2  # blocks per actor, so that the next one is there when one is done
# What is gathered before it is encoded. An actor loads the model once per portion, in two to three seconds.
_BYTES = 1 << 30
_ITEMS = 10_000
_GATHER_S = 10.0


@dataclass(frozen=True)
class Pool:
    """The actors.

    Attributes:
        count: how many, >= 1.
        num_cpus: CPUs of each.
        num_gpus: GPUs of each; a fraction shares one.
    """

    count: int
    num_cpus: float
    num_gpus: float


class Pipeline:
    """Encodes videos with Ray Data; the results come in the order of the videos.

    Args:
        ray: the module, connected.
        work: what the actors do.
        pool: the actors.
        preset: of the model.
    """

    def __init__(self, ray: Any, work: Work, pool: Pool, preset: Preset) -> None:
        self._ray, self._pool = ray, pool
        embeddings = 2 * 4 * plan_for(preset).num_proposals * preset.joint_size
        self._at_once = min(max(_EMBEDDING_BYTES // embeddings, 1), _AT_ONCE)
        self._work = ray.cloudpickle.dumps(work)
        self._place = 0
        self.replaced = 0

    def run(self, items: Iterable[Item | VideoEmbeddings]) -> Generator[Encoded | Failed, None, None]:
        """Encode videos.

        Args:
            items: videos; embeddings pass through.

        Yields:
            One result per video, in order.

        Raises:
            InputError: the model or the extractor cannot be loaded on the cluster.
            BackendUnavailable: processes die before they have loaded the model, or Ray gives up.
        """
        from mmn_fast.batch.actor import Deaths

        node = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            self._ray.get_runtime_context().get_node_id(), soft=True
        )
        self._tell_if_busy()
        deaths = self._ray.remote(Deaths).options(num_cpus=0, max_restarts=-1, scheduling_strategy=node).remote()
        try:
            for portion in _portions(iter(items)):
                reads_files = any(isinstance(item, VideoFile) for item in portion)
                rows: list[dict[str, Any]] = []
                passed: list[list[Encoded] | None] = []  # None: the results come from the cluster
                count = sum(isinstance(item, Video) for item in portion)
                at_once = min(max(count // (_PER_ACTOR * self._pool.count), 1), self._at_once)
                for block in _blocks(portion, at_once):
                    if isinstance(block, VideoEmbeddings):
                        passed.append([Encoded(block[[n]], name) for n, name in enumerate(block.video_ids)])
                    else:
                        passed.append(None)
                        rows.append(self._row(block))
                with closing(self._encode(rows, reads_files, deaths)) as encoded:
                    for results in passed:
                        yield from next(encoded) if results is None else results
            with suppress(self._ray.exceptions.RayError):  # the count is not worth a run that is done
                self.replaced = self._ray.get(deaths.replaced.remote())
            if self.replaced:
                _LOG.warning("%d processes of the cluster ended and were replaced", self.replaced)
        finally:
            self._ray.kill(deaths)

    def _tell_if_busy(self) -> None:
        """Say so if the run has to wait: it would be silent else."""
        needs = {"CPU": self._pool.num_cpus, "GPU": self._pool.num_gpus}
        for wait_s in (1.0, 0.0):  # what an earlier run had becomes free within a moment
            free = self._ray.available_resources()
            if all(free.get(name, 0.0) >= need for name, need in needs.items()):
                return
            time.sleep(wait_s)
        have = " and ".join(f"{free.get(name, 0.0):g} of {need:g} {name}s" for name, need in needs.items() if need)
        _LOG.warning("the cluster is busy, and the run waits: %s that a process needs are free", have)

    def _row(self, videos: list[Item]) -> dict[str, Any]:
        """A block, as `EncodeVideos` takes it."""
        self._place += 1
        return {"place": self._place, "videos": self._ray.cloudpickle.dumps(videos)}

    def _encode(
        self, rows: list[dict[str, Any]], reads_files: bool, deaths: Any
    ) -> Generator[list[Encoded | Failed], None, None]:
        """Encode blocks; yield the results of each, in order."""
        if not rows:
            return
        from mmn_fast.batch.actor import EncodeVideos

        data, place, count = data_module(), rows[0]["place"], len(rows)
        dataset = data.from_items(rows, override_num_blocks=count).map_batches(
            EncodeVideos,
            fn_constructor_args=(self._work, reads_files, deaths),
            batch_size=None,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(size=min(self._pool.count, count), max_tasks_in_flight_per_actor=_IN_FLIGHT),
            num_cpus=self._pool.num_cpus,
            num_gpus=self._pool.num_gpus or None,
        )
        rows.clear()  # they are in Ray's memory now
        dataset.context.execution_options.preserve_order = True
        dataset.context.enable_progress_bars = False
        with quiet(), _one_sentence(self._ray):
            # `iter_rows` and `iter_batches` have threads that outlive a loop that ends early; one of them that asks Ray
            # something after `ray.shutdown` makes Ray end this process.
            try:
                bundles = dataset.iter_internal_ref_bundles()
                for block in (self._ray.get(ref) for bundle in bundles for ref in bundle.block_refs):
                    for row in block.to_pylist():
                        if row["error"] is not None:
                            raise pickle.loads(row["error"])
                        if row["place"] != place:
                            raise BackendUnavailable(f"ray: block {row['place']} came instead of block {place}")
                        place += 1
                        yield pickle.loads(row["results"])
            finally:
                bundles = dataset = None  # which ends the execution
                gc.collect()  # cycles of Ray Data's objects would keep the actors


@contextmanager
def _one_sentence(ray: Any) -> Iterator[None]:
    """Say in a sentence what Ray could not do; a fault of this package keeps its traceback."""
    try:
        yield
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise BackendUnavailable(f"ray: {type(error).__name__}: {first_line(error)}") from error


def _portions(items: Iterator[Item | VideoEmbeddings]) -> Iterator[deque[Item | VideoEmbeddings]]:
    """Gather what one dataset of Ray holds, because Ray Data takes lists and no iterators."""
    portion, num_bytes, started = deque[Item | VideoEmbeddings](), 0, time.monotonic()
    for item in items:
        portion.append(item)
        num_bytes += _num_bytes(item)
        if num_bytes >= _BYTES or len(portion) >= _ITEMS or time.monotonic() - started > _GATHER_S:
            yield portion
            portion, num_bytes, started = deque(), 0, time.monotonic()
    if portion:
        yield portion


def _num_bytes(item: Item | VideoEmbeddings) -> int:
    if isinstance(item, VideoEmbeddings):
        return item.contrastive.nbytes + item.iou.nbytes
    return item.features.nbytes if isinstance(item, Video) else 0


def _blocks(portion: deque[Item | VideoEmbeddings], at_once: int) -> Iterator[list[Item] | VideoEmbeddings]:
    """Empty a portion in order: a file alone, videos with features together, embeddings as they are."""
    together, num_bytes = list[Item](), 0
    while portion:
        item = portion.popleft()
        if together and (not isinstance(item, Video) or len(together) == at_once or num_bytes >= _FEATURE_BYTES):
            yield together
            together, num_bytes = [], 0
        if isinstance(item, Video):
            together.append(item)
            num_bytes += _num_bytes(item)
        else:
            yield [item] if isinstance(item, VideoFile) else item
    if together:
        yield together
