"""Times the web service on loopback beside direct calls of the engine, and drives it beyond what it can carry.

    python -m benchmarks.bench_serve [--parts throughput latency sizes overload mixed ray] [--threads 2] [--rounds 6]
        [--seconds 20] [--clients 32] [--ray-case charades_full] [--ray-proxy haproxy] [--dry-run]

The service is a process of its own; its clients share the machine with it. Rounds of the service and of direct calls
take turns. `throughput`: the demo's model, 32 clients that each send one request at a time, by binary features and by
id, beside `engine.ground` of the same 32 queries; by id also beside the seams on the same stored embeddings.
`latency`: the same with one client. `sizes`: the Charades-STA golden case. `overload`: requests arrive at twice the
rate that was measured. `mixed`: searches, additions, removals, malformed bodies, aborted uploads and slow clients;
memory, handles and files are watched. `ray`: two replicas on a Ray cluster of this machine beside one. The error is the
largest difference of an answer from the direct call's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

import mmn_fast
from benchmarks.golden import cases
from benchmarks.serve_clients import Request, Served, closed_loop, ground_by_features, ground_by_id, serving
from benchmarks.serve_load import mixed_load, overload
from benchmarks.timing import Timing, record
from mmn_fast.checkpoint import LoadedModel, save_model
from mmn_fast.demo.shapes import make_video
from mmn_fast.tokenizer import load_tokenizer
from mmn_fast.types import Query, Video

_DIRECT = "direct call"
_RAY_REPEATS = 10  # with 3, the end of a round, when one replica is idle, counts a tenth
_REPEATS = 10  # requests of each client in a round, so that its first and last moments count little
PARTS = ("throughput", "latency", "sizes", "overload", "mixed", "ray")
Answers = list[list[dict[str, float]]]


def demo_queries(count: int) -> list[Query]:
    """Queries of the demo's world: one video each, with one of its sentences."""
    drawn = [make_video("test", 1, number) for number in range(count)]
    return [Query(Video(one.features, one.duration_s, one.video_id), [one.sentences[0].text]) for one in drawn]


def golden_queries(name: str, count: int) -> list[Query]:
    """Queries with random features of a golden case's width, as many rows as its first video has."""
    first, rng = cases.load(name).videos[0], np.random.default_rng(0)
    shape = first.features.shape
    return [
        Query(
            Video(rng.standard_normal(shape).astype(np.float32), first.duration_s, f"video-{number}"),
            [f"{first.sentences[0]} {number}"],
        )
        for number in range(count)
    ]


def _model(name: str) -> LoadedModel:
    case = cases.load(name)
    tokenizer = load_tokenizer(cases.VOCAB, case.text.max_tokens)
    return LoadedModel(case.preset, case.text, case.state(), tokenizer, name)


def _direct(engine: mmn_fast.Engine, queries: Sequence[Query]) -> list[Answers]:
    return [[[m.to_dict() for m in moments] for moments in found] for found in engine.ground(queries)]


def _difference(served: list[bytes], direct: list[Answers]) -> float:
    """The largest difference of a number of the answers; infinity if they have other moments."""
    worst = 0.0
    for body, wanted in zip(served, direct, strict=True):
        found = [result["moments"] for result in json.loads(body)["results"]]
        if [len(one) for one in found] != [len(one) for one in wanted]:
            return float("inf")
        for moments, others in zip(found, wanted, strict=True):
            for one, other in zip(moments, others, strict=True):
                worst = max([worst, *(abs(one[name] - other[name]) for name in one)])
    return worst


def _by_seams(engine: mmn_fast.Engine, index: mmn_fast.MomentIndex, queries: Sequence[Query]) -> list[Answers]:
    """Ground from the embeddings of an index, as requests by id do."""
    texts = engine.encode_text([query.sentences[0] for query in queries])
    found = []
    for number, query in enumerate(queries):
        (moments,) = engine.score(index.embeddings([query.video.video_id]), texts[number])
        found.append([[moment.to_dict() for moment in one] for one in moments])
    return found


