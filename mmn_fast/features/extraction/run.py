"""Extracts the features of many videos into one HDF5 file; what is finished is not done again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmn_fast.checks import Integer, Number, Optional
from mmn_fast.errors import InputError, WriteError
from mmn_fast.features.contract import FeatureContract
from mmn_fast.features.extraction.parts import Finished, Parts
from mmn_fast.features.extraction.videos import VideoFile, find_videos
from mmn_fast.features.extraction.workers import Skipped, Work, Workers
from mmn_fast.features.extractors.options import ExtractorOptions
from mmn_fast.features.extractors.registry import SPECS, split_spec
from mmn_fast.process.cores import usable_cores
from mmn_fast.storage.files import check_name

_LOG = logging.getLogger(__name__)
_Told = Callable[[VideoFile, float], object]


@dataclass(frozen=True)
class ExtractionReport:
    """What a run of `extract_features` did.

    Attributes:
        output: the HDF5 file; it exists if any video has features.
        contract: how the features were made.
        num_videos: videos that were named.
        num_kept: videos among them that an earlier run had finished.
        num_rows: rows of the videos of this run.
        video_s: seconds of video of this run.
        elapsed_s: seconds that this run took.
        skipped: file -> why it has no features.
        lost: file -> what of it was unreadable; its readable part has features.
    """

    output: Path
    contract: FeatureContract
    num_videos: int
    num_kept: int
    num_rows: int = 0
    video_s: float = 0.0
    elapsed_s: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    @property
    def num_extracted(self) -> int:
        """Videos that got their features in this run."""
        return self.num_videos - self.num_kept - len(self.skipped)

    def to_dict(self) -> dict[str, Any]:
        """The report, ready for `json.dumps`."""
        return {
            "output": str(self.output),
            "videos": self.num_videos,
            "extracted": self.num_extracted,
            "kept": self.num_kept,
            "skipped": self.skipped,
            "lost": self.lost,
            "rows": self.num_rows,
            "video_s": self.video_s,
            "elapsed_s": self.elapsed_s,
            "contract": self.contract.to_dict(),
        }

    def __str__(self) -> str:
        facts = [f"{self.num_rows} rows of {self.contract.width} from {_videos(self.num_extracted)}"]
        if self.num_kept:
            facts.append(f"{_videos(self.num_kept)} already done")
        if self.skipped:
            facts.append(f"{_videos(len(self.skipped))} skipped")
        if self.lost:
            facts.append(f"{_videos(len(self.lost))} with unreadable parts")
        speed = f"{self.video_s / 3600:.2f} hours of video in {self.elapsed_s:.0f} s"
        return f"{self.output}: {', '.join(facts)}; {speed}"


def extract_features(
    videos: Sequence[str | Path],
    output: str | Path,
    extractor: str | None = None,
    *,
    contract: FeatureContract | None = None,
    workers: int | None = None,
    max_duration_s: float | None = None,
    progress: bool = False,
    **options: Any,
) -> ExtractionReport:
    """Extract the features of videos into an HDF5 file.

    The output holds one float32 dataset [n, D] per video, under the video's id (its file's name without suffix), with
    the attributes `duration_s`, `source` (the video file's name), `source_bytes` (its size) and, if a part was
    unreadable, `lost`. The output's attribute `feature_contract` says how the features were made. An existing output
    keeps its videos; only new ones are done.

    Every finished video is a file in `<output>.parts` until the run ends. A killed run loses the videos at hand, and
    the same call goes on.

    Args:
        videos: files, folders, lists of files and patterns, as `find_videos` takes them.
        output: the HDF5 file to write or to add to, ending in .h5 or .hdf5.
        extractor: as `make_extractor` takes it; default the contract's.
        contract: the contract that the features must have, such as a model's; its sampling and output are the defaults.
        workers: processes; default one per core for extractors that run on a CPU without weights, else one.
        max_duration_s: longer videos are skipped.
        progress: show a progress bar on stderr.
        **options: `fps`, `clip_frames`, `stride`, `output`, `device`, `precision`, `batch_size` and `threads` of
            `make_extractor`, where `output` is called `extractor_output`.

    Returns:
        What was done. Skipped videos are in it, and each is logged as a warning.

    Raises:
        InputError: nothing is done: an argument cannot be used, two videos have one id, the extractor makes other
            features than `contract` says, or the output has features of another contract.
        WriteError: the system refuses to write; finished videos stay in `<output>.parts`.
    """
    found = find_videos(videos)
    check_name(output, "output")
    workers = Optional(Integer(1, 1024))(workers, "workers")
    max_duration_s = Optional(Number(0, above=True))(max_duration_s, "max_duration_s")
    options["output"] = options.pop("extractor_output", None)
    if contract is not None:
        extractor = contract.extractor if extractor is None else extractor
        for name in ("fps", "clip_frames", "stride", "output"):
            options[name] = getattr(contract, name) if options.get(name) is None else options[name]
    if extractor is None:
        raise InputError(f"extractor: expected {' or '.join(SPECS)}, got none")
    split_spec(extractor)
    ExtractorOptions(**options)  # refuses a value here, before a process starts
    if workers is None:
        workers = usable_cores() if extractor == "pixels" else 1
    workers = min(workers, len(found))
    if options.get("threads") is None:
        options["threads"] = max(usable_cores() // workers, 1)
    started = time.monotonic()
    with Parts(Path(output)) as parts:
        done = parts.done()
        waiting = [video for video in found if video.video_id not in done]
        with Workers(workers, Work(extractor, options, parts.folder, max_duration_s)) as pool:
            difference = None if contract is None else contract.first_difference(pool.contract)
            if difference is not None:
                raise InputError(f"extractor: {extractor} makes other features than the model's: {difference}")
            contract = pool.contract
            parts.begin(contract, found)
            with _bar(progress, len(found), len(found) - len(waiting)) as (told, finished):
                results = _run(pool, waiting, told, finished, parts.folder)
        for result in results:
            if isinstance(result, Finished):
                parts.finished[result.video_id] = result
        parts.assemble(contract)
    return _report(Path(output), contract, found, len(found) - len(waiting), results, time.monotonic() - started)


def _run(
    pool: Workers, waiting: list[VideoFile], told: _Told, finished: Callable[[Finished | Skipped], object], folder: Path
) -> list[Finished | Skipped]:
    """Run the processes over the waiting videos; an ending before the end says what is kept."""
    results: list[Finished | Skipped] = []

    def kept() -> str:
        count = sum(isinstance(result, Finished) for result in results)
        return f"{_videos(count)} of this run kept in {folder}; the same command goes on"

    try:
        for result in pool.run(waiting, told):
            results.append(result)
            finished(result)
            if isinstance(result, Skipped):
                _LOG.warning("skipped: %s", result.reason)
            elif result.lost is not None:
                _LOG.warning("%s: %s; the rest of it is used", result.video_id, result.lost)
    except WriteError as error:
        raise WriteError(f"{error}; {kept()}") from None
    except (KeyboardInterrupt, SystemExit):
        _LOG.warning("stopped: %s", kept())
        raise
    return results


def _videos(count: int) -> str:
    return f"{count} video{'' if count == 1 else 's'}"


def _report(
    output: Path,
    contract: FeatureContract,
    found: list[VideoFile],
    num_kept: int,
    results: list[Finished | Skipped],
    elapsed_s: float,
) -> ExtractionReport:
    done = [result for result in results if isinstance(result, Finished)]
    paths = {video.video_id: str(video.path) for video in found}
    return ExtractionReport(
        output,
        contract,
        len(found),
        num_kept,
        sum(one.num_rows for one in done),
        sum(one.duration_s for one in done),
        elapsed_s,
        {str(one.video.path): one.reason for one in results if isinstance(one, Skipped)},
        {paths[one.video_id]: one.lost for one in done if one.lost is not None},
    )


@contextmanager
def _bar(shown: bool, total: int, kept: int) -> Iterator[tuple[_Told, Callable[[Finished | Skipped], object]]]:
    """Show a progress bar on stderr: videos, videos a second, and hours of video a second.

    Yields:
        The function to call with a video at hand and its seconds that are done, and the one to call with a result.
    """
    if not shown:
        yield (lambda _video, _seconds: None), (lambda _result: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn()
    started, seconds_done, at_hand = time.monotonic(), 0.0, dict[str, float]()
    num_done = 0
    with Progress(TextColumn("videos"), *columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("videos", total=total, completed=kept, speed="")

        def show() -> None:
            elapsed = max(time.monotonic() - started, 1e-3)
            hours = (seconds_done + sum(at_hand.values())) / 3600
            bar.update(
                task,
                completed=kept + num_done,
                speed=f"{num_done / elapsed:.2f} videos/s, {hours / elapsed:.4f} hours of video/s",
            )

        def told(video: VideoFile, seconds: float) -> None:
            at_hand[video.video_id] = seconds
            show()

        def finished(result: Finished | Skipped) -> None:
            nonlocal num_done, seconds_done
            num_done += 1
            at_hand.pop(result.video.video_id if isinstance(result, Skipped) else result.video_id, None)
            seconds_done += 0.0 if isinstance(result, Skipped) else result.duration_s
            show()

        yield told, finished
