"""Annotation files of temporal grounding, read into one form: samples in seconds.

Three published layouts are recognised by their content:

* MMN's JSON, `{video: {duration, timestamps, sentences}}` in seconds, or in frames with `fps` and `num_frames`
  instead of `duration`; a timestamp is a window, or a list of windows that are several ground truths;
* Charades-STA's text, one line `VIDEO start end##sentence` per sentence, in seconds and without durations;
* QVHighlights' JSON lines (also Lighthouse's), `{qid, query, vid, duration, relevant_windows}` in seconds; several
  windows are several ground truths.
"""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmn_fast.arrays import Float32, Float64
from mmn_fast.checks import Number, Text, fail, shown
from mmn_fast.errors import InputError
from mmn_fast.evaluation.notes import Note, Tally, refuse, say
from mmn_fast.presets import Preset, get_preset
from mmn_fast.storage.documents import NotJsonError, parse_json, read_text

Windows = Float32 | Float64
Durations = str | Path | Mapping[str, float]

logger = logging.getLogger(__name__)

_MAX_FILE = 2**30  # bytes; the published files have at most 4 MB
# Bounds of seconds and frames: float32 arithmetic on fractions of them still works. A billion frames is a year.
_LENGTH = Number(0, 1e9, above=True)
_TIME = Number(-1e9, 1e9)
_NAME = Text(most=4096)
_SENTENCE = Text(most=100_000)

_LAYOUTS = (
    "a JSON object of videos, Charades-STA lines 'VIDEO start end##sentence', or JSON lines with qid, query, vid, "
    "duration and relevant_windows"
)


@dataclass(frozen=True, eq=False)
class Sample:
    """One video, its sentences and the moments that they describe.

    Attributes:
        video_id: the video's name, the key of its features.
        duration_s: its length in seconds.
        sentences: S sentences, as annotated (leading spaces too).
        moments_s: per sentence its ground-truth windows, float64 (or float32) [G, 2] seconds. Charades-STA's layout has
            G = 1; G = 0 where no truth is known. A protocol that compares in float32 rounds the windows.
        query_ids: per sentence its name in predictions: the file's qid, else "<video_id>#<index in the video>". The
            index counts all entries, dropped ones too.
    """

    video_id: str
    duration_s: float
    sentences: tuple[str, ...]
    moments_s: tuple[Windows, ...]
    query_ids: tuple[str | int, ...]

    def __post_init__(self) -> None:
        counts = (len(self.sentences), len(self.moments_s), len(self.query_ids))
        if len(set(counts)) != 1:
            raise InputError(
                f"sample {self.video_id!r}: expected as many sentences as moments and query ids, got "
                f"{counts[0]}, {counts[1]} and {counts[2]}"
            )
        for index, windows in enumerate(self.moments_s):
            if np.ndim(windows) != 2 or windows.shape[1] != 2 or windows.dtype.kind != "f":
                came = f"{getattr(windows, 'dtype', type(windows).__name__)} {list(np.shape(windows))}"
                raise InputError(f"sample {self.video_id!r}: moments_s[{index}]: expected float64 [G, 2], got {came}")


def read_annotations(
    path: str | Path,
    preset: str | Path | Preset | None = None,
    durations: Durations | None = None,
    strict: bool = False,
    truth: bool = True,
) -> Annotations:
    """Read an annotation file of any of the three layouts.

    Repairs follow the official code: a window whose start is not before its end is dropped (counted and logged once),
    starts are clamped to 0 and ends to the duration. A sentence that has no window left and a video that has no
    sentence left are dropped. The published training files hold entries of every such kind.

    Args:
        path: the annotation file.
        preset: the preset that the file belongs to. If its timestamps are in frames, the JSON layout must have `fps`
            and `num_frames`. Otherwise a file that has both is read in frames, any other file in seconds.
        durations: lengths in seconds: a mapping by video, a JSON file of such a mapping or in MMN's layout, or the
            Charades CSV with the columns id and length. The Charades-STA text needs it; no other layout takes it.
        strict: refuse instead of repairing: windows that end at or before their start, begin before 0 or end after the
            duration, sentences without a window, and videos without a sentence.
        truth: False reads sentences to predict: windows may be missing, null or empty and are ignored, a line of text
            may be `VIDEO##sentence`, and every sentence is kept, with moments_s [0, 2].

    Returns:
        One sample per video, in the file's order; the list's `notes` say what was left out or clamped.

    Raises:
        InputError: the file cannot be used; the message names it and the entry.
    """
    path = Path(path)
    unit = None if preset is None else get_preset(preset).timestamp_unit
    text = _read_text(path, "annotations")
    layout, content = _recognise(text, path)
    if layout == "text":
        videos = _from_text(text, path, durations, truth)
    elif durations is not None:
        raise InputError(f"durations: only Charades-STA text takes them, and {path} states its durations itself")
    elif layout == "json":
        videos = _from_json(content, path, unit, truth)
    else:
        videos = _from_json_lines(text, path, truth)
    if not truth:
        return _without_truth(videos, path, strict)
    return _samples(videos, path, strict)


