"""The encoding of `index add`: in this process, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmn_fast.cli.videos.extractors import chosen_extractor
from mmn_fast.errors import InputError, named_as

if TYPE_CHECKING:
    from mmn_fast.cli.index.sources import Reading, Source, Tally, Wanted
    from mmn_fast.embeddings import VideoEmbeddings
    from mmn_fast.index import MomentIndex
    from mmn_fast.types import Video


@dataclass(frozen=True)
class RayOptions:
    """Where videos are encoded."""

    ray: Annotated[
        str | None,
        typer.Option("--ray", help="Encode on a Ray cluster: HOST:PORT of its head, auto, or local."),
    ] = None
    actors: Annotated[
        int | None, typer.Option("--actors", help="With --ray: processes; default as many as there is room for.")
    ] = None


@dataclass(frozen=True)
class Encoding:
    """How sources become videos of an index.

    Attributes:
        index: the index, opened with its engine.
        sources: what is added.
        reading: how the sources are read.
        wanted: whether an id is encoded.
        replace: encode videos that are in the index again.
        windows: `window_s` and `overlap`.
    """

    index: MomentIndex
    sources: list[Source]
    reading: Reading
    wanted: Wanted
    replace: bool
    windows: dict[str, Any]

    def add(self, tally: Tally, done: Callable[[int], object], options: RayOptions) -> int:
        """Add the videos.

        Args:
            tally: counts what is kept and skipped.
            done: called with the number of videos that are done, without those that the tally counts.
            options: where to encode.

        Returns:
            How many videos were added.
        """
        if options.ray is None:
            if options.actors is not None:
                raise InputError(f"--actors: expected --ray beside it, got {options.actors} alone")
            items = (item for source in self.sources for item in source.read(self.wanted, tally))
            return self.index.add(_counted(items, done), replace=self.replace, **self.windows)
        from mmn_fast.batch.encode import absolute_spec, encode_dataset

        reading = self.reading
        spec = absolute_spec(reading.extractor)
        extractor = partial(chosen_extractor, extractor=spec, any_features=reading.any_features)
        with named_as("address", "--ray"):
            report = encode_dataset(
                (item for source in self.sources for item in source.unread(self.wanted, tally)),
                reading.engine,
                self.index.path,
                address=options.ray,
                actors=options.actors,
                extractor=extractor,
                any_features=reading.any_features,
                replace=self.replace,
                progress=done,
                **self.windows,
            )
        self.index.refresh()
        tally.skipped |= report.failed  # the log has said why
        return report.added


def _counted(
    items: Iterator[Video | VideoEmbeddings], done: Callable[[int], object]
) -> Iterator[Video | VideoEmbeddings]:
    """Pass videos through; tell how many were taken up."""
    from mmn_fast.embeddings import VideoEmbeddings

    count = 0
    for item in items:
        yield item
        count += len(item) if isinstance(item, VideoEmbeddings) else 1
        done(count)
