"""`mmn-fast export`: writes a model as a directory of ONNX graphs with a manifest, verified before it appears."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmn_fast.artifact.manifest import (
    GRAPHS,
    MAX_RECALL_LOSS,
    TOKENIZER,
    Manifest,
)
from mmn_fast.artifact.stages import attempts, listed
from mmn_fast.checkpoint import LoadedModel, load_model
from mmn_fast.errors import InputError
from mmn_fast.export import bf16
from mmn_fast.export.graphs import OPSET
from mmn_fast.export.packages import missing_extra, versions
from mmn_fast.export.reference import record_reference
from mmn_fast.export.to_int8 import Labelled, Splits, check_wish, quantise
from mmn_fast.precisions import EXPORTED
from mmn_fast.presets import Preset
from mmn_fast.storage.checksums import array_digests, combined_sha256, file_sha256
from mmn_fast.storage.files import new_directory

if TYPE_CHECKING:
    import onnx

# A protobuf message has at most 2 GiB; 64 MiB of them are kept for the graph itself.
_EXTERNAL_DATA_BYTES = 2**31 - 2**26
_MIN_TOKENS = 2  # fewest word pieces of a sentence: [CLS] and [SEP]


def export(
    model: str | Path,
    output: str | Path,
    *,
    precision: str = "fp32",
    what: Sequence[str] = GRAPHS,
    raw_features: bool = False,
    top_k: int | None = None,
    max_recall_loss: float = MAX_RECALL_LOSS,
    int8_data: Labelled | None = None,
    preset: str | Path | Preset | None = None,
    tokenizer: str | Path | None = None,
) -> Path:
    """Write a model as ONNX graphs with a manifest; the directory appears whole and verified, or not at all.

    Args:
        model: as for `mmn_fast.load`.
        output: directory to create; must not exist.
        precision: "fp32", "fp16", "bf16" or "int8", for the weights and products of video and text; bf16 is for GPUs,
            int8 for CPUs (see `to_int8`).
        what: the graphs to write, out of "video", "text" and "score".
        raw_features: video.onnx takes source rows and lengths instead of pre-clips.
        top_k: score.onnx also gives the K best moments of each sentence, after non-maximum suppression.
        max_recall_loss: points of R@1 that int8 may cost.
        int8_data: annotated videos to calibrate and measure int8; None takes the demo's.
        preset: as for `mmn_fast.load`.
        tokenizer: as for `mmn_fast.load`.

    Returns:
        The directory.

    Raises:
        InputError: an argument cannot be used, an extra is missing, int8 costs too much, or a graph differs from the
            reference by more than its precision's bound (the first difference is named); fp16 and bf16 fail only after
            every set of float32 stages in `artifact.stages.attempts`. Nothing is left behind then.
    """
    output = Path(output)
    what = _check_arguments(output, precision, what, top_k)
    loaded = load_model(model, preset, tokenizer)
    if int8_data is not None and precision != "int8":
        raise InputError(f"annotations: expected only with precision 'int8', got precision {precision!r}")
    splits = None
    if precision == "int8":
        splits = check_wish(loaded.preset, what, raw_features, max_recall_loss, int8_data, loaded.contract)
    return export_loaded(loaded, output, precision, what, raw_features, top_k, splits, max_recall_loss)


def export_loaded(
    model: LoadedModel,
    output: Path,
    precision: str,
    what: Sequence[str],
    raw_features: bool,
    top_k: int | None,
    splits: Splits | None = None,
    max_recall_loss: float = MAX_RECALL_LOSS,
) -> Path:
    """`export` for a model in memory, with checked arguments; int8 if `splits` (data to measure int8) is given."""
    from mmn_fast.export.verify import verify_directory

    if model.exported is not None:
        raise InputError(f"model: {model.source} is an export already; name the model that it was made from")
    if model.text.max_tokens < _MIN_TOKENS:
        raise InputError(
            f"model: {model.source}: expected a text encoder of at least {_MIN_TOKENS} word pieces, [CLS] and [SEP],"
            f" got {model.text.max_tokens}"
        )
    written = precision if splits is None else "fp32"  # int8 is made from verified float32 graphs
    with new_directory(output, "output") as partial:
        graphs = {name: f"{name}.onnx" for name in what}
        model.tokenizer.save(partial / TOKENIZER)
        record_reference(model, partial)
        manifest = Manifest(
            preset=model.preset,
            text=model.text,
            fingerprint=model.fingerprint,
            source=Path(model.source).name,
            weights_sha256=combined_sha256(array_digests(model.state)),
            precision=written,
            fp32_stages=(),
            raw_features=raw_features,
            top_k=top_k,
            opset=bf16.OPSET if precision == "bf16" else OPSET,
            graphs=graphs,
            files={},
            versions=versions(),
            feature_contract=model.contract,
        )
        manifest = _write_verified(model, manifest, partial)
        if splits is not None:
            manifest = quantise(partial, manifest, splits, max_recall_loss)
            manifest.verification.update(verify_directory(partial, manifest))
        manifest.write(partial)
    return output


def _check_arguments(output: Path, precision: str, what: Sequence[str], top_k: int | None) -> list[str]:
    """Check all arguments before any work is done; return the graphs in the order of `GRAPHS`."""
    if precision not in EXPORTED:
        raise InputError(f"precision: expected one of {', '.join(EXPORTED)}, got {precision!r}")
    unknown = [name for name in what if name not in GRAPHS]
    if unknown or not what:
        raise InputError(f"what: expected all, or some of {', '.join(GRAPHS)}, got {unknown[0] if unknown else ''!r}")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= 100):
        raise InputError(f"top_k: expected an integer from 1 to 100, got {top_k!r}")
    if output.exists():
        raise InputError(f"output: {output} exists; name a directory that does not")
    missing = missing_extra()
    if missing:
        raise InputError(f"export: {missing}")
    return [name for name in GRAPHS if name in what]


def _write_verified(model: LoadedModel, manifest: Manifest, directory: Path) -> Manifest:
    """Write the graphs and verify them; a narrow video graph gets as few float32 stages as verification needs."""
    from mmn_fast.export.verify import VerificationError, verify_directory

    for name in manifest.graphs:
        if name != "video":
            _write(name, model, manifest, directory)
    found: dict[str, Any] | None = None
    tried: list[dict[str, Any]] = []
    sets = attempts(model.preset, manifest.precision)
    for fp32_stages in sets:
        manifest = dataclasses.replace(manifest, fp32_stages=fp32_stages)
        try:
            if "video" in manifest.graphs:
                _write("video", model, manifest, directory)
            found = verify_directory(directory, manifest)
        except VerificationError as error:
            if "video" not in manifest.graphs or error.array not in ("fused_from_video", "fused"):
                raise
            tried.append({"fp32_stages": fp32_stages, "max_error": error.difference})
            failed = error
        else:
            tried.append({"fp32_stages": fp32_stages, "max_error": max(found["max_error"].values())})
            break
    if found is None:
        raise VerificationError(f"{failed}{f', also with {listed(fp32_stages)} in float32' if fp32_stages else ''}")
    if manifest.precision != "fp32":
        found["attempts"] = tried
    files = {file.name: file_sha256(file) for file in sorted(directory.iterdir())}
    return dataclasses.replace(manifest, files=files, verification=found)


def _write(name: str, model: LoadedModel, manifest: Manifest, directory: Path) -> None:
    from mmn_fast.export.graphs.score import score_graph
    from mmn_fast.export.graphs.text import text_graph
    from mmn_fast.export.graphs.video import video_graph

    precision, opset = manifest.precision, manifest.opset
    if name == "video":
        graph = video_graph(model, precision, manifest.raw_features, manifest.fp32_stages, opset)
    elif name == "text":
        graph = text_graph(model, precision, opset)
    else:
        graph = score_graph(model, manifest.top_k, opset)
    write_graph(graph, directory / manifest.graphs[name])


def write_graph(graph: onnx.ModelProto, path: Path) -> None:
    """Write a graph; if it and its weights exceed 2 GiB, the weights go to a file of their own beside it."""
    import onnx

    weights = path.with_name(f"{path.name}.data")
    weights.unlink(missing_ok=True)  # of an earlier attempt: onnx appends to it
    external = sum(len(one.raw_data) for one in graph.graph.initializer) > _EXTERNAL_DATA_BYTES
    onnx.save(graph, path, save_as_external_data=external, location=weights.name)
