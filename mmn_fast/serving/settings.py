"""Limits of the service: sizes, counts and times, each with one place that says it."""

from __future__ import annotations

from dataclasses import dataclass

from mmn_fast.checks import Integer, Number, Rule, check_fields

_MIB = 2**20
_RULES: dict[str, Rule] = {
    "max_body_bytes": Integer(1024, 2**31),
    "max_upload_bytes": Integer(1024, 2**40),
    "max_rows": Integer(),
    "max_sentences": Integer(1, 10_000),
    "max_top_k": Integer(1, 10_000),
    "max_video_s": Number(0, above=True),
    "deadline_s": Number(0, above=True),
    "upload_deadline_s": Number(0, above=True),
    "body_s": Number(0, above=True),
    "drain_s": Number(0, above=True),
    "max_waiting": Integer(1, 100_000),
    "max_uploads": Integer(1, 1000),
    "max_batch": Integer(1, 10_000),
    "batch_wait_s": Number(0, 1),
}


@dataclass(frozen=True)
class Limits:
    """What the service accepts, and how long it takes at most.

    Attributes:
        max_body_bytes: most bytes of a body of JSON or features.
        max_upload_bytes: most bytes of a body with a video.
        max_rows: most feature rows of a video.
        max_sentences: most sentences of a request.
        max_top_k: most moments per sentence.
        max_video_s: longest uploaded video, seconds.
        deadline_s: seconds after which a request is refused; it leaves the queue then.
        upload_deadline_s: the same for requests with a video or that change the index.
        body_s: most seconds that a body may take to arrive.
        drain_s: seconds that requests in flight have to finish after SIGTERM.
        max_waiting: most requests that wait for the engine; further ones are refused at once.
        max_uploads: most requests with a video, or that change the index, at one time.
        max_batch: most requests in one call of the engine.
        batch_wait_s: seconds that a request waits for company at most, if the requests before it had some.
    """

    max_body_bytes: int = 64 * _MIB
    max_upload_bytes: int = 1024 * _MIB
    max_rows: int = 65_536
    max_sentences: int = 64
    max_top_k: int = 100
    max_video_s: float = 3600.0
    deadline_s: float = 30.0
    upload_deadline_s: float = 600.0
    body_s: float = 60.0
    drain_s: float = 30.0
    max_waiting: int = 64
    max_uploads: int = 4
    max_batch: int = 32
    batch_wait_s: float = 0.008

    def __post_init__(self) -> None:
        check_fields(self, _RULES, "limits")