def compare(
    served: Served, direct_call: Callable[[], list[Answers]], requests: Sequence[Request], rounds: int
) -> tuple[dict[str, Timing], float]:
    """Time the requests, all at once from one client each, beside one direct call; take turns.

    Returns:
        Timings of a round, and the largest difference of an answer.
    """
    seconds: dict[str, list[float]] = {"mmn_fast served": [], _DIRECT: []}
    worst = 0.0
    for number in range(rounds + 2):
        started = time.perf_counter()
        direct = direct_call()
        between = time.perf_counter()
        answers = uvloop.run(closed_loop(served.port, [[one] for one in requests], _REPEATS))
        elapsed = (answers.elapsed_s / _REPEATS, between - started)
        assert set(answers.statuses) == {200}, answers.statuses
        worst = max(worst, _difference(answers.last, direct))
        if number >= 2:
            for name, value in zip(seconds, elapsed, strict=True):
                seconds[name].append(value)
    return {name: Timing.of(found) for name, found in seconds.items()}, worst


def _say(what: str, timings: dict[str, Timing], worst: float) -> float:
    ours, direct = timings["mmn_fast served"].median_ms, timings[_DIRECT].median_ms
    print(
        f"{what}: served {ours:.1f} ms, direct {direct:.1f} ms: {direct / ours:.0%} of the throughput;"
        f" error {worst:.1e}"
    )
    return direct / ours


@dataclass(frozen=True, eq=False)
class Demo:
    """The demo's model, served and in this process."""

    served: Served
    engine: mmn_fast.Engine
    index: mmn_fast.MomentIndex
    queries: list[Query]

    def compare(self, how: str, count: int, rounds: int) -> tuple[dict[str, Timing], float]:
        """Compare the first queries: `features` beside `ground`, `id` beside `ground`, `stored` beside the seams."""
        queries = self.queries[:count]
        make = ground_by_features if how == "features" else ground_by_id
        direct = partial(_direct, self.engine, queries)
        if how == "stored":
            direct = partial(_by_seams, self.engine, self.index, queries)
        return compare(self.served, direct, [make(query) for query in queries], rounds)


_WAYS = {"features": "features, ground", "id": "id, ground", "stored": "id, score of stored embeddings"}


def throughput(options: argparse.Namespace, demo: Demo) -> None:
    """All clients at once."""
    for how, named in _WAYS.items():
        timings, worst = demo.compare(how, len(demo.queries), options.rounds)
        share = _say(f"demo by {named}, {len(demo.queries)} clients", timings, worst)
        _record(options, timings, worst, stage=f"served: {named}", batch=len(demo.queries), share=share)


def latency(options: argparse.Namespace, demo: Demo) -> None:
    """One client, one request at a time."""
    for how, named in _WAYS.items():
        timings, worst = demo.compare(how, 1, 20 * options.rounds)
        over = timings["mmn_fast served"].median_ms - timings[_DIRECT].median_ms
        print(f"demo by {named}, one client: {over:+.2f} ms over the direct call (median); error {worst:.1e}")
        _record(options, timings, worst, stage=f"served: {named}", batch=1, over_ms=over)


def sizes(options: argparse.Namespace, folder: Path) -> None:
    """A full-size model with binary features."""
    name, count = "charades_full", 8
    model = save_model(_model(name), folder / "model")
    engine, queries = mmn_fast.load(model, threads=options.threads), golden_queries(name, count)
    mmn_fast.MomentIndex.create(folder / "sizes", engine).close()
    with serving(folder / "sizes", str(model), options.threads) as served:
        requests = [ground_by_features(query) for query in queries]
        timings, worst = compare(served, partial(_direct, engine, queries), requests, options.rounds)
    share = _say(f"Charades-STA sizes, {count} clients, {len(requests[0].body) / 2**20:.1f} MiB each", timings, worst)
    facts = {"preset": "charades-sta", "stage": "served by features", "batch": count, "share": share}
    _record(options, timings, worst, **facts)


