"""What `mmn-fast export` makes of an export beside the ONNX graphs; wishes are checked before the graphs are made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmn_fast.export.manifest import read_manifest
from mmn_fast.export.plans import check_bounds, plan_path, read_sidecar, sidecar_path
from mmn_fast.export.to_tensorrt import BuildOptions, build_plans
from mmn_fast.export.to_tensorrt import unavailable_reason as tensorrt_unavailable
from mmn_fast.export.triton_repository import RepositoryOptions, check_graphs, write_repository
from mmn_fast.export.verify import BOUNDS, VerificationError, verify_runs
from mmn_fast.kernels.cuda_runtime import Cuda
from mmn_fast.kernels.tensorrt_plan import open_plans
from mmn_fast.types import InputError


def verify_plans(directory: Path) -> dict[str, Any]:
    """Hold the plans of an export to its reference, on the GPU that they were built on.

    Args:
        directory: an export with a plan of each of its graphs.

    Returns:
        As `verify.verify`.

    Raises:
        VerificationError: a plan gives something else; plans and sidecars are removed then.
    """
    manifest, cuda = read_manifest(directory), Cuda(0)
    stream = cuda.stream()
    # Version-compatible plans hold host code of the TensorRT that has just built them here.
    plans, _ = open_plans(directory, manifest, list(manifest.graphs), cuda, allow_host_code=True)
    rounds = any(read_sidecar(directory, name).tf32 for name in plans)
    bound = max(BOUNDS[manifest.precision], BOUNDS["fp16"] if rounds else 0.0)  # TF32's operands have fp16's 11 bits
    try:
        runs = {name: partial(plan.run, stream=stream.handle) for name, plan in plans.items()}
        return verify_runs(directory, manifest, runs, bound)
    except VerificationError as error:
        remove_plans(directory, plans)
        raise VerificationError(f"tensorrt: {error}; the plans are removed") from None


def remove_plans(directory: Path, graphs: Iterable[str]) -> None:
    """Remove the plans of some graphs and their sidecars, those that are there."""
    for name in graphs:
        for path in (plan_path(directory, name), sidecar_path(directory, name)):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Deployment:
    """Plans, a Triton repository, both (it serves the plans then) or neither.

    Attributes:
        tensorrt: build plans.
        hardware: see `BuildOptions`.
        version_compatible: see `BuildOptions`.
        tf32: see `BuildOptions`.
        triton_repository: directory to create, or None.

    Raises:
        InputError: plans cannot be built here, an option is unknown or of use for plans alone, or the directory exists.
    """

    tensorrt: bool
    hardware: str
    version_compatible: bool
    tf32: bool
    triton_repository: Path | None

    def __post_init__(self) -> None:
        options = BuildOptions(self.version_compatible, self.hardware, self.tf32)
        if not self.tensorrt and options != BuildOptions():
            raise InputError("--hardware, --version-compatible, --tf32: they are for plans, expected --tensorrt too")
        reason = tensorrt_unavailable() if self.tensorrt else None
        if reason is not None:
            raise InputError(f"--tensorrt: {reason}")
        if self.triton_repository is not None and self.triton_repository.exists():
            raise InputError(f"--triton-repository: {self.triton_repository} exists; name a directory that does not")

    @property
    def wanted(self) -> bool:
        """Whether there is anything to make."""
        return self.tensorrt or self.triton_repository is not None

    def check(self, output: Path, what: Sequence[str], raw_features: bool) -> None:
        """Refuse graphs that will not do, before they are made.

        Args:
            output: where the export will be.
            what: its graphs.
            raw_features: whether video.onnx will take source rows.

        Raises:
            InputError: a plan needs pre-clips, a repository needs all graphs too, or a place of its own.
        """
        if self.tensorrt and "video" in what:
            check_bounds("video", raw_features)
        if self.triton_repository is not None:
            check_graphs(output, what, raw_features)
            place = self.triton_repository.resolve()
            if place in (output.resolve(), *output.resolve().parents):
                raise InputError(
                    f"--triton-repository: {self.triton_repository} is to hold the export {output} itself; name another"
                    " directory"
                )

    def run(self, directory: Path) -> list[Path]:
        """Make it from an export, and list what was written; plans that could not be verified are removed."""
        written = []
        if self.tensorrt:
            options = BuildOptions(self.version_compatible, self.hardware, self.tf32, progress=True)
            written += build_plans(directory, options=options)
            try:
                verify_plans(directory)
            except BaseException:  # TensorRT refuses them, memory ran out, somebody stopped it
                remove_plans(directory, read_manifest(directory).graphs)
                raise
        if self.triton_repository is not None:
            repository = RepositoryOptions(plans=self.tensorrt)
            written.append(write_repository(directory, self.triton_repository, repository))
        return written
