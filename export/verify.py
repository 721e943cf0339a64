"""`mmn-fast verify`: checks an export against its manifest and against the reference. Needs no torch.

The checks run in this order: files, operators, names and axes of each graph; outputs of each graph at several batch
sizes and sentence lengths, compared as scores, because scores rank moments; the moments, and the best proposal of each
sentence. A bf16 graph runs in the form that `bf16.to_float32` gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Int64
from mmn_fast.artifact.manifest import (
    MANIFEST,
    Manifest,
    TensorSpec,
    check_files,
    read_manifest,
)
from mmn_fast.artifact.stages import listed
from mmn_fast.errors import InputError
from mmn_fast.export import bf16
from mmn_fast.export.packages import missing_extra
from mmn_fast.export.reference import Arrays, read_reference
from mmn_fast.geometry import cells_to_moments, plan_for
from mmn_fast.postprocess import fuse_scores, select_moments
from mmn_fast.process.onnxruntime_module import onnxruntime_module

BATCH_SIZES = (1, 2, 8, 33)

# Largest difference of a fused score from the reference's, and of score.onnx's other scores. fp32: float32 sums of
# 12,800 terms in up to 8 layers. fp16 and bf16: operands of 11 and of 8 bits. int8: this bound only tells a broken
# graph from a rounded one (3e-2 seen); the measured R@1 decides.
BOUNDS = {"fp32": 2e-5, "fp16": 2e-3, "bf16": 1e-2, "int8": 0.1}

# Sources: ONNX Runtime's docs/OperatorKernels.md (CPU and CUDA), and onnx-tensorrt's docs/operators.md of TensorRT 10.0
# (every operator here is marked supported, pools as 2D and 3D only); TensorRT 11 reads operator sets up to 25.
# fmt: off
OPERATORS = frozenset(
    (
        "Abs", "Add", "And", "ArgMax", "AveragePool", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape",
        "Conv", "Div", "Equal", "Erf", "Expand", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm",
        "Greater", "GreaterOrEqual", "LayerNormalization", "Less", "MatMul", "Max", "MaxPool", "Min", "Mul",
        "Not", "Or", "Pad", "Pow", "Range", "Reciprocal", "ReduceMax", "ReduceSum", "Relu", "Reshape", "Round",
        "Shape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze",
        "Where",
    )
)
# fmt: on

_INT8_OPERATORS = frozenset(("QuantizeLinear", "DequantizeLinear"))

_DURATION_S = 31.3
_ORT_TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


class VerificationError(InputError):
    """An export differs from its manifest or from the reference.

    Attributes:
        array: name of the scores that are out of tolerance; None if something else is wrong.
        difference: largest difference of these scores in the first failed comparison; None if it is not a number.
    """

    array: str | None = None
    difference: float | None = None


def verify(directory: str | Path) -> dict[str, Any]:
    """Verify an export.

    Args:
        directory: the export, a directory that `mmn-fast export` made.

    Returns:
        Findings: batch sizes, sentence lengths, largest difference of each score, top-1 agreement.

    Raises:
        VerificationError: something differs; the message names the first file or array, what was expected and what
            came.
        InputError: not an export, or the onnx extra is not installed.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)

    missing = missing_extra(("onnx", "onnxruntime"))
    if missing:
        raise InputError(f"verify: {missing}")
    check_files(directory, manifest)
    return verify_directory(directory, manifest)


def verify_directory(directory: Path, manifest: Manifest) -> dict[str, Any]:
    """Do the checks of `verify` except the files' hashes, for an export in the making."""
    runs: dict[str, Callable[[Arrays], Arrays]] = {}
    for name, file in manifest.graphs.items():
        _check_operators(directory / file, manifest)
        runs[name] = _open(name, directory / file, manifest)
    found = verify_runs(directory, manifest, runs, BOUNDS[manifest.precision])
    if manifest.precision == "bf16":
        found["arithmetic"] = "float32 operators, results rounded to bf16"
    return found