@dataclass
class _Entry:
    """A sentence as it is in the file; `where` names it in messages."""

    where: str
    query_id: str | int
    sentence: Any
    windows: list[Any]


@dataclass
class _VideoEntries:
    """A video as it is in the file; times are in `1 / units_per_s` seconds."""

    duration_s: float
    units_per_s: float = 1.0
    entries: list[_Entry] = field(default_factory=list)


def _read_text(path: Path, what: str) -> str:
    text = read_text(path, f"{what}: {path}", _MAX_FILE)
    if not text.strip():
        raise InputError(f"{what}: {path}: the file is empty")
    return text


def _recognise(text: str, path: Path) -> tuple[str, Any]:
    """Return the layout, "json", "jsonl" or "text", and for "json" the parsed content."""
    first_line = text.lstrip().split("\n", 1)[0]
    if not first_line.startswith("{"):
        if "##" in first_line:
            return "text", None
        raise InputError(f"annotations: {path}: expected {_LAYOUTS}; it begins with {first_line[:40]!r}")
    try:
        content = parse_json(text, f"annotations: {path}")
    except NotJsonError as whole:
        try:
            parse_json(first_line, f"annotations: {path}: line 1")
        except NotJsonError:
            raise whole from None
        return "jsonl", None
    # A file of one JSON line also parses as a whole JSON object, but its values are not videos.
    return ("jsonl", None) if isinstance(content.get("query"), str) else ("json", content)


def _fields(record: Any, names: tuple[str, ...], where: str) -> list[Any]:
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected an object with {', '.join(names)}, got {type(record).__name__}")
    missing = [name for name in names if name not in record]
    if missing:
        has = ", ".join(str(name)[:40] for name in list(record)[:12]) or "nothing"
        alone = len(missing) == 1 and missing[0] in ("timestamps", "relevant_windows")
        hint = " (`mmn-fast predict` needs no windows)" if alone else ""
        if "bbox" in record and "st_frame" in record:
            hint = "; these are annotations of tubes, which go with a preset of tubes, such as hc-stvg"
        raise InputError(f"{where}: missing {', '.join(missing)}; it has {has}{hint}")
    return [record[name] for name in names]


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{where}: expected a list, got {type(value).__name__}")
    return value


def _frames_and_rate(record: dict[str, Any], where: str) -> tuple[float, float]:
    num_frames, fps = _fields(record, ("num_frames", "fps"), where)
    return _LENGTH(num_frames, f"{where}: num_frames"), _LENGTH(fps, f"{where}: fps")


def _in_frames(record: Any) -> bool:
    return isinstance(record, dict) and "fps" in record and "num_frames" in record


def _from_json(content: dict[str, Any], path: Path, unit: str | None, truth: bool) -> dict[str, _VideoEntries]:
    videos = {}
    for video_id, record in content.items():
        where = f"annotations: {path}: video {shown(video_id)}"
        _NAME(video_id, f"{where}: name")
        if unit == "frames" or _in_frames(record):
            names: tuple[str, ...] = (*_windows_field(truth, "timestamps"), "sentences", "fps", "num_frames")
            _fields(record, names, where)
            num_frames, fps = _frames_and_rate(record, where)
            video = _VideoEntries(_LENGTH(num_frames / fps, f"{where}: num_frames / fps"), fps)
        else:
            names = ("duration", *_windows_field(truth, "timestamps"), "sentences")
            duration, *_ = _fields(record, names, where)
            video = _VideoEntries(_LENGTH(duration, f"{where}: duration"))
        sentences = _list(record["sentences"], f"{where}: sentences")
        known = record["timestamps"] if truth else None
        timestamps = [None] * len(sentences) if known in (None, []) else _list(known, f"{where}: timestamps")
        if len(timestamps) != len(sentences):
            raise InputError(
                f"{where}: expected as many timestamps as sentences, got {len(timestamps)} timestamps and "
                f"{len(sentences)} sentences"
            )
        for index, (window, sentence) in enumerate(zip(timestamps, sentences, strict=True)):
            entry = _Entry(f"{where}, entry {index}", f"{video_id}#{index}", sentence, _given(_several(window)))
            video.entries.append(entry)
        videos[video_id] = video
    return videos


def _windows_field(truth: bool, name: str) -> tuple[str, ...]:
    return (name,) if truth else ()


