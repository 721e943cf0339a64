"""Commands that answer: ground, eval."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mmn_fast.cli.app import app
from mmn_fast.cli.index.corpus import evaluate_in_corpus
from mmn_fast.cli.options import (
    AnyFeatures,
    AsJson,
    EngineOptions,
    FeatureKey,
    Html,
    Model,
    Protocol,
    SplitOptions,
    WindowOptions,
    check_html,
    open_split,
    save_html,
)
from mmn_fast.cli.output import output
from mmn_fast.cli.tubes.split import evaluate_tube_split, refuse_options_of_videos
from mmn_fast.cli.videos.extractors import chosen_extractor
from mmn_fast.errors import InputError, named_as

if TYPE_CHECKING:
    from mmn_fast.engine import Engine
    from mmn_fast.features.contract import FeatureContract
    from mmn_fast.tubes import TubeMoment
    from mmn_fast.types import Moment, Query, Video


_LONG_S = 60.0  # a shorter video is done before a bar could be read
Facts = tuple["FeatureContract | None", float | None]
"""What a file says of features besides the rows: their contract, and the video's length in seconds."""


@dataclass(frozen=True)
class SourceOptions:
    """The video in which sentences are grounded: a file, its features, or person tubes."""

    video: Annotated[
        str | None, typer.Option("--video", help="A video file; the model's contract says how its features are made.")
    ] = None
    extractor: Annotated[
        str | None,
        typer.Option(
            "--extractor", help="With --video: the extractor, as for features, if the model does not say or it moved."
        ),
    ] = None
    features: Annotated[
        str | None, typer.Option("--features", help="FILE or FILE::KEY: .h5, .npy, .npz, .pt, .safetensors.")
    ] = None
    duration: Annotated[
        float | None,
        typer.Option("--duration", help="Length of the video in seconds, if the file of features does not say."),
    ] = None
    tubes: Annotated[
        str | None, typer.Option("--tubes", help="Person tubes instead, FILE or FILE::VIDEO: .h5, .npz, .safetensors.")
    ] = None
    any_features: AnyFeatures = False

    @property
    def kind(self) -> str:
        """Which option names the video."""
        return "features" if self.video is None else "video"

    @property
    def name(self) -> str:
        """The video's file, or that of its features."""
        return str(self.features if self.video is None else self.video)

    def check(self, html: Path | None, windows: WindowOptions) -> Facts:
        """Refuse options that do not name one video, before anything is loaded; read the small facts of its file."""
        given = [name for name in ("video", "features", "tubes") if getattr(self, name) is not None]
        if not given:
            raise InputError("--features: give the video's features, or --video or --tubes")
        if given[1:]:
            raise InputError(f"--{given[1]}: give one of --video, --features and --tubes, got --{given[0]} as well")
        refused = {
            "duration": self.duration if self.features is None else None,
            "extractor": self.extractor if self.video is None else None,
            "any_features": (self.any_features or None) if self.tubes is not None else None,
        }
        for name, value in refused.items():
            if value is not None:
                raise InputError(f"{name}: expected none with --{given[0]}, got {value}")
        if self.tubes is not None:
            for name, number in (("--window", windows.window_s), ("--overlap", windows.overlap)):
                if number is not None:
                    raise InputError(
                        f"{name}: expected none with --tubes, whose tubes are grounded whole, got {number}"
                    )
            if html is not None:
                raise InputError("--html: a page of tubes needs the video's frames; mmn_fast.viz.tube_report makes it")
        if self.features is None:
            return None, None
        from mmn_fast.features.matching import stored_facts

        contract, duration_s = stored_facts(self.features)
        if self.duration is None and duration_s is None:
            raise InputError("--duration: give the video's length in seconds, which the file does not say")
        return contract, duration_s if self.duration is None else self.duration

    def read(self, engine: Engine, facts: Facts) -> Video:
        """The video with its features; `facts` come from `check`."""
        from mmn_fast.features import load_features
        from mmn_fast.features.matching import refuse_other_features
        from mmn_fast.types import Video

        if self.video is not None:
            return self._open(engine, self.video)
        contract, duration_s = facts
        refuse_other_features(engine.contract, contract, f"features: {self.features}", self.any_features)
        rows = load_features(self.name, width=engine.preset.input_size)
        return Video(rows, cast("float", duration_s), video_id=self.name)

    def _open(self, engine: Engine, video: str) -> Video:
        """Extract the features of a video file, by the model's contract or by the named extractor."""
        from mmn_fast.types import Video

        if engine.preset.of_tubes:
            raise InputError(f"video: expected --tubes with preset {engine.preset.name!r}, which is of tubes")
        extractor = chosen_extractor(engine, self.extractor, self.any_features)
        try:
            with _bar(video) as progress:
                opened = Video.open(video, extractor, video_id=Path(video).name, progress=progress)
        except InputError as error:
            raise InputError(f"video: {error}") from error
        return dataclasses.replace(opened, contract=None) if self.any_features else opened


