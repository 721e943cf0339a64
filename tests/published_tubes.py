"""Files as HC-STVG's official solution publishes them, made of the small golden case."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.golden import cases
from mmn_fast.features import tube_pre_clips
from mmn_fast.tubes import TubeQuery

CASE = cases.load("hcstvg_small")


def truth_of(query: TubeQuery) -> np.ndarray:
    """The true tube, float32 [F, 5]."""
    return CASE.arrays[f"{query.video_id}.ground_truth"]


def near_truth(query: TubeQuery) -> np.ndarray:
    """A true tube near the official answer: the case's own true tubes overlap none. Float32 [F, 5]."""
    rows = CASE.arrays[f"{query.video_id}.boxes"]
    shift = np.float32([0, 45, 3][int(query.video_id[-1])])  # pixels
    return rows[len(rows) // 4 :] + np.array([0, shift, 0, shift, 0], np.float32)


def write_annotations(
    path: Path,
    queries: Sequence[TubeQuery],
    version: int = 2,
    truth: Callable[[TubeQuery], np.ndarray] = truth_of,
) -> Path:
    """Official annotations: x, y, width and height per frame; v1 has `caption` and no `ed_frame`."""
    content = {}
    for query in queries:
        rows = truth(query).astype(np.float64)
        entry: dict[str, Any] = {"img_num": 600, "st_frame": int(rows[0, 0]), "ed_frame": int(rows[-1, 0])}
        entry["bbox"] = np.hstack([rows[:, 1:3], rows[:, 3:] - rows[:, 1:3]]).tolist()
        entry["English" if version == 2 else "caption"] = query.sentences[0]
        if version == 1:
            del entry["ed_frame"]
        content[f"{query.video_id}.mp4"] = entry
    path.write_text(json.dumps(content))
    return path


def rows_of(tube: Any, score: bool) -> np.ndarray:
    """Rows (frame, x1, y1, x2, y2), and the detector's score."""
    columns = [tube.frames[:, None], tube.boxes, *([np.full((len(tube.frames), 1), 0.9)] if score else [])]
    return np.hstack(columns).astype(np.float32)


def write_raw(folder: Path, queries: Sequence[TubeQuery]) -> list[str]:
    """`<video>_tubes.pkl` and one file of rows per stream; gives the command's options."""
    (folder / "tubes").mkdir()
    streams: list[dict[str, Any]] = [{}, {}]
    for query in queries:
        content = {0: [(rows_of(tube, True), 0.5) for tube in query.tubes], "fps": 20}
        (folder / "tubes" / f"{query.video_id}_tubes.pkl").write_bytes(pickle.dumps(content))
        for number, stream in enumerate(streams):
            stream[query.video_id] = {
                t: [torch.cat([torch.zeros(1), torch.from_numpy(row)]) for row in tube.features[number]]
                for t, tube in enumerate(query.tubes)
            }
    for number, stream in enumerate(streams):
        torch.save(stream, folder / f"stream{number}.pth", _use_new_zipfile_serialization=number == 1)
    return options(folder / "tubes", folder / "stream0.pth", folder / "stream1.pth")


def write_prepared(folder: Path, queries: Sequence[TubeQuery], test: bool = False) -> list[str]:
    """`<video>.pkl` with everything but features, and a folder of averaged pre-clips per stream."""
    (folder / "prepared").mkdir()
    widths = CASE.preset.feature_streams
    for name in ("csn_feats", "flow_feats"):
        (folder / name).mkdir()
    for query in queries:
        video = f"{query.video_id}.mp4" if test else query.video_id
        content: dict[str, Any] = {
            "vid": video,
            "tubes": [rows_of(tube, False) for tube in query.tubes],
            "sentence": query.sentences[0],
            "query": torch.from_numpy(CASE.arrays[f"{query.video_id}.token_ids"]),
            "wordlen": torch.tensor([CASE.arrays[f"{query.video_id}.token_ids"].shape[1]]),
            "tubenum": len(query.tubes),
        }
        if not test:
            content["gttube"] = torch.from_numpy(truth_of(query))
            content["iou2d"] = torch.from_numpy(CASE.arrays[f"{query.video_id}.target_iou"])
        (folder / "prepared" / f"{video}.pkl").write_bytes(pickle.dumps(content))
        clips = np.stack([tube_pre_clips(tube, CASE.preset, "tube") for tube in query.tubes])
        parts = np.split(clips, [widths[0]], axis=2)
        for name, part in zip(("csn_feats", "flow_feats"), parts, strict=True):
            (folder / name / f"{video}.pkl").write_bytes(pickle.dumps(torch.from_numpy(part.copy())))
    return options(folder / "prepared", folder / "csn_feats", folder / "flow_feats")


def options(tubes: Path, *features: Path) -> list[str]:
    """Options of `mmn-fast data hc-stvg`."""
    return ["--tubes", str(tubes), *(word for path in features for word in ("--features", str(path)))]
