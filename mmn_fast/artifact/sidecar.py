"""A TensorRT plan's sizes, and its sidecar: the GPU, versions and model of the plan. Needs neither TensorRT nor torch.

A plan file holds exactly the bytes that TensorRT serialised, so `trtexec` and Triton Inference Server can read it.
`<graph>.plan.json`, the sidecar, holds what this package must know about the plan.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmn_fast.arrays import Int64
from mmn_fast.artifact.manifest import Manifest, TensorSpec
from mmn_fast.buckets import QUERY_BUCKETS, TOKEN_BUCKETS, VIDEO_BUCKETS
from mmn_fast.checks import Each, Integer, MapOf, OneOf, Rule, Text, check_record, flag, shown
from mmn_fast.errors import InputError
from mmn_fast.storage.checksums import file_sha256
from mmn_fast.storage.documents import read_json

FORMAT_VERSION = 1
KIND = "mmn_fast TensorRT plan"
# Plans are tuned for these sizes, and batches are padded to them: B videos, S sentences, L word pieces.
BUCKETS: dict[str, tuple[int, ...]] = {"B": VIDEO_BUCKETS, "S": QUERY_BUCKETS, "L": TOKEN_BUCKETS}
HARDWARE = ("same-gpu", "same-compute-capability", "ampere-plus")
_AMPERE = (8, 0)


@dataclass(frozen=True)
class Profile:
    """One optimisation profile: a range of sizes, tuned for the largest; batches are padded to the largest size.

    Attributes:
        axes: (symbol, smallest, largest) per dynamic axis of the graph.
    """

    axes: tuple[tuple[str, int, int], ...]

    def takes(self, sizes: dict[str, int]) -> bool:
        """Whether the profile's range holds the size of every axis."""
        return all(low <= sizes[symbol] <= high for symbol, low, high in self.axes)

    @property
    def sizes(self) -> dict[str, int]:
        """Size per axis to which batches are padded."""
        return {symbol: high for symbol, _, high in self.axes}

    def shapes(self, spec: TensorSpec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Smallest, best and largest shape of an input."""
        low, high = {s: low for s, low, _ in self.axes}, self.sizes
        smallest, largest = (
            tuple(size if isinstance(size, int) else sizes[size] for size in spec.shape) for sizes in (low, high)
        )
        return smallest, largest, largest


def profiles_for(graph: str, manifest: Manifest) -> tuple[Profile, ...]:
    """The optimisation profiles of a graph: every combination of its axes' buckets.

    Together they take every size from 1 to the largest bucket; a server that forms batches itself needs this. The last
    bucket of word pieces is the encoder's limit.

    Raises:
        InputError: video.onnx takes source rows, and their number has no bounds to tune for.
    """
    check_bounds(graph, manifest.raw_features)
    symbols = sorted(
        {size for spec in manifest.signature(graph).inputs for size in spec.shape if isinstance(size, str)},
        key="BSL".index,
    )
    profiles: list[tuple[tuple[str, int, int], ...]] = [()]
    for symbol in symbols:
        buckets = token_buckets(manifest.text.max_tokens) if symbol == "L" else BUCKETS[symbol]
        ranges = [(low + 1, high) for low, high in zip((0, *buckets), buckets, strict=False)]
        profiles = [(*axes, (symbol, low, high)) for axes in profiles for low, high in ranges]
    return tuple(map(Profile, profiles))


def check_bounds(graph: str, raw_features: bool) -> None:
    """Refuse a graph with an axis that has no bounds to tune for.

    Raises:
        InputError: video.onnx takes source rows.
    """
    if graph == "video" and raw_features:
        raise InputError(
            "tensorrt: video.onnx takes source rows, but a plan needs pre-clips; export the model without raw features"
        )


def token_buckets(max_tokens: int) -> tuple[int, ...]:
    """Lengths to which sentences are padded; the last one is the encoder's limit."""
    return (*(size for size in BUCKETS["L"] if size < max_tokens), max_tokens)


def text_batches(token_ids: Sequence[Int64], max_tokens: int) -> Iterator[tuple[list[int], Int64, Int64]]:
    """Cut sentences into padded batches; each batch belongs to one bucket of lengths.

    Args:
        token_ids: int64 [L_s] per sentence, 1 <= L_s <= max_tokens.
        max_tokens: the encoder's limit.

    Yields:
        Numbers of the batch's sentences, their ids [S, L] and their mask [S, L]; S is at most the largest bucket.
    """
    lengths, most = token_buckets(max_tokens), BUCKETS["S"][-1]
    for low, high in zip((0, *lengths), lengths, strict=False):
        rows = [row for row, ids in enumerate(token_ids) if low < len(ids) <= high]
        for start in range(0, len(rows), most):
            chunk = rows[start : start + most]
            ids, mask = np.zeros((2, len(chunk), high), np.int64)
            for place, row in enumerate(chunk):
                ids[place, : len(token_ids[row])] = token_ids[row]
                mask[place, : len(token_ids[row])] = 1
            yield chunk, ids, mask


def choose_profile(profiles: tuple[Profile, ...], sizes: dict[str, int]) -> int | None:
    """Number of the profile that takes these sizes; None if they are beyond all profiles."""
    return next((number for number, profile in enumerate(profiles) if profile.takes(sizes)), None)


@dataclass(frozen=True)
class Sidecar:
    """Content of `<graph>.plan.json`: facts about a plan.

    Attributes:
        graph: "video", "text" or "score".
        fingerprint: the model's fingerprint, as `LoadedModel.fingerprint`.
        precision: precision of the ONNX file behind the plan.
        onnx_sha256: SHA-256 of that ONNX file.
        plan_sha256: SHA-256 of the plan.
        tensorrt: version of the builder, such as "10.16.1.11".
        gpu: name of the GPU that built the plan.
        compute_capability: compute capability of that GPU, (major, minor).
        version_compatible: whether newer TensorRT versions may run the plan.
        hardware: one of `HARDWARE`: which other GPUs may run the plan.
        tf32: whether float32 products may round their operands to 11 bits.
        optimization_level: level of the builder, 0 to 5.
        profiles: the plan's profiles, in the plan's order.
    """

    graph: str
    fingerprint: str
    precision: str
    onnx_sha256: str
    plan_sha256: str
    tensorrt: str
    gpu: str
    compute_capability: tuple[int, int]
    version_compatible: bool
    hardware: str
    tf32: bool
    optimization_level: int
    profiles: tuple[Profile, ...]

    def to_json(self) -> str:
        """The sidecar's text."""
        plain: dict[str, Any] = {"format_version": FORMAT_VERSION, "kind": KIND, **dataclasses.asdict(self)}
        plain["profiles"] = [{symbol: [low, high] for symbol, low, high in one.axes} for one in self.profiles]
        return json.dumps(plain, indent=2) + "\n"


def _profile(value: object, where: str) -> Profile:
    sizes = MapOf(Each(Integer(), least=2, most=2))(value, where)
    return Profile(tuple((symbol, low, high) for symbol, (low, high) in sizes.items()))


_SIDECAR_RULES: dict[str, Rule] = {
    "format_version": Integer(),
    "kind": Text(),
    **dict.fromkeys(("graph", "fingerprint", "precision", "onnx_sha256", "plan_sha256", "tensorrt", "gpu"), Text()),
    "compute_capability": Each(Integer(0, 1000), least=2, most=2),
    "version_compatible": flag,
    "hardware": OneOf(HARDWARE),
    "tf32": flag,
    "optimization_level": Integer(0, 5),
    "profiles": Each(_profile, least=0),
}


def plan_path(directory: Path, graph: str) -> Path:
    """Path of a graph's plan."""
    return directory / f"{graph}.plan"


def sidecar_path(directory: Path, graph: str) -> Path:
    """Path of the plan's sidecar."""
    return directory / f"{graph}.plan.json"


def read_sidecar(directory: Path, graph: str) -> Sidecar:
    """Read a plan's sidecar.

    Raises:
        InputError: the plan or sidecar is missing, or the sidecar is damaged or of another format version.
    """
    plan, path = plan_path(directory, graph), sidecar_path(directory, graph)
    if not plan.is_file():
        raise InputError(f"tensorrt: {plan} is missing; build it with mmn-fast export {directory} --tensorrt")
    if not path.is_file():
        raise InputError(f"tensorrt: {path} is missing, so nothing says what {plan.name} was built for")
    where = f"tensorrt: {path}"
    plain = read_json(path, where)
    kind, version = (plain.get(key) if isinstance(plain, dict) else None for key in ("kind", "format_version"))
    if kind != KIND or version != FORMAT_VERSION:
        raise InputError(
            f"{where}: expected {KIND} of format_version {FORMAT_VERSION}, got {shown(kind)} of {shown(version)}"
        )
    values = check_record(plain, _SIDECAR_RULES, where)
    del values["kind"], values["format_version"]
    return Sidecar(**values)


def check_sidecar(directory: Path, sidecar: Sidecar, graph: str, manifest: Manifest) -> None:
    """Refuse a plan of another model, or a plan that does not match its sidecar.

    Raises:
        InputError: something differs; the message says what, and what to do.
    """
    plan, again = plan_path(directory, graph), f"build it again with mmn-fast export {directory} --tensorrt"
    expected = {
        "graph": graph,
        "fingerprint": manifest.fingerprint,
        "precision": manifest.precision,
        "onnx_sha256": manifest.files[manifest.graphs[graph]],
        "profiles": profiles_for(graph, manifest),
    }
    for name, value in expected.items():
        found = getattr(sidecar, name)
        if found != value:
            said = " differ" if name == "profiles" else f": expected {value}, got {found}"
            raise InputError(f"tensorrt: {plan} is not of this model: {name}{said}; {again}")
    if (found := file_sha256(plan)) != sidecar.plan_sha256:
        raise InputError(
            f"tensorrt: {plan} is not the plan that its sidecar describes: sha256 expected {sidecar.plan_sha256}, got"
            f" {found}; {again}"
        )


def unfit_reason(sidecar: Sidecar, tensorrt: str, gpu: str, compute_capability: tuple[int, int]) -> str | None:
    """Why a plan cannot run on this TensorRT and GPU, in one sentence; None if it can."""
    built_by, here = (
        tuple(int(part) for part in text.split(".")[:4] if part.isdecimal())
        for text in (
            sidecar.tensorrt,
            tensorrt,
        )
    )
    if here != built_by and not (sidecar.version_compatible and here > built_by):
        fits = "that or a newer one" if sidecar.version_compatible else "no other"
        return f"it was built by TensorRT {sidecar.tensorrt} and runs on {fits}, but this is TensorRT {tensorrt}"
    built, found = (f"{major}.{minor}" for major, minor in (sidecar.compute_capability, compute_capability))
    if sidecar.hardware == "same-gpu" and (gpu, compute_capability) != (sidecar.gpu, sidecar.compute_capability):
        return f"it was built for {sidecar.gpu} (compute capability {built}) only, but this GPU is {gpu} ({found})"
    if sidecar.hardware == "same-compute-capability" and compute_capability != sidecar.compute_capability:
        return f"it was built for GPUs of compute capability {built}, but this GPU is {gpu} ({found})"
    if sidecar.hardware == "ampere-plus" and compute_capability < _AMPERE:
        return f"it was built for GPUs of compute capability 8.0 or higher, but this GPU is {gpu} ({found})"
    return None