def on_ray(options: argparse.Namespace, folder: Path) -> None:
    """Two replicas on a Ray cluster beside one; each has one core. They take turns."""
    from benchmarks.serve_ray import measure, ray_cluster, ray_serving

    name, clients = options.ray_case, 8
    model = save_model(_model(name), folder / "ray-model")
    engine, queries = mmn_fast.load(model, threads=1), golden_queries(name, clients)
    mmn_fast.MomentIndex.create(folder / "ray", engine, model=str(model)).close()
    requests, direct = [ground_by_features(query) for query in queries], _direct(engine, queries)
    names = {1: "one replica", 2: "mmn_fast on Ray, two replicas"}
    seconds: dict[int, list[float]] = {2: [], 1: []}
    worst = 0.0
    with ray_cluster(options.ray_proxy == "haproxy") as port:
        for replicas in (1, 2, 1, 2):
            with ray_serving(folder / "ray", replicas, port):
                for _ in range(max(options.rounds // 2, 1)):
                    found, spent = measure(port, requests, _RAY_REPEATS)
                    assert set(found.statuses) == {200}, found.statuses
                    worst = max(worst, _difference(found.last, direct))
                    seconds[replicas].append(found.elapsed_s / _RAY_REPEATS)
                told = ", ".join(f"{kind} {value:.1f}" for kind, value in spent.items())
                print(f"Ray, {name}, {names[replicas]}: processor ms per request: {told}", flush=True)
    timings = {names[count]: Timing.of(found) for count, found in seconds.items()}
    times = timings[names[1]].median_ms / timings[names[2]].median_ms
    through = {"haproxy": "HAProxy", "ray": "Ray's proxy"}[options.ray_proxy]
    print(
        f"Ray, {name}, {clients} clients through {through}: two replicas {times:.2f} times as fast as one;"
        f" error {worst:.1e}"
    )
    stage = f"served on Ray, through {through}"
    _record(options, timings, worst, preset=engine.preset.name, stage=stage, batch=clients, threads=1)


def overloaded(options: argparse.Namespace, demo: Demo) -> None:
    """Twice the capacity."""
    for how, make in (("features", ground_by_features), ("id", ground_by_id)):
        found = uvloop.run(overload(demo.served, [make(query) for query in demo.queries], options.seconds))
        print(f"overload by {how}: {found}")
        if not len(found.refused_s):
            print("no request was refused, so nothing is recorded")
            continue
        facts = {name: value for name, value in vars(found).items() if name != "refused_s"}
        facts |= {
            "refused_p99_ms": np.percentile(found.refused_s, 99) * 1e3,
            "refused_most_ms": found.refused_s.max() * 1e3,
        }
        refused, error = {"mmn_fast served": Timing.of(found.refused_s.tolist())}, float("inf") if found.wrong else 0.0
        _record(options, refused, error, stage=f"served: refused at twice the capacity, by {how}", batch=1, **facts)


def _record(options: argparse.Namespace, timings: dict[str, Timing], worst: float, **facts: Any) -> None:
    if not options.dry_run:
        record("bench_serve", timings, worst, **{"preset": "shapes", "threads": options.threads, **facts})


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of overload and of mixed")
    parser.add_argument("--ray-case", default="charades_full", help="golden case whose sizes `ray` takes")
    parser.add_argument("--ray-proxy", choices=("haproxy", "ray"), default="haproxy", help="what bodies come through")
    parser.add_argument("--dry-run", action="store_true", help="record nothing")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine, queries = mmn_fast.load("demo", threads=options.threads), demo_queries(options.clients)
        index = stack.enter_context(mmn_fast.MomentIndex.create(folder / "index", engine, storage="fp32"))
        index.add(query.video for query in queries)
        served = stack.enter_context(serving(folder / "index", "demo", options.threads))
        demo = Demo(served, engine, index, queries)
        if "throughput" in options.parts:
            throughput(options, demo)
        if "latency" in options.parts:
            latency(options, demo)
        if "overload" in options.parts:
            overloaded(options, demo)
        if "mixed" in options.parts:
            uvloop.run(mixed_load(served, queries, options.seconds))
        if "sizes" in options.parts:
            sizes(options, folder)
        if "ray" in options.parts:
            on_ray(options, folder)


if __name__ == "__main__":
    main()
