"""One-time autotune of proposal_conv: times every algorithm for each layer on this host and keeps the times on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmn_fast.checks import Each, Integer, MapOf, Number, Rule, Text, check_record
from mmn_fast.errors import InputError, WriteError
from mmn_fast.geometry import ProposalPlan
from mmn_fast.kernels.cpu.conv import add_layer, candidates
from mmn_fast.kernels.host import _C, cpu_isa
from mmn_fast.process.environment import tuning_dir
from mmn_fast.storage.documents import read_json
from mmn_fast.storage.files import write_whole
from mmn_fast.version import __version__

_LOG = logging.getLogger(__name__)
_REPEATS = 3
_FLUSH_BYTES = (
    64 * 2**20
)  # more than a core's share of the last-level cache, so that weights come from memory, as they do between layers

_KEPT_RULES: dict[str, Rule] = {
    "isa": Text(),
    "threads": Integer(),
    "seconds": Each(MapOf(Number(0, above=True))),
}

Seconds = list[dict[str, float]]
"""Per layer: algorithm -> seconds for one video."""


def tuned_seconds(
    plan: ProposalPlan, widths: Sequence[tuple[int, int]], precision: str, exact: bool, threads: int
) -> Seconds:
    """Time every candidate of every layer, once per host and model size; later calls read the file.

    Args:
        plan: the plan.
        widths: (C_in, C_out) of every layer.
        precision: "fp32" or "bf16".
        exact: see `candidates`.
        threads: CPU threads.

    Returns:
        The seconds that `choose_algorithms` takes. The file is in `MMN_FAST_CACHE`, else in the user's cache directory;
        a damaged file is measured and written again.
    """
    path: Path | None = None
    names = [candidates(plan, c_in, precision, exact) for c_in, _ in widths]
    try:
        path = _path(plan, widths, precision, exact, threads)
        path.stat()
        kept: Seconds = list(check_record(read_json(path, str(path)), _KEPT_RULES, str(path))["seconds"])
        if [set(layer) for layer in kept] == [set(layer) for layer in names]:
            return kept
        _LOG.warning("%s: not a tuning of this model; measuring again", path)
    except FileNotFoundError:
        pass
    except (OSError, InputError) as error:
        if path is None:
            _LOG.warning("the tuning cannot be kept (%s); every process measures again", error)
        else:
            _LOG.warning("%s: cannot be read (%s); measuring again", path, error)
    _LOG.info("tuning proposal_conv, %d layers, once for this host", len(widths))
    seconds = [
        {name: _measure(plan, number, *widths[number], name, threads) for name in layer}
        for number, layer in enumerate(names)
    ]
    if path is None:
        return seconds
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"isa": cpu_isa(), "threads": threads, "seconds": seconds})
        write_whole(path, content.encode(), overwrite=True, argument="tuning")
    except (OSError, WriteError) as error:
        _LOG.warning("%s: the tuning cannot be kept (%s); the next process measures again", path, error)
    return seconds


def _path(plan: ProposalPlan, widths: Sequence[tuple[int, int]], precision: str, exact: bool, threads: int) -> Path:
    facts = (__version__, platform.node(), cpu_isa(), threads, precision, exact, list(widths), plan.kernel)
    digest = hashlib.sha256(repr(facts).encode() + plan.mask.tobytes())
    return tuning_dir() / f"proposal_conv-{digest.hexdigest()[:16]}.json"


def _measure(plan: ProposalPlan, number: int, c_in: int, c_out: int, algorithm: str, threads: int) -> float:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((c_out, c_in, plan.kernel, plan.kernel), np.float32)
    cells_in = len(plan.layers[number - 1].cells if number else plan.inputs)
    inputs = rng.random((1, cells_in, c_in), np.float32)
    out = np.empty((1, len(plan.layers[number].cells), c_out), np.float32)
    conv = _C.ProposalConv()
    add_layer(conv, plan, number, weight, np.zeros(c_out, np.float32), algorithm)
    flush, taken = np.zeros(_FLUSH_BYTES, np.uint8), []
    for _ in range(1 + _REPEATS):
        flush += 1
        start = time.perf_counter()
        conv.run(inputs=inputs, out=out, threads=threads)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])
