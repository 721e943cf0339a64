"""Products of `mmn-fast export` besides the ONNX graphs: plans and a repository, checked before the graphs are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmn_fast.artifact.sidecar import check_bounds
from mmn_fast.errors import InputError
from mmn_fast.export.to_tensorrt import BuildOptions, build_plans
from mmn_fast.export.to_tensorrt import unavailable_reason as tensorrt_unavailable
from mmn_fast.export.tritonserver_repository import RepositoryOptions, check_graphs, write_repository


@dataclass(frozen=True)
class Deployment:
    """Plans, a Triton repository, both (the repository then serves the plans) or neither.

    Attributes:
        tensorrt: build plans.
        hardware: see `BuildOptions`.
        version_compatible: see `BuildOptions`.
        tf32: see `BuildOptions`.
        triton_repository: directory to create, or None.

    Raises:
        InputError: plans cannot be built here, an option is unknown or needs plans, or the directory exists.
    """

    tensorrt: bool
    hardware: str
    version_compatible: bool
    tf32: bool
    triton_repository: Path | None

    def __post_init__(self) -> None:
        options = BuildOptions(self.version_compatible, self.hardware, self.tf32)
        if not self.tensorrt and options != BuildOptions():
            raise InputError(
                "--hardware, --version-compatible, --tf32: expected --tensorrt with them, since they are for plans"
            )
        reason = tensorrt_unavailable() if self.tensorrt else None
        if reason is not None:
            raise InputError(f"--tensorrt: {reason}")
        if self.triton_repository is not None and self.triton_repository.exists():
            raise InputError(f"--triton-repository: {self.triton_repository} exists; name a directory that does not")

    @property
    def wanted(self) -> bool:
        """Whether plans or a repository are asked for."""
        return self.tensorrt or self.triton_repository is not None

    def check(self, output: Path, what: Sequence[str], raw_features: bool) -> None:
        """Refuse unsuitable graphs before they are made.

        Args:
            output: future place of the export.
            what: the export's graphs.
            raw_features: whether video.onnx will take source rows.

        Raises:
            InputError: plans and repositories need pre-clips, a repository also needs all graphs and its own place.
        """
        if self.tensorrt and "video" in what:
            check_bounds("video", raw_features)
        if self.triton_repository is not None:
            check_graphs(output, what, raw_features)
            place = self.triton_repository.resolve()
            if place in (output.resolve(), *output.resolve().parents):
                raise InputError(
                    f"--triton-repository: {self.triton_repository} would contain the export {output}; name another"
                    " directory"
                )

    def run(self, directory: Path) -> list[Path]:
        """Make plans and repository from an export; list the written files."""
        return [path for _, step in self.steps(directory) for path in step()]

    def steps(self, directory: Path) -> list[tuple[str, Callable[[], list[Path]]]]:
        """Each step: the option that asks for it, and a function that does it and returns the written files."""
        steps: list[tuple[str, Callable[[], list[Path]]]] = []
        if self.tensorrt:
            options = BuildOptions(self.version_compatible, self.hardware, self.tf32, progress=True)
            steps.append(("--tensorrt", lambda: build_plans(directory, options=options)))
        place = self.triton_repository
        if place is not None:
            repository = RepositoryOptions(plans=self.tensorrt)
            steps.append(("--triton-repository", lambda: [write_repository(directory, place, repository)]))
        return steps