def verify_runs(
    directory: Path, manifest: Manifest, runs: Mapping[str, Callable[[Arrays], Arrays]], bound: float
) -> dict[str, Any]:
    """Compare functions that run an export's graphs with the reference.

    Args:
        directory: the export.
        manifest: the export's manifest.
        runs: graph -> function from the graph's inputs to its outputs.
        bound: largest allowed difference of a score.

    Returns:
        As `verify`.

    Raises:
        VerificationError: something differs; the message names the first difference.
    """
    reference = read_reference(directory)
    found: dict[str, Any] = {
        "batch_sizes": list(BATCH_SIZES),
        "token_lengths": sorted(set(reference["attention_mask"].sum(1).tolist())),
        "bound": bound,
        "fp32_stages": list(manifest.fp32_stages),
        "max_error": {},
    }
    checker = _Checker(manifest, reference, bound, found["max_error"])
    if "video" in runs:
        checker.video(runs["video"])
    if "text" in runs:
        checker.text(runs["text"])
    if "score" in runs:
        checker.score(runs["score"])
    found["top1_agreement"] = checker.top1()
    found["sentences"] = int(reference["fused_scores"].shape[0] * reference["fused_scores"].shape[1])
    return found


class _Checker:
    """Compares the graphs' outputs with the recorded reference; keeps the graphs' embeddings."""

    def __init__(self, manifest: Manifest, reference: Arrays, bound: float, errors: dict[str, float]) -> None:
        self.preset, self.top_k = manifest.preset, manifest.top_k
        self.raw = manifest.raw_features
        self.reference, self.bound, self.errors = reference, bound, errors
        self.embedded = {name: reference[name] for name in reference if name.startswith(("video_", "text_"))}

    def video(self, run: Callable[[Arrays], Arrays]) -> None:
        names = ("features", "lengths") if self.raw else ("pre_clips",)
        self.embedded |= self._batches(run, names, ("video_contrastive", "video_iou"), "video")

    def text(self, run: Callable[[Arrays], Arrays]) -> None:
        lengths = self.reference["attention_mask"].sum(1)
        # The longest sentence runs alone: a batch of 33 of its length would take minutes and show nothing more.
        short = {name: self.reference[name][: len(lengths) - 1, : lengths[:-1].max()] for name in _TEXT_INPUTS}
        long = {name: self.reference[name][len(lengths) - 1 :] for name in _TEXT_INPUTS}
        outputs = ("text_contrastive", "text_iou")
        most = self._batches(run, _TEXT_INPUTS, outputs, "text", short)
        last = self._batches(run, _TEXT_INPUTS, outputs, "text", long, first=len(lengths) - 1, sizes=(1, 2))
        for row, length in enumerate(lengths[:-1]):
            alone = {name: short[name][row : row + 1, :length] for name in _TEXT_INPUTS}
            self._compare(run(alone), np.array([row]), f"text, one sentence of {length} word pieces")
        self.embedded |= {name: np.concatenate([most[name], last[name]]) for name in outputs}

    def _batches(
        self,
        run: Callable[[Arrays], Arrays],
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        graph: str,
        items: Arrays | None = None,
        first: int = 0,
        sizes: tuple[int, ...] = BATCH_SIZES,
    ) -> Arrays:
        """Run batches that cycle through the items, compare each row, and return each item's outputs once."""
        items = {name: self.reference[name] for name in inputs} if items is None else items
        count, start = len(items[inputs[0]]), 0
        seen: dict[int, dict[str, npt.NDArray[Any]]] = {}
        for size in sizes:
            rows = (start + np.arange(size)) % count
            start += size
            given = run({name: items[name][rows] for name in inputs})
            self._compare(given, rows + first, f"{graph}, batch of {size}")
            for place, row in enumerate(rows.tolist()):
                seen.setdefault(row, {name: given[name][place] for name in outputs})
        return {name: np.stack([seen[row][name] for row in range(count)]) for name in outputs}

    def _compare(self, given: Arrays, rows: Int64, where: str) -> None:
        """Compare embeddings with the reference, by their fused scores with the reference's other side."""
        side, other = ("video", "text") if "video_iou" in given else ("text", "video")
        for place, row in enumerate(rows.tolist()):
            ours: list[npt.NDArray[Any]] = []
            theirs: list[npt.NDArray[Any]] = []
            for branch in ("contrastive", "iou"):
                with_all = self.reference[f"{other}_{branch}"].astype(np.float64)
                for array, scores in (
                    (given[f"{side}_{branch}"][place], ours),
                    (self.reference[f"{side}_{branch}"][row], theirs),
                ):
                    scores.append(np.tensordot(array.astype(np.float64), with_all, ([-1], [-1])))
            self._hold(self._fused(*ours), self._fused(*theirs), f"fused_from_{side}", f"{where}, row {place}")

    def _fused(self, contrastive: npt.NDArray[Any], cosine: npt.NDArray[Any]) -> npt.NDArray[Any]:
        fused: npt.NDArray[Any] = fuse_scores(contrastive, 1 / (1 + np.exp(-10 * cosine)), self.preset)
        return fused

    def score(self, run: Callable[[Arrays], Arrays]) -> None:
        P = self.reference["video_iou"].shape[1]
        for video in range(len(self.reference["video_iou"])):
            count, start = len(self.reference["text_iou"]), 0
            for size in BATCH_SIZES:
                rows = (start + np.arange(size)) % count
                start += size
                inputs = {name: self.reference[name][video] for name in ("video_contrastive", "video_iou")}
                inputs |= {name: self.reference[name][rows] for name in ("text_contrastive", "text_iou")}
                if self.top_k is not None:
                    inputs["duration_s"] = np.array([_DURATION_S], np.float32)
                given = run(inputs)
                for name in ("contrastive_scores", "iou_scores", "fused_scores"):
                    exact = self.reference[name][video, rows].reshape(size, P)
                    self._hold(given[name], exact, name, f"score, {size} sentences")
                if self.top_k is not None:
                    self._hold_moments(given)

    def _hold_moments(self, given: Arrays) -> None:
        """Check that the moments equal non-maximum suppression of the graph's own scores, to the bit."""
        assert self.top_k is not None
        fused = given["fused_scores"]
        moments = cells_to_moments(plan_for(self.preset).cells, _DURATION_S, self.preset.num_clips)
        chosen = select_moments(fused, moments, self.preset.nms_iou, self.top_k)
        there = chosen >= 0
        scores = np.where(there, np.take_along_axis(fused, np.maximum(chosen, 0), 1), np.float32(0))
        spans = np.where(there[..., None], moments[np.maximum(chosen, 0)], np.float32(0))
        for name, expected in (("top_proposals", chosen), ("top_scores", scores), ("top_moments", spans)):
            if not np.array_equal(given[name], expected):
                sentence = int(np.argwhere(given[name] != expected)[0][0])
                raise VerificationError(
                    f"score: {name} of sentence {sentence}: expected {expected[sentence].tolist()}, got"
                    f" {given[name][sentence].tolist()}"
                )

    def _hold(self, ours: npt.NDArray[Any], theirs: npt.NDArray[Any], name: str, where: str) -> None:
        difference = np.abs(np.asarray(ours, np.float64) - theirs)
        # "~(<=)" instead of ">", so that NaN is out of tolerance too.
        bad = ~(difference <= self.bound)
        if bad.any():
            place = tuple(np.argwhere(bad)[0].tolist())
            failed = VerificationError(
                f"{where}: {name} {list(place)}: expected {theirs[place]:.6f} within {self.bound:g}, got"
                f" {ours[place]:.6f}"
            )
            largest = float(difference.max())
            failed.array, failed.difference = name, largest if np.isfinite(largest) else None
            raise failed
        self.errors[name] = max(self.errors.get(name, 0.0), float(difference.max(initial=0.0)))

    def top1(self) -> float:
        """Share of sentences for which the graphs' embeddings give the reference's best proposal."""
        same, exact = [], self.reference["fused_scores"]
        for video in range(len(exact)):
            fused = self._fused(
                *(
                    self.embedded[f"text_{branch}"].astype(np.float64) @ self.embedded[f"video_{branch}"][video].T
                    for branch in ("contrastive", "iou")
                )
            )
            self._hold(fused, exact[video], "fused", f"video {video} with all sentences")
            same.append(fused.argmax(1) == exact[video].argmax(1))
        return float(np.concatenate(same).mean())


