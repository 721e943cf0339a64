"""`mmn-fast export ... --triton-repository DIR`: writes an export as a model repository of Triton Inference Server.

Models `mmn_video`, `mmn_text` and `mmn_score` are the graphs, as ONNX files or as TensorRT plans, with the names and
axes of `manifest.signature`. Model `mmn_ground` calls these three to turn features, a duration and sentences into
moments (`tritonserver_model.py`, a model of Triton's Python backend).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmn_fast.artifact.manifest import GRAPHS, MANIFEST, TOKENIZER, Manifest, TensorSpec, check_files, read_manifest
from mmn_fast.artifact.sidecar import BUCKETS, check_sidecar, plan_path, profiles_for, read_sidecar, token_buckets
from mmn_fast.errors import InputError
from mmn_fast.storage.files import new_directory

GROUND = "mmn_ground"
DEVICES = ("auto", "cpu", "gpu")
_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "int32": "TYPE_INT32", "string": "TYPE_STRING"}
_VERSION = "1"


class _Word(str):
    """A value of a protobuf enumeration; `to_pbtxt` writes it without quotes."""


@dataclass(frozen=True)
class RepositoryOptions:
    """Options of serving the models.

    Attributes:
        plans: serve TensorRT plans (`to_tensorrt.build_plans`) instead of ONNX files.
        device: "auto" (a GPU if the server has one), "cpu" or "gpu".
        instances: copies of each model, per GPU or on the CPU; `mmn_ground` handles as many requests at once.
        queue_delay_us: longest wait of a request to video or text for others to share its batch, in microseconds.
        warm_up: run each graph once before the server is ready.
    """

    plans: bool = False
    device: str = "auto"
    instances: int = 1
    queue_delay_us: int = 1000
    warm_up: bool = True

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise InputError(f"device: expected one of {', '.join(DEVICES)}, got {self.device!r}")
        if self.plans and self.device == "cpu":
            raise InputError("device: TensorRT plans run on GPUs, got 'cpu'")
        for name, least in (("instances", 1), ("queue_delay_us", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name}: expected an integer >= {least}, got {value!r}")


def write_repository(directory: str | Path, output: str | Path, options: RepositoryOptions | None = None) -> Path:
    """Write a model repository; it appears whole or not at all.

    Args:
        directory: an export of `mmn-fast export`, with all three graphs, from pre-clips.
        output: directory to create; must not exist.
        options: options of serving; None for the defaults.

    Returns:
        The repository, for `tritonserver --model-repository`. The server's Python must have mmn_fast installed.

    Raises:
        InputError: not such an export, files that differ from the manifest, a plan that is missing or of another model,
            or an output that exists.
    """
    directory, output, options = Path(directory), Path(output), options or RepositoryOptions()
    if output.exists():
        raise InputError(f"triton_repository: {output} exists; name a directory that does not")
    manifest = read_manifest(directory)
    check_graphs(directory, manifest.graphs, manifest.raw_features)
    if manifest.precision == "int8":
        if options.plans or options.device == "gpu":
            raise InputError("device: int8 graphs are for CPUs, expected auto or cpu without plans")
        options = dataclasses.replace(options, device="cpu")
    if manifest.precision == "bf16":
        if options.device == "cpu":
            raise InputError("device: ONNX Runtime multiplies bf16 on CUDA alone, expected auto or gpu, got 'cpu'")
        options = dataclasses.replace(options, device="gpu")
    check_files(directory, manifest)
    if options.plans:
        for name in GRAPHS:
            check_sidecar(directory, read_sidecar(directory, name), name, manifest)
    with new_directory(output, "triton_repository") as partial:
        for name in GRAPHS:
            _write_graph(directory, partial, name, manifest, options)
        _write_ground(directory, partial, manifest, options)
    return output


def check_graphs(directory: Path, graphs: Collection[str], raw_features: bool) -> None:
    """Refuse graphs that cannot be served; the export exists or is about to be made.

    Raises:
        InputError: a graph is missing, or the video graph does not take pre-clips.
    """
    missing = [name for name in GRAPHS if name not in graphs]
    if missing:
        raise InputError(f"triton_repository: {directory} has no {missing[0]} graph; export the model with --what all")
    if raw_features:
        raise InputError(
            "triton_repository: video.onnx takes source rows, but a batch needs pre-clips; export the model without raw"
            " features"
        )


def _write_graph(directory: Path, repository: Path, name: str, manifest: Manifest, options: RepositoryOptions) -> None:
    target = repository / f"mmn_{name}" / _VERSION
    target.mkdir(parents=True)
    file = manifest.graphs[name]
    if options.plans:
        shutil.copyfile(plan_path(directory, name), target / "model.plan")
    else:
        shutil.copyfile(directory / file, target / "model.onnx")
        # Weights above 2 GB are in a separate file that the graph names.
        for other in manifest.files:
            if other.startswith(f"{file}."):
                shutil.copyfile(directory / other, target / other)
    config = graph_config(name, manifest, options)
    if options.plans:
        sidecar = read_sidecar(directory, name)
        config["parameters"] = [
            *config["parameters"],
            *_parameters({"tensorrt": sidecar.tensorrt, "gpu": sidecar.gpu, "hardware": sidecar.hardware}),
        ]
    (target.parent / "config.pbtxt").write_text(to_pbtxt(config), encoding="utf-8")


def _write_ground(directory: Path, repository: Path, manifest: Manifest, options: RepositoryOptions) -> None:
    target = repository / GROUND / _VERSION
    target.mkdir(parents=True)
    shutil.copyfile(Path(__file__).with_name("tritonserver_model.py"), target / "model.py")
    for name in (MANIFEST, TOKENIZER):
        shutil.copyfile(directory / name, target / name)
    (target.parent / "config.pbtxt").write_text(to_pbtxt(ground_config(manifest, options)), encoding="utf-8")


def graph_config(name: str, manifest: Manifest, options: RepositoryOptions) -> dict[str, Any]:
    """The configuration of a graph's model, as nested values of Triton's ModelConfig."""
    signature = manifest.signature(name)
    first = signature.inputs[0].shape[0]
    # Score's inputs do not share a first axis, so its requests cannot be batched.
    batch = BUCKETS["B" if name == "video" else "S"][-1] if name != "score" else 0
    assert batch == 0 or all(spec.shape[0] == first for spec in (*signature.inputs, *signature.outputs))
    config: dict[str, Any] = {
        "name": f"mmn_{name}",
        **(
            {"backend": "tensorrt", "platform": "tensorrt_plan"}
            if options.plans
            else {"backend": "onnxruntime", "platform": "onnxruntime_onnx"}
        ),
        "max_batch_size": batch,
        "input": [_tensor(spec, batch > 0) for spec in signature.inputs],
        "output": [_tensor(spec, batch > 0) for spec in signature.outputs],
        "version_policy": {"latest": {"num_versions": 1}},
        "instance_group": [_instances(name, manifest, options)],
        "parameters": _parameters({"fingerprint": manifest.fingerprint, "precision": manifest.precision}),
    }
    if batch:
        config["dynamic_batching"] = {
            "preferred_batch_size": [size for size in BUCKETS[str(first)] if size > 1],
            "max_queue_delay_microseconds": options.queue_delay_us,
        }
    if options.warm_up:
        config["model_warmup"] = [_warm_up(signature.inputs, batch > 0, manifest)]
    return config


def ground_config(manifest: Manifest, options: RepositoryOptions) -> dict[str, Any]:
    """The configuration of `mmn_ground`, as nested values of Triton's ModelConfig."""
    width = manifest.preset.input_size
    inputs = [
        TensorSpec("features", "float32", ("R", width)),
        TensorSpec("duration_s", "float32", (1,)),
        TensorSpec("sentences", "string", ("S",)),
        TensorSpec("top_k", "int32", (1,)),
    ]
    outputs = [
        TensorSpec("moments", "float32", ("S", "K", 2)),
        TensorSpec("scores", "float32", ("S", "K")),
        TensorSpec("proposals", "int32", ("S", "K")),
    ]
    return {
        "name": GROUND,
        "backend": "python",
        "max_batch_size": 0,
        "input": [_tensor(spec, False) | ({"optional": True} if spec.name == "top_k" else {}) for spec in inputs],
        "output": [_tensor(spec, False) for spec in outputs],
        "version_policy": {"latest": {"num_versions": 1}},
        "instance_group": [{"kind": _Word("KIND_CPU"), "count": options.instances}],
        "parameters": _parameters({"fingerprint": manifest.fingerprint}),
    }


