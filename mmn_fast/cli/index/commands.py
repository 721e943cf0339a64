"""index create, add, remove, compact, info, verify."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmn_fast.cli.app import app, removing_what_is_half_written
from mmn_fast.cli.index.encoding import Encoding, RayOptions
from mmn_fast.cli.names import Commands
from mmn_fast.cli.options import AnyFeatures, AsJson, EngineOptions, FeatureKey, Model, WindowOptions, lines_of
from mmn_fast.cli.output import output, show
from mmn_fast.errors import named_as

if TYPE_CHECKING:
    from mmn_fast.engine import Engine

library = Commands(help="Libraries of videos: encoded once, then searched (`mmn-fast search`).", no_args_is_help=True)
app.add_typer(library, name="index")

ModelOfIndex = Annotated[
    str | None, typer.Option("--model", "-m", help="The index's model, if it has moved since `index create`.")
]
IndexPath = Annotated[Path, typer.Argument(help="The index's directory.")]


def engine_of(path: Path, model: str | None, loading: EngineOptions) -> Engine:
    """Load the model of an index: the named one, else the one that the index names, else that of MMN_FAST_MODEL."""
    from mmn_fast.index.manifest import read_manifest

    return loading.load(model or read_manifest(path).model)


@library.command()
def create(
    index: IndexPath,
    *,
    model: Model = None,
    storage: Annotated[
        str, typer.Option("--storage", help="fp16; fp32, twice as large; int8, 1.25 times as large, faster.")
    ] = "fp16",
    loading: EngineOptions,
) -> None:
    """Make an empty index for the embeddings of one model."""
    from mmn_fast.checkpoint import IN_THE_BOX
    from mmn_fast.index import MomentIndex
    from mmn_fast.origin import absolute
    from mmn_fast.process.environment import default_model

    engine = loading.load(model)
    named = model or default_model() or ""
    place = named if named in IN_THE_BOX else absolute(named)
    with named_as("path", "index"), MomentIndex.create(index, engine, storage, model=place) as made:
        show(f"{index}: an empty index, storage {storage}, {made.info()['bytes_per_proposal']} bytes per proposal")


@library.command()
@removing_what_is_half_written()
def add(
    index: IndexPath,
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Files of features (.h5), folders of them or of videos, videos, lists of videos (.txt), saved"
            " embeddings (.safetensors)."
        ),
    ],
    *,
    model: ModelOfIndex = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Encode videos that are in the index again, instead of skipping them.")
    ] = False,
    extractor: Annotated[
        str | None, typer.Option("--extractor", help="For videos: the extractor, if the model does not say it.")
    ] = None,
    feature_key: FeatureKey = None,
    durations: Annotated[
        Path | None,
        typer.Option("--durations", help="For features: lengths of the videos, as JSON, annotations in JSON, or CSV."),
    ] = None,
    any_features: AnyFeatures = False,
    windows: WindowOptions,
    cluster: RayOptions,
    loading: EngineOptions,
    as_json: AsJson = False,
) -> None:
    """Encode videos into an index; what is in it is skipped, so a killed run goes on."""
    from mmn_fast.cli.index.sources import Reading, Tally, open_sources
    from mmn_fast.index import MomentIndex

    engine, started, tally = engine_of(index, model, loading), time.monotonic(), Tally()
    with MomentIndex.open(index, engine) as opened:
        reading = Reading(engine, extractor, feature_key, durations, any_features)
        opened_sources = open_sources(sources, reading)
        total = sum(len(source.ids) for source in opened_sources)

        def wanted(video_id: str) -> bool:
            return replace or video_id not in opened

        with _bar(total, tally) as done:
            encoding = Encoding(opened, opened_sources, reading, wanted, replace, vars(windows))
            added = encoding.add(tally, done, cluster)
        report = {
            "index": str(index),
            "added": added,
            "kept": tally.kept,
            "skipped": tally.skipped,
            "videos": len(opened),
            "bytes": opened.info()["bytes"],
            "elapsed_s": round(time.monotonic() - started, 3),
        }
    with output() as out:
        out.show(json.dumps(report, indent=2) if as_json else _added(report))
        if tally.skipped:
            out.status = 1


def _added(report: dict[str, Any]) -> str:
    from mmn_fast.checks import in_bytes

    facts = [f"{report['added']} videos added"]
    if report["kept"]:
        facts.append(f"{report['kept']} were there")
    if report["skipped"]:
        facts.append(f"{len(report['skipped'])} skipped")
    size = f"{report['videos']} videos, {in_bytes(report['bytes'])}"
    return f"{report['index']}: {', '.join(facts)}; {size}"


@contextmanager
def _bar(total: int, tally: Any) -> Iterator[Callable[[int], object]]:
    """Show a bar on stderr; give a function that takes how many videos are done, without what the tally counts."""
    from rich.console import Console
    from rich.progress import Progress

    from mmn_fast.windows.grounding import inside_a_bar

    console = Console(stderr=True)
    with inside_a_bar(), Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("videos", total=total)
        yield lambda done: bar.update(task, completed=done + tally.kept + len(tally.skipped))


@library.command()
def remove(
    index: IndexPath,
    video_ids: Annotated[list[str], typer.Argument(help="Ids of videos.")],
) -> None:
    """Remove videos; `compact` gives their space back."""
    from mmn_fast.index import MomentIndex

    with MomentIndex.open(index) as opened:
        count = opened.remove(video_ids)
        show(f"{index}: {count} videos removed; {len(opened)} videos")


@library.command()
@removing_what_is_half_written()
def compact(index: IndexPath) -> None:
    """Give the space of removed videos back, and make many small files few; searches go on meanwhile."""
    from mmn_fast.checks import in_bytes
    from mmn_fast.index import MomentIndex

    with MomentIndex.open(index) as opened:
        free = opened.compact()
        facts = opened.info()
        show(f"{index}: {in_bytes(max(free, 0))} became free; {facts['shards']} files, {in_bytes(facts['bytes'])}")


@library.command()
def info(index: IndexPath, as_json: AsJson = False) -> None:
    """Show an index's model, storage, counts and size."""
    from mmn_fast.index import MomentIndex

    with MomentIndex.open(index) as opened:
        facts = opened.info()
    show(json.dumps(facts, indent=2) if as_json else lines_of(facts))


@library.command()
def verify(
    index: IndexPath,
    *,
    drop_damaged: Annotated[
        bool, typer.Option("--drop-damaged", help="Take damaged files out of the index, into its folder `damaged`.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read a whole index and compare all checksums; exit status 1 if a file is damaged."""
    from mmn_fast.index.library import verify as verify_index
    from mmn_fast.index.writing import drop_damaged as drop

    damages = drop(index) if drop_damaged else verify_index(index)
    with output() as out:
        facts = {"index": str(index), "damaged": damages, "dropped": drop_damaged and bool(damages)}
        end = "; taken out of the index, add the videos again" if drop_damaged else ""
        plain = "\n".join(f"{damage}{end}" for damage in damages) or f"{index}: all checksums are right"
        out.show(json.dumps(facts, indent=2) if as_json else plain)
        if damages:
            out.status = 1
