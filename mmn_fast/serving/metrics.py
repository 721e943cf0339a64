"""What the service counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one application."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._counters = lru_cache(1024)(self._labelled)  # looking labels up costs more than counting
        self._requests = Counter("mmn_fast_requests", "Answered requests.", ["route", "status"], registry=registry)
        self._errors = Counter("mmn_fast_errors", "Answers with status 400 or above.", ["status"], registry=registry)
        self._latency = Histogram(
            "mmn_fast_request_seconds",
            "From a request's first byte to its answer.",
            ["route"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._queue = Histogram("mmn_fast_queue_seconds", "Wait for the engine.", registry=registry, buckets=_SECONDS)
        self._batch = Histogram(
            "mmn_fast_batch_size", "Requests in one call of the engine.", registry=registry, buckets=_SIZES
        )
        self._stages = Histogram(
            "mmn_fast_stage_seconds",
            "Work of one call: ground, encode_text, score, search, maps, extract, add.",
            ["stage"],
            registry=registry,
            buckets=_SECONDS,
        )

    def gauge(self, name: str, described: str, value: Callable[[], float]) -> None:
        """Add a value that is read when the metrics are asked for."""
        Gauge(f"mmn_fast_{name}", described, registry=self._registry).set_function(value)

    def answered(self, route: str, status: int, elapsed_s: float) -> None:
        """Count an answer.

        Args:
            route: the path's pattern.
            status: HTTP status; 499 for a client that has gone.
            elapsed_s: seconds since the request came.
        """
        requests, latency, errors = self._counters(route, status)
        requests.inc()
        latency.observe(elapsed_s)
        if errors is not None:
            errors.inc()

    def _labelled(self, route: str, status: int) -> tuple[Counter, Histogram, Counter | None]:
        errors = self._errors.labels(status) if status >= 400 else None
        return self._requests.labels(route, status), self._latency.labels(route), errors

    def batch(self, waits_s: list[float]) -> None:
        """Count a call of the engine and the waits of its requests."""
        self._batch.observe(len(waits_s))
        for wait_s in waits_s:
            self._queue.observe(wait_s)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a stage of the work."""
        started = perf_counter()
        try:
            yield
        finally:
            self._stages.labels(name).observe(perf_counter() - started)

    def text(self) -> bytes:
        """All values in Prometheus's text format."""
        return generate_latest(self._registry)
