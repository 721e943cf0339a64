"""`mmn-fast export ... --tensorrt`: builds TensorRT plans from an export's ONNX graphs, for TensorRT 10.1 to 11.

Networks are strongly typed: the types in the ONNX file decide the precision, not the builder. A plan is built and
verified on its target GPU before it appears next to its graph, with a sidecar (`artifact.sidecar.Sidecar`).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmn_fast.artifact.manifest import Manifest, check_files, read_manifest
from mmn_fast.artifact.sidecar import HARDWARE, Profile, Sidecar, plan_path, profiles_for, read_sidecar, sidecar_path
from mmn_fast.errors import InputError, WriteError
from mmn_fast.export.verify import BOUNDS, VerificationError, verify_runs
from mmn_fast.process.forks import Lock
from mmn_fast.runtime import cuda_api
from mmn_fast.runtime.tensorrt_module import BUILDER, make_logger, tensorrt_module
from mmn_fast.runtime.tensorrt_plan import open_plans
from mmn_fast.storage.files import write_whole
from mmn_fast.storage.unfinished import unfinished

_LOG = logging.getLogger(__name__)

TIMING_CACHE = "tensorrt.timing"
_LEVELS = dict(zip(HARDWARE, ("NONE", "SAME_COMPUTE_CAPABILITY", "AMPERE_PLUS"), strict=True))


@dataclass(frozen=True)
class BuildOptions:
    """Options of building plans.

    Attributes:
        version_compatible: newer TensorRT versions may run the plan too; the plan then holds host code.
        hardware: "same-gpu", "same-compute-capability" or "ampere-plus"; the latter two trade some speed for more GPUs.
        tf32: let float32 products round their operands to 11 bits, as the builder does by default: faster, but outside
            the bound of fp32.
        optimization_level: 0 to 5: how long the builder searches.
        workspace_mib: most scratch memory of one layer, MiB; None leaves it to TensorRT.
        timing_cache: file of measured kernels; it is read if it exists, and written. None takes `tensorrt.timing` in
            the export.
        progress: show a progress bar.
    """

    version_compatible: bool = False
    hardware: str = "same-gpu"
    tf32: bool = False
    optimization_level: int = 3
    workspace_mib: int | None = None
    timing_cache: Path | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.hardware not in HARDWARE:
            raise InputError(f"hardware: expected one of {', '.join(HARDWARE)}, got {self.hardware!r}")
        level, workspace = self.optimization_level, self.workspace_mib
        if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= 5:
            raise InputError(f"optimization_level: expected an integer from 0 to 5, got {level!r}")
        if workspace is not None and (isinstance(workspace, bool) or not isinstance(workspace, int) or workspace < 1):
            raise InputError(f"workspace_mib: expected an integer >= 1, got {workspace!r}")


def unavailable_reason() -> str | None:
    """Why plans cannot be built here, in one sentence; None if they can."""
    _, reason = tensorrt_module(BUILDER)
    return reason or cuda_api.unavailable_reason(0)


def build_plans(
    directory: str | Path, graphs: Sequence[str] | None = None, options: BuildOptions | None = None
) -> list[Path]:
    """Build the plans of an export's graphs and verify them on the GPU; all plans appear, or none.

    New plans are kept in a separate place until they are verified, and earlier plans stay unchanged until then. The
    timing cache is kept even if the plans fail.

    Args:
        directory: the export, a directory that `mmn-fast export` made.
        graphs: some of the export's graphs; None for all.
        options: options of building; None for the defaults.

    Returns:
        The plans, `<graph>.plan` in the directory, each next to its `<graph>.plan.json`.

    Raises:
        InputError: not an export, files that differ from the manifest, an unknown graph, no TensorRT or GPU, or
            TensorRT cannot build a graph (its first error is quoted).
        VerificationError: a plan differs from the reference.
        BackendUnavailable: TensorRT or CUDA refuses to run a plan.
    """
    directory, options = Path(directory), options or BuildOptions()
    manifest = read_manifest(directory)
    chosen = list(manifest.graphs if graphs is None else graphs)
    for name in chosen:
        if name not in manifest.graphs:
            raise InputError(f"graphs: expected some of {', '.join(manifest.graphs)}, got {name!r}")
    if manifest.precision == "int8":
        raise InputError(f"tensorrt: {directory} is int8, which is for CPUs; export the model as fp16, bf16 or fp32")
    profiles = {name: profiles_for(name, manifest) for name in chosen}
    reason = unavailable_reason()
    if reason is not None:
        raise InputError(f"tensorrt: {reason}")
    check_files(directory, manifest)
    builder = _Builder(directory, manifest, options)
    try:
        with unfinished(directory / "plans") as staging:
            staging.mkdir()
            with ExitStack() as stack:
                for name in chosen:
                    plan = builder.build(name, profiles[name], stack)
                    plan_path(staging, name).write_bytes(plan)
                    sidecar = builder.sidecar(name, profiles[name], plan)
                    sidecar_path(staging, name).write_text(sidecar.to_json(), encoding="utf-8")
            verify_plans(directory, staging, chosen)
            _move_all(staging, directory)
    except VerificationError as error:
        raise VerificationError(f"{error}; the new plans are not kept") from None
    except OSError as error:
        raise InputError(f"tensorrt: {directory}: {error.strerror or error}") from None
    return [plan_path(directory, name) for name in chosen]


def verify_plans(
    directory: str | Path, place: str | Path | None = None, graphs: Sequence[str] | None = None
) -> dict[str, Any]:
    """Compare plans of an export with its reference, on the GPU that built them.

    Args:
        directory: the export.
        place: directory of the plans and their sidecars; None means the export.
        graphs: graphs that have a plan; None for all.

    Returns:
        As `verify.verify`.

    Raises:
        VerificationError: a plan differs from the reference.
        InputError: a plan or sidecar is missing, or belongs to another model.
        BackendUnavailable: a plan is for another GPU or version, or TensorRT or CUDA refuses to run it.
    """
    directory = Path(directory)
    manifest, cuda = read_manifest(directory), cuda_api.Cuda(0)
    place, graphs = Path(place or directory), list(manifest.graphs if graphs is None else graphs)
    stream = cuda.stream()
    # Version-compatible plans hold host code; here it comes from the TensorRT that has just built them.
    plans, _ = open_plans(place, manifest, graphs, cuda, allow_host_code=True)
    rounds = any(read_sidecar(place, name).tf32 for name in plans)
    bound = max(BOUNDS[manifest.precision], BOUNDS["fp16"] if rounds else 0.0)  # TF32's operands have fp16's 11 bits
    runs = {name: partial(plan.run, stream=stream.handle) for name, plan in plans.items()}
    try:
        return verify_runs(directory, manifest, runs, bound)
    except VerificationError as error:
        raise VerificationError(f"tensorrt: {error}") from None


def _move_all(source: Path, target: Path) -> None:
    """Move every file of a directory, replacing files of the same name; all files are moved, or none."""
    files, kept = list(source.iterdir()), source / "kept"
    kept.mkdir()
    try:
        for file in files:
            if (target / file.name).exists():
                (target / file.name).replace(kept / file.name)
            file.replace(target / file.name)
    except BaseException:
        for file in files:
            if (kept / file.name).exists():
                (kept / file.name).replace(target / file.name)
            elif not file.exists():
                (target / file.name).unlink(missing_ok=True)
        raise


class _Builder:
    def __init__(self, directory: Path, manifest: Manifest, options: BuildOptions) -> None:
        self.trt, _ = tensorrt_module(BUILDER)
        self.directory, self.manifest, self.options = directory, manifest, options
        self.gpu = cuda_api.Cuda(0).gpu()
        self.logger = make_logger(self.trt)
        self.cache = options.timing_cache or directory / TIMING_CACHE

    def build(self, name: str, profiles: tuple[Profile, ...], stack: ExitStack) -> bytes:
        """Build the plan of a graph."""
        trt, logger = self.trt, self.logger
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        path = self.directory / self.manifest.graphs[name]
        if not parser.parse_from_file(str(path)):
            error = parser.get_error(0) if parser.num_errors else None
            words = f"{error.node_name()}: {error.desc()}" if error else logger.last_error
            raise InputError(f"tensorrt: {path}: TensorRT {trt.__version__} does not read the graph ({words})")
        config = builder.create_builder_config()
        self._configure(config, stack, name)
        for profile in profiles:
            added = builder.create_optimization_profile()
            for spec in self.manifest.signature(name).inputs:
                added.set_shape(spec.name, *profile.shapes(spec))
            if config.add_optimization_profile(added) < 0:
                raise InputError(f"tensorrt: {path}: TensorRT refuses profile {profile.axes} ({logger.last_error})")
        cache = config.create_timing_cache(self.cache.read_bytes() if self.cache.is_file() else b"")
        if not config.set_timing_cache(cache, False):
            raise InputError(
                f"timing_cache: {self.cache} was measured on another GPU or by another TensorRT; name another file"
            )
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise InputError(f"tensorrt: {path}: TensorRT {trt.__version__} builds no plan ({logger.last_error})")
        self._keep(bytes(config.get_timing_cache().serialize()))
        return bytes(plan)

    def _keep(self, timings: bytes) -> None:
        try:
            write_whole(self.cache, timings, overwrite=True, argument="timing_cache")
        except WriteError as error:
            _LOG.warning("%s; the next build measures again", error)

    def _configure(self, config: Any, stack: ExitStack, name: str) -> None:
        trt, options = self.trt, self.options
        config.builder_optimization_level = options.optimization_level
        if not options.tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        level = getattr(trt.HardwareCompatibilityLevel, _LEVELS[options.hardware], None)
        if level is None:  # SAME_COMPUTE_CAPABILITY is younger than TensorRT 10.1
            raise InputError(f"hardware: TensorRT {trt.__version__} has no {options.hardware!r}")
        config.hardware_compatibility_level = level
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
        if options.progress:
            config.progress_monitor = _monitor(trt, name, stack)

    def sidecar(self, name: str, profiles: tuple[Profile, ...], plan: bytes) -> Sidecar:
        """Describe the plan: its model, versions and GPU."""
        return Sidecar(
            graph=name,
            fingerprint=self.manifest.fingerprint,
            precision=self.manifest.precision,
            onnx_sha256=self.manifest.files[self.manifest.graphs[name]],
            plan_sha256=hashlib.sha256(plan).hexdigest(),
            tensorrt=self.trt.__version__,
            gpu=self.gpu.name,
            compute_capability=self.gpu.compute_capability,
            version_compatible=self.options.version_compatible,
            hardware=self.options.hardware,
            tf32=self.options.tf32,
            optimization_level=self.options.optimization_level,
            profiles=profiles,
        )


def _monitor(trt: Any, name: str, stack: ExitStack) -> Any:
    """Make TensorRT's monitor: a progress bar per phase of the build; TensorRT calls it from several threads."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    bars = stack.enter_context(Progress(console=Console(stderr=True), transient=True))

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.tasks: dict[str, TaskID] = {}
            self.lock = Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self.lock:
                indent = "  " if parent_phase else ""
                self.tasks[phase_name] = bars.add_task(f"{indent}{name}.plan: {phase_name}", total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self.lock:
                if phase_name in self.tasks:
                    bars.update(self.tasks[phase_name], completed=step + 1)
            return True  # False would stop the build

        def phase_finish(self, phase_name: str) -> None:
            with self.lock:
                if phase_name in self.tasks:
                    bars.remove_task(self.tasks.pop(phase_name))

    return Monitor()
