"""A part of `make demo`: grounds official files and prints the moments beside the official implementation's.

It rebuilds the golden case charades_small as an official checkpoint and a feature file, converts the checkpoint and
grounds the case's sentences, with public calls only. The weights are random: the demo shows that both implementations
agree, not that the moments make sense.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import mmn_fast
from benchmarks.golden import cases
from mmn_fast.checkpoint import convert
from mmn_fast.features import open_features

TOP_K = 3


def main() -> None:
    """Run the demo and print its table."""
    case = cases.load("charades_small")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        case.write_checkpoint(root / "official.pth", training_state=True)
        case.write_features(root / "features.h5")
        model = convert(root / "official.pth", case.preset, cases.VOCAB, root / "model")
        engine = mmn_fast.load(model)
        with open_features(root / "features.h5", case.preset.feature_key) as store:
            batch = [
                mmn_fast.Query(mmn_fast.Video(store[v.video_id], v.duration_s, v.video_id), v.sentences)
                for v in case.videos
            ]
        result = engine.ground(batch, top_k=TOP_K)

    info = engine.info()
    print(f"mmn_fast {mmn_fast.__version__}: backend {info['backend']}, {info['device']}, {info['precision']}")
    print(f"{'':47} {'mmn_fast':^27}   {'official':^17}")
    largest = 0.0
    for video, sentences in zip(case.videos, result, strict=True):
        for sentence, ours, official in zip(video.sentences, sentences, video.moments, strict=True):
            for rank, (moment, (start_s, end_s)) in enumerate(zip(ours, official, strict=False)):
                largest = max(largest, abs(moment.start_s - start_s), abs(moment.end_s - end_s))
                print(
                    f"{video.video_id + ': ' + sentence if rank == 0 else '':47.47} {moment.start_s:6.2f} -"
                    f" {moment.end_s:6.2f} s  ({moment.score:.4f})   {start_s:6.2f} - {end_s:6.2f} s"
                )
    print(f"largest difference: {largest:.1e} s")


if __name__ == "__main__":
    main()