def _instances(name: str, manifest: Manifest, options: RepositoryOptions) -> dict[str, Any]:
    kind = "KIND_GPU" if options.plans else f"KIND_{options.device.upper()}"
    group: dict[str, Any] = {"kind": _Word(kind), "count": options.instances}
    if options.plans:  # by default the server uses only the first profile
        group["profile"] = [str(number) for number in range(len(profiles_for(name, manifest)))]
    return group


def _warm_up(inputs: Sequence[TensorSpec], batched: bool, manifest: Manifest) -> dict[str, Any]:
    """Describe one warm-up run on zeros: every vocabulary has token 0, while random tokens may exceed it."""
    sizes = {"S": 1, "L": token_buckets(manifest.text.max_tokens)[0]}
    values = []
    for spec in inputs:
        dims = [size if isinstance(size, int) else sizes.get(size, 1) for size in spec.shape[int(batched) :]]
        values.append(
            {"key": spec.name, "value": {"data_type": _Word(_TYPES[spec.dtype]), "dims": dims, "zero_data": True}}
        )
    return {"name": "zeros", "batch_size": 1, "inputs": values}  # 1 even without batches: the server skips samples of 0


def _tensor(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    """Describe an input or output; with batches the first axis is implied."""
    dims = [size if isinstance(size, int) else -1 for size in spec.shape[int(batched) :]]
    return {"name": spec.name, "data_type": _Word(_TYPES[spec.dtype]), "dims": dims}


def _parameters(values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"string_value": value}} for key, value in values.items()]


def to_pbtxt(message: Mapping[str, Any], indent: str = "") -> str:
    """Write nested values in protobuf's text format: a dict is a message, a list repeats its field."""
    lines = []
    for name, value in message.items():
        if isinstance(value, list) and not any(isinstance(item, dict) for item in value):
            lines.append(f"{indent}{name}: [{', '.join(map(_scalar, value))}]")
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                lines += [f"{indent}{name} {{", to_pbtxt(item, indent + "  ").rstrip("\n"), f"{indent}}}"]
            else:
                lines.append(f"{indent}{name}: {_scalar(item)}")
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    if isinstance(value, _Word):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value)  # ASCII with C's escapes, as in the text format
    return str(value).lower() if isinstance(value, bool) else str(value)