@contextmanager
def _bar(video: str) -> Iterator[Callable[[float], object] | None]:
    """Show on stderr how much of a long video is done."""
    from mmn_fast.media import probe

    duration_s = probe(video).duration_s
    if duration_s is not None and duration_s < _LONG_S:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("features", total=duration_s)
        yield lambda done_s: bar.update(task, completed=done_s)


@app.command()
def ground(
    *,
    source: SourceOptions,
    query: Annotated[list[str], typer.Option("--query", "-q", help="A sentence; give the option again for more.")],
    model: Model = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", help="Moments per sentence; default 5, of tubes 1.")
    ] = None,
    windows: WindowOptions,
    loading: EngineOptions,
    html: Html = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse sentences that the text encoder cuts.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find the moments of one video, or of its person tubes, that sentences describe."""
    from mmn_fast.evaluation.notes import by_kind, cut_sentences, refuse

    check_html(html)
    facts = source.check(html, windows)
    engine = loading.load(model)
    cut = cut_sentences(engine, query)
    if strict:
        refuse(cut)
    notes = {"cut": by_kind(cut)["cut"]}
    if source.tubes is not None:
        _ground_tubes(engine, source.tubes, query, 1 if top_k is None else top_k, notes, as_json)
    else:
        wanted = 5 if top_k is None else top_k
        _ground_video(engine, source, facts, query, wanted, windows, notes, html, as_json)


def _ground_video(
    engine: Engine,
    source: SourceOptions,
    facts: Facts,
    query: list[str],
    top_k: int,
    windows: WindowOptions,
    notes: dict[str, Any],
    html: Path | None,
    as_json: bool,
) -> None:
    from mmn_fast.types import Query

    video = source.read(engine, facts)
    batch = [Query(video, query)]
    (result,) = engine.ground(batch, top_k=top_k, **vars(windows))
    with output() as out:
        lines = [
            [f"{moment.start_s:8.2f} s - {moment.end_s:8.2f} s   score {moment.score:.4f}" for moment in moments]
            for moments in result
        ]
        shown = {source.kind: source.name, "duration_s": video.duration_s, **windows.facts()}
        out.show(_as_json(shown, query, result, notes) if as_json else _as_text(query, lines))
        if html is not None:
            out.beside("--html", lambda: _save_page(engine, batch[0], result, top_k, windows, html, source.video))


def _ground_tubes(
    engine: Engine, source: str, query: list[str], top_k: int, notes: dict[str, Any], as_json: bool
) -> None:
    from mmn_fast.features.tubes import read_tubes
    from mmn_fast.tubes import TubeQuery

    file, named, video_id = (source, "", "") if Path(source).exists() else source.partition("::")
    if named and not video_id:
        raise InputError(f"--tubes: expected FILE::VIDEO, got no video in {source!r}")
    with named_as("path", "tubes"), named_as("video_id", "tubes"):
        tubes = read_tubes(file, video_id or None)
    (result,) = engine.ground_tubes([TubeQuery(tubes, query, source)], top_k=top_k)
    with output() as out:
        lines = [
            [
                f"tube {moment.tube:>3}   frames {moment.start_frame:>5} - {moment.end_frame:>5}   rows"
                f" {moment.start_row:>4}:{moment.end_row:<4}  score {moment.score:.4f}"
                for moment in moments
            ]
            for moments in result
        ]
        out.show(_as_json({"tubes": source}, query, result, notes) if as_json else _as_text(query, lines))


def _as_json(
    source: dict[str, Any],
    query: list[str],
    result: Sequence[Sequence[Moment | TubeMoment]],
    notes: dict[str, Any],
) -> str:
    items = [
        {"query": sentence, "moments": [moment.to_dict() for moment in moments]}
        for sentence, moments in zip(query, result, strict=True)
    ]
    return json.dumps({**source, "results": items, **notes}, indent=2)


def _as_text(query: list[str], found: Sequence[Sequence[str]]) -> str:
    lines = []
    for sentence, moments in zip(query, found, strict=True):
        lines.append(sentence)
        lines += [f"  {rank:>3}  {moment}" for rank, moment in enumerate(moments, start=1)] or ["       nothing found"]
    return "\n".join(lines)


def _save_page(
    engine: Engine,
    query: Query,
    result: list[list[Moment]],
    top_k: int,
    windows: WindowOptions,
    path: Path,
    file: str | None,
) -> None:
    from mmn_fast.viz import grounded, report

    video, notes = query.video, [f"preset {engine.preset.name}"]
    if windows.window_s is not None and windows.window_s < video.duration_s:
        # A map is that of one window; the page has the timelines alone.
        notes.append(f"grounded in windows of {windows.window_s:g} s")
        queries = grounded(list(query.sentences), result)
    else:
        maps = engine.score_maps([query])[0]
        queries = grounded(list(query.sentences), result, maps=maps, num_clips=engine.preset.num_clips)
    shown: dict[str, Any] = {}
    if file is not None:
        from mmn_fast.viz.film import film_of, link_note

        shown["film"] = film_of(file, video.duration_s, path)
        if shown["film"].link is not None:
            typer.echo(f"mmn-fast: {link_note(file, path)}", err=True)
    page = report(queries, video.duration_s, video_id=video.video_id, notes=notes, max_moments=top_k, **shown)
    save_html(page, path)


@app.command("eval")
def evaluate(
    *,
    annotations: Annotated[
        Path,
        typer.Option("--annotations", help="Official JSON (HC-STVG's too), Charades-STA text or QVHighlights JSONL."),
    ],
    features: Annotated[
        Path | None, typer.Option("--features", help="HDF5 file, or a directory with one file per video.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="An index instead: find each sentence in all of its videos.")
    ] = None,
    feature_key: FeatureKey = None,
    model: Model = None,
    protocol: Protocol = "mmn",
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            help="Write predictions here, as QVHighlights JSONL; of tubes: results.json; of --corpus: TVR's JSON.",
        ),
    ] = None,
    split: SplitOptions,
    windows: WindowOptions,
    loading: EngineOptions,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model on annotations: R@n,IoU@m and mIoU; of tubes m_vIoU, m_tIoU and vIoU@m; of --corpus R@k."""
    check_html(html)
    if corpus is not None:
        others = {"features": features, "feature_key": feature_key, "html": html, **vars(windows)}
        others |= {"protocol": None if protocol == "mmn" else protocol, "any_features": split.any_features or None}
        evaluate_in_corpus(corpus, annotations, model, predictions, split, loading, as_json, **others)
        return
    if features is None:
        raise InputError("--features: give the videos' features, or a library with --corpus")
    engine = loading.load(model)
    if engine.preset.of_tubes:
        given = {"feature_key": feature_key, "durations": split.durations, "html": html, **vars(windows)}
        refuse_options_of_videos(engine.preset, **given, any_features=split.any_features or None)
        evaluate_tube_split(engine, annotations, features, protocol, predictions, split, as_json)
        return
    _evaluate_split(
        engine,
        annotations,
        features,
        predictions,
        split,
        html,
        as_json,
        feature_key=feature_key,
        protocol=protocol,
        windows=windows,
    )