_TEXT_INPUTS = ("token_ids", "attention_mask")


def _check_operators(path: Path, manifest: Manifest) -> None:
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    sets = {entry.domain: entry.version for entry in model.opset_import if entry.version}
    if sets != {"": manifest.opset} or model.functions:
        raise VerificationError(f"{path.name}: expected operator set {manifest.opset} alone, got {sets}")
    known = OPERATORS | _INT8_OPERATORS if manifest.precision == "int8" else OPERATORS
    others = sorted({node.op_type for node in model.graph.node} - known)
    if others:
        raise VerificationError(
            f"{path.name}: expected operators that ONNX Runtime and TensorRT both have, got {', '.join(others)}"
        )


def _open(name: str, path: Path, manifest: Manifest) -> Callable[[Arrays], Arrays]:
    """Open a graph with ONNX Runtime's CPU provider; check its inputs and outputs against the table of names."""
    try:
        session = _session(path, manifest.precision)
    except InputError as error:
        raise VerificationError(f"{path.name}: {error}") from None
    except OSError as error:
        raise InputError(f"verify: {error.filename or path}: {error.strerror or error}") from None
    except Exception as error:  # ONNX Runtime has an error class per kind of failure
        raise VerificationError(f"{path.name}: ONNX Runtime does not load it ({str(error).splitlines()[0]})") from None
    shapes = manifest.signature(name)
    for kind, expected, given in (
        ("inputs", shapes.inputs, session.get_inputs()),
        ("outputs", shapes.outputs, session.get_outputs()),
    ):
        found = tuple(TensorSpec(one.name, _ORT_TYPES.get(one.type, one.type), tuple(one.shape)) for one in given)
        if found != expected:
            raise VerificationError(f"{path.name}: {kind}: expected {_listed(expected)}, got {_listed(found)}")
    names = [spec.name for spec in shapes.outputs]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def _session(path: Path, precision: str) -> Any:
    onnxruntime = onnxruntime_module()
    providers = ["CPUExecutionProvider"]
    if precision != "bf16":
        return onnxruntime.InferenceSession(str(path), providers=providers)
    with TemporaryDirectory() as scratch:
        return onnxruntime.InferenceSession(str(bf16.write_in_float32(path, Path(scratch))), providers=providers)


def _listed(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{s.name} {s.dtype} [{', '.join(map(str, s.shape))}]" for s in specs)


def summary(directory: Path, found: dict[str, Any]) -> str:
    """Describe a verified export in one line."""
    worst = max(found["max_error"].values())
    arithmetic = f"; verified as {found['arithmetic']}" if "arithmetic" in found else ""
    mixed = f"; mixed: {listed(found['fp32_stages'])} of video in float32" if found["fp32_stages"] else ""
    return (
        f"{directory}: {MANIFEST} and graphs agree; batches of {', '.join(map(str, found['batch_sizes']))}; largest"
        f" difference of a score {worst:.1e} (bound {found['bound']:g}), same best proposal for"
        f" {100 * found['top1_agreement']:.1f} % of {found['sentences']} sentences{mixed}{arithmetic}"
    )