def _several(timestamp: Any) -> list[Any]:
    """The windows of a JSON timestamp: [start, end], or a list of such windows, among which null stands for none."""
    lists = isinstance(timestamp, list) and [isinstance(one, list) for one in timestamp if one is not None]
    return timestamp if lists and all(lists) else [timestamp]


def _given(windows: list[Any]) -> list[Any]:
    """Drop nulls, which stand for missing windows."""
    return [window for window in windows if window is not None]


def _lines(text: str) -> Iterator[tuple[int, str]]:
    # Not splitlines(): that also splits at separators which JSON strings may hold unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.rstrip("\r")


def _from_json_lines(text: str, path: Path, truth: bool) -> dict[str, _VideoEntries]:
    videos: dict[str, _VideoEntries] = {}
    line_of: dict[str | int, int] = {}
    for number, line in _lines(text):
        where = f"annotations: {path}: line {number}"
        record = parse_json(line, where, one_line=True)
        names = ("qid", "query", "vid", "duration", *_windows_field(truth, "relevant_windows"))
        query_id, sentence, video_id, duration, *windows = _fields(record, names, where)
        if isinstance(query_id, bool) or not isinstance(query_id, (int, str)):
            raise InputError(f"{where}: qid: expected an integer or a string, got {shown(query_id)}")
        if line_of.setdefault(query_id, number) != number:
            raise InputError(f"{where}: qid {query_id!r} is taken by line {line_of[query_id]}")
        _NAME(video_id, f"{where}: vid")
        duration_s = _LENGTH(duration, f"{where}: duration")
        video = videos.setdefault(video_id, _VideoEntries(duration_s))
        if video.duration_s != duration_s:
            raise InputError(
                f"{where}: duration: expected {video.duration_s} as in earlier lines of {video_id!r}, got {duration_s}"
            )
        known = [] if windows in ([], [None]) else _list(windows[0], f"{where}: relevant_windows")
        video.entries.append(_Entry(where, query_id, sentence, _given(known)))
    return videos


def _from_text(text: str, path: Path, durations: Durations | None, truth: bool) -> dict[str, _VideoEntries]:
    if durations is None:
        raise InputError(
            f"durations: {path} is Charades-STA text, which does not state how long videos are; expected a mapping, "
            "a JSON file, or the Charades CSV with the columns id and length, got nothing"
        )
    videos: dict[str, _VideoEntries] = {}
    for number, line in _lines(text):
        where = f"annotations: {path}: line {number}"
        head, separator, sentence = line.partition("##")
        words = head.split()
        if not separator or len(words) not in ((3,) if truth else (1, 3)):
            expected = "'VIDEO start end##sentence'" + ("" if truth else " or 'VIDEO##sentence'")
            raise InputError(f"{where}: expected {expected}, got {line[:60]!r}")
        video_id, *times = words
        try:
            window = [float(time) for time in times] if truth else None
        except ValueError:
            raise InputError(f"{where}: expected start and end as numbers, got {times}") from None
        video = videos.setdefault(video_id, _VideoEntries(math.nan))
        video.entries.append(_Entry(where, f"{video_id}#{len(video.entries)}", sentence, _given([window])))
    lengths, source = given_durations(durations)
    unknown = [video_id for video_id in videos if video_id not in lengths]
    if unknown:
        raise InputError(
            f"durations: {source} lacks {len(unknown)} of the {len(videos)} videos of {path}: {first_few(unknown)}"
        )
    for video_id, video in videos.items():
        video.duration_s = duration_of(lengths[video_id], f"durations: {source}: video {video_id!r}")
    return videos


def first_few(names: list[str]) -> str:
    """Quote the first three names, for messages."""
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")


def given_durations(durations: Durations) -> tuple[Mapping[str, Any], str]:
    """Read each video's length as the source spells it; also return the source's name for messages."""
    if isinstance(durations, Mapping):
        return durations, "the mapping"
    path = Path(durations)
    text = _read_text(path, "durations")
    if text.lstrip().startswith("{"):
        return parse_json(text, f"durations: {path}"), str(path)
    table = csv.DictReader(io.StringIO(text, newline=""))
    columns = table.fieldnames or []
    if "id" not in columns or "length" not in columns:
        raise InputError(f"durations: {path}: expected a JSON object or a CSV with the columns id and length")
    return {row["id"]: row["length"] for row in table}, str(path)


def duration_of(value: Any, where: str) -> float:
    """The length in seconds that an entry of `given_durations` stands for; `where` names the entry in messages."""
    if isinstance(value, str):  # a CSV cell
        try:
            value = float(value)
        except ValueError:
            raise InputError(f"{where}: expected a length in seconds, got {shown(value)}") from None
    if _in_frames(value):
        num_frames, fps = _frames_and_rate(value, where)
        return _LENGTH(num_frames / fps, f"{where}: num_frames / fps")
    if isinstance(value, dict):
        return _LENGTH(_fields(value, ("duration",), where)[0], f"{where}: duration")
    return _LENGTH(value, where)


