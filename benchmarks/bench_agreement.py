"""Compares every backend and precision with the float64 reference, on the trained demo model.

    python -m benchmarks.bench_agreement [--videos 150] [--threads 2]

Prints and records, per backend and precision that can run here: time to score the split, R@1 and its difference,
top-1 agreement, and the largest difference of a fused score.
"""

from __future__ import annotations

import argparse
import os

import mmn_fast
from benchmarks.timing import alternate, record
from mmn_fast.backends.registry import available_backends, backend_class
from mmn_fast.demo.split import draw_split
from mmn_fast.evaluation.agreement import agreement_with
from mmn_fast.precisions import PRECISIONS


def main() -> None:
    """Run the benchmark and append its lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=150)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    split = draw_split(options.videos, workers=len(os.sched_getaffinity(0)))
    exact = mmn_fast.load("demo", backend="torch", precision="fp64", threads=options.threads).score_maps(split.batch)
    peer = mmn_fast.load("demo", backend="torch", precision="fp32", threads=options.threads)
    print(f"{split.num_sentences} sentences of {options.videos} videos, {options.threads} threads")
    for precision in PRECISIONS:
        for backend, reason in available_backends("cpu", precision).items():
            if reason is not None:
                print(f"{backend:8} {precision:5} {reason}")
                continue
            if backend_class(backend).takes_exports:
                continue  # bench_export.py compares exports
            engine = mmn_fast.load("demo", backend=backend, precision=precision, threads=options.threads)
            found = agreement_with(engine, exact, split)
            timings = alternate(
                {
                    f"{backend} {precision}": lambda engine=engine: engine.score_maps(split.batch),
                    "torch fp32": lambda: peer.score_maps(split.batch),
                },
                options.repeats,
                warmup=0,
            )
            facts = {
                "sentences": found.num_sentences,
                "top1_agreement": found.top1,
                "recall": found.recall,
                "recall_difference": found.recall_difference,
                "backend": backend,
                "precision": precision,
                "threads": options.threads,
                "preset": engine.preset.name,
            }
            record("bench_agreement", timings, found.max_fused_difference, **facts)
            key = f"R@1,IoU@{engine.preset.recall_ious[0]}"
            print(
                f"{backend:8} {precision:5} {timings[f'{backend} {precision}'].median_ms:9.0f} ms   {key}"
                f" {found.recall[key]:.4f} ({found.recall_difference[key]:+.4f})   top-1 agreement {found.top1:.4f}"
                f"   largest difference {found.max_fused_difference:.1e}"
            )


if __name__ == "__main__":
    main()
