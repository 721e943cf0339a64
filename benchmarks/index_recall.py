"""Retrieval of the demo model from a library of its world, with every storage of an index.

    python -m benchmarks.index_recall [--videos 150] [--threads 2]

Prints TVR's figures, and how many of a sentence's ten best moments in fp32 are among the ten best of the storage. A
sentence may be true in other videos of the library as well, which lowers the figures of all storages alike.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import mmn_fast
from mmn_fast import Match, MomentIndex
from mmn_fast.demo.shapes import make_video
from mmn_fast.evaluation import Sample
from mmn_fast.evaluation.corpus import Answer, evaluate_corpus
from mmn_fast.types import Video

FIRST_SEED = 5000  # of the test split; no training has seen it
STORAGES = ("fp32", "fp16", "int8")
FIGURES = (("VCMR", "R@1,IoU@0.5"), ("VCMR", "R@10,IoU@0.5"), ("VCMR", "R@100,IoU@0.7"), ("VR", "R@1"), ("VR", "R@10"))


def draw(count: int) -> tuple[list[Video], list[Sample]]:
    """Draw videos of the test split, with their sentences and true spans."""
    videos, samples = [], []
    for number in range(count):
        drawn = make_video("test", FIRST_SEED + number, 0)
        name = f"shapes-{number}"
        videos.append(Video(drawn.features, drawn.duration_s, name))
        truths = tuple(np.array([[one.fact.start_s, one.fact.end_s]]) for one in drawn.sentences)
        sentences = tuple(one.text for one in drawn.sentences)
        names = tuple(f"{name}#{place}" for place in range(len(sentences)))
        samples.append(Sample(name, drawn.duration_s, sentences, truths, names))
    return videos, samples


def overlap(first: list[Answer], other: list[Answer]) -> float:
    """Mean share of the ten best moments of one list of answers that are among the ten best of another."""

    def spans(matches: list[Match]) -> set[tuple[str, float, float]]:
        return {(match.video_id, match.start_s, match.end_s) for match in matches[:10]}

    shared = [len(spans(list(a.moments)) & spans(list(b.moments))) for a, b in zip(first, other, strict=True)]
    return float(np.mean(shared)) / 10


def main() -> None:
    """Print a line per storage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=150)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    engine = mmn_fast.load("demo", device="cpu", threads=options.threads)
    videos, samples = draw(options.videos)
    print(f"{len(videos)} videos, {sum(len(one.sentences) for one in samples)} sentences")
    exact: list[Answer] = []
    with tempfile.TemporaryDirectory() as folder:
        for storage in STORAGES:
            answers: list[Answer] = []
            with MomentIndex.create(Path(folder) / storage, engine, storage) as index:
                index.add(videos)
                report = evaluate_corpus(engine, index, samples, threads=options.threads, on_answer=answers.append)
            exact = exact or answers
            told = [f"{task} {name} {100 * report.metrics[task][name]:5.1f}" for task, name in FIGURES]
            print(f"{storage}  {'  '.join(told)}  top-10 overlap {100 * overlap(exact, answers):6.2f}", flush=True)


if __name__ == "__main__":
    main()