def _window_s(window: Any, where: str, video: _VideoEntries, strict: bool) -> tuple[float, float] | None:
    """Convert a window to seconds within the video; None means that the window is dropped."""
    if not isinstance(window, list) or len(window) != 2:
        raise fail(where, "a window [start, end]", window)
    start, end = (_TIME(time, f"{where}: window {shown(window)}") for time in window)
    start_s, end_s = start / video.units_per_s, end / video.units_per_s
    if strict:
        if end <= start:
            raise InputError(f"{where}: expected start < end, got {window!r}")
        if start < 0 or end_s > video.duration_s:
            expected = f"expected times from 0 to the duration, {video.duration_s!r} s"
            raise InputError(f"{where}: {expected}, got {start_s!r} to {end_s!r} s")
    if start >= end:
        return None
    return max(start_s, 0.0), min(end_s, video.duration_s)


def _sentence(entry: _Entry) -> str:
    if not isinstance(entry.sentence, str) or not entry.sentence.strip():
        raise fail(entry.where, "a sentence with words", entry.sentence)
    _SENTENCE(entry.sentence, f"{entry.where}: sentence")
    return entry.sentence


def _without_truth(videos: dict[str, _VideoEntries], path: Path, strict: bool) -> Annotations:
    samples, tally = Annotations(), Tally()
    for video_id, video in videos.items():
        if video.entries:
            sentences = tuple(_sentence(entry) for entry in video.entries)
            nothing = (np.empty((0, 2)),) * len(sentences)
            names = tuple(entry.query_id for entry in video.entries)
            samples.append(Sample(video_id, video.duration_s, sentences, nothing, names))
        else:
            tally.add("left_out", "videos", "they have no sentence", f"video {video_id!r}")
    samples.notes = tally.notes({"videos": len(videos)})
    if strict:
        refuse(samples.notes)
    say(logger, path, samples.notes)
    if not samples:
        raise InputError(f"annotations: {path}: no video with a sentence in it")
    return samples


class Annotations(list[Sample]):
    """The samples of an annotation file.

    Attributes:
        notes: what was left out or clamped.
    """

    notes: tuple[Note, ...] = ()


_BACKWARDS = "the start is not before the end, as the official evaluation does"
_OUTSIDE = "they reach beyond the video's ends, as the official evaluation does"
_BEYOND = "they lie wholly outside the video, where nothing is found; the official evaluation counts them as missed"


def _samples(videos: dict[str, _VideoEntries], path: Path, strict: bool) -> Annotations:
    samples, tally, totals = Annotations(), Tally(), dict.fromkeys(("videos", "sentences", "windows"), 0)
    for video_id, video in videos.items():
        kept: list[tuple[str, Windows, str | int]] = []
        for entry in video.entries:
            sentence = _sentence(entry)
            windows = [_window_s(window, entry.where, video, strict) for window in entry.windows]
            usable = [window for window in windows if window is not None]
            totals["sentences"] += 1
            totals["windows"] += len(windows)
            first = f"video {video_id!r}, sentence {sentence.strip()[:60]!r}"
            _note_windows(entry, windows, video, f"{first}, window", tally)
            if usable:
                kept.append((sentence, np.array(usable, np.float64), entry.query_id))
            elif strict:
                raise InputError(f"{entry.where}: expected at least one window, got none")
            else:
                tally.add("left_out", "sentences", _BACKWARDS if windows else "they have no window", first)
        totals["videos"] += 1
        if kept:
            sentences, moments, query_ids = zip(*kept, strict=True)
            samples.append(Sample(video_id, video.duration_s, sentences, moments, query_ids))
        elif strict:
            raise InputError(f"annotations: {path}: video {video_id!r}: expected a sentence, got none")
        else:
            tally.add("left_out", "videos", "no sentence of theirs remains", f"video {video_id!r}")
    samples.notes = tally.notes(totals)
    say(logger, path, samples.notes)
    if not samples:
        hint = "; `mmn-fast predict` needs no windows"
        raise InputError(f"annotations: {path}: no video with a sentence and a window in it{hint}")
    return samples


def _note_windows(
    entry: _Entry, windows: list[tuple[float, float] | None], video: _VideoEntries, where: str, tally: Tally
) -> None:
    for raw, window in zip(entry.windows, windows, strict=True):
        if window is None:
            if any(other is not None for other in windows):  # otherwise the sentence itself is counted
                tally.add("left_out", "windows", _BACKWARDS, f"{where} {raw}")
        elif raw[0] < 0 or raw[1] / video.units_per_s > video.duration_s:
            outside = window[0] >= window[1]
            tally.add("clamped", "windows", _BEYOND if outside else _OUTSIDE, f"{where} {raw}")