def _evaluate_split(
    engine: Engine,
    annotations: Path,
    features: Path,
    predictions: Path | None,
    split: SplitOptions,
    html: Path | None,
    as_json: bool,
    *,
    feature_key: str | None,
    protocol: str,
    windows: WindowOptions,
) -> None:
    from mmn_fast.evaluation.evaluate import QueryResult, UnwrittenPredictions
    from mmn_fast.evaluation.evaluate import evaluate as run

    results: list[QueryResult] = []
    samples = split.samples(annotations, engine)
    unwritten: UnwrittenPredictions | None = None
    with open_split(features, feature_key, engine) as store:
        try:
            report = run(
                engine,
                samples,
                store,
                protocol=protocol,
                predictions=predictions,
                on_result=None if html is None else results.append,
                **split.while_running(),
                **vars(windows),
            )
        except UnwrittenPredictions as error:
            report, unwritten = error.report, error
    with output() as out:
        out.show(json.dumps(report.to_dict(), indent=2) if as_json else report.table())
        if unwritten is not None:
            out.fail("--predictions", unwritten)
        if html is not None:
            from mmn_fast.viz import evaluation_report

            title = f"Evaluation on {annotations.name}"
            out.beside("--html", lambda: save_html(evaluation_report(report, results, title=title), html))
