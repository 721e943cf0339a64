"""Content of an export: inputs and outputs of the graphs, and manifest.json next to the graphs. Needs no torch.

Symbols: B videos, R source rows, T pre-clips, D input width, P proposals, J joint width, S sentences, L word pieces, K
moments per sentence. B, R, S and L are dynamic axes; the preset gives T, D, P and J.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmn_fast.artifact.stages import stages
from mmn_fast.checks import (
    Each,
    Integer,
    MapOf,
    OneOf,
    Optional,
    Rule,
    Text,
    anything,
    build,
    check_keys,
    check_record,
    flag,
    nearest,
    shown,
)
from mmn_fast.errors import InputError
from mmn_fast.features.contract import FeatureContract
from mmn_fast.geometry import plan_for
from mmn_fast.precisions import EXPORTED
from mmn_fast.presets import Preset, TextEncoderConfig
from mmn_fast.storage.checksums import file_sha256, plain_sha256, side_by_side
from mmn_fast.storage.documents import read_json

FORMAT_VERSION = 5  # 4 lacks the contract of the features
KIND = "mmn_fast export"
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
REFERENCE = "reference.safetensors"
GRAPHS = ("video", "text", "score")
MAX_RECALL_LOSS = 0.5  # points of R@1 that int8 may cost
DYNAMIC_AXES = ("B", "R", "S", "L")
_OWN = "sha256"  # key of the SHA-256 of everything else in manifest.json


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph.

    Attributes:
        name: name in the graph.
        dtype: "float32" or "int64".
        shape: per axis a number, or the symbol of a dynamic axis.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a graph, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def signature(graph: str, preset: Preset, *, raw_features: bool = False, top_k: int | None = None) -> Signature:
    """The inputs and outputs of a graph, with names, dtypes and axes; no other place holds them.

    An output that another graph takes has the same name in both graphs. Floating-point values are float32 in every
    precision.

    Args:
        graph: one of `GRAPHS`.
        preset: gives T, D, P and J.
        raw_features: the video graph takes at most R source rows per video instead of pre-clips; the first `lengths`
            rows of each video are real.
        top_k: the score graph also chooses K moments per sentence by non-maximum suppression; None leaves this out.
    """
    P, J, D = plan_for(preset).num_proposals, preset.joint_size, preset.input_size
    video = tuple(TensorSpec(f"video_{branch}", "float32", ("B", P, J)) for branch in ("contrastive", "iou"))
    text = tuple(TensorSpec(f"text_{branch}", "float32", ("S", J)) for branch in ("contrastive", "iou"))
    if graph == "video":
        if raw_features:
            return Signature(
                (TensorSpec("features", "float32", ("B", "R", D)), TensorSpec("lengths", "int64", ("B",))), video
            )
        return Signature((TensorSpec("pre_clips", "float32", ("B", preset.num_pre_clips, D)),), video)
    if graph == "text":
        return Signature(
            (TensorSpec("token_ids", "int64", ("S", "L")), TensorSpec("attention_mask", "int64", ("S", "L"))), text
        )
    if graph != "score":
        raise InputError(f"graph: expected one of {', '.join(GRAPHS)}, got {graph!r}")
    one_video = tuple(dataclasses.replace(spec, shape=(P, J)) for spec in video)
    scores = tuple(TensorSpec(f"{name}_scores", "float32", ("S", P)) for name in ("contrastive", "iou", "fused"))
    if top_k is None:
        return Signature((*one_video, *text), scores)
    chosen = (
        TensorSpec("top_proposals", "int64", ("S", top_k)),  # rows of the proposals, -1 if fewer are left
        TensorSpec("top_scores", "float32", ("S", top_k)),  # 0 if fewer are left
        TensorSpec("top_moments", "float32", ("S", top_k, 2)),  # start and end in seconds, 0 if fewer are left
    )
    return Signature((*one_video, *text, TensorSpec("duration_s", "float32", (1,))), (*scores, *chosen))


@dataclass(frozen=True)
class Manifest:
    """Content of manifest.json.

    Attributes:
        preset: the model's sizes and conventions.
        text: sizes of the text encoder.
        fingerprint: the model's fingerprint, as `LoadedModel.fingerprint`.
        source: name of the exported model.
        weights_sha256: `storage.checksums.combined_sha256` of the model's weights; the fingerprint follows from it.
        precision: one of `precisions.EXPORTED`: weights and products of video and text; score is always float32.
        fp32_stages: stages of the video graph (`artifact.stages`) that stay float32 in an fp16 or bf16 export, because
            without them the graph exceeded its error bound.
        raw_features: see `signature`.
        top_k: see `signature`.
        opset: version of the standard operator set.
        graphs: exported graph -> name of its ONNX file.
        files: file -> its SHA-256; weights above 2 GB are in a separate file.
        verification: result of `verify`.
        versions: versions of all packages that made the export.
        feature_contract: how the model's features are made; None if that is not known.
    """

    preset: Preset
    text: TextEncoderConfig
    fingerprint: str
    source: str
    weights_sha256: str
    precision: str
    fp32_stages: tuple[str, ...]
    raw_features: bool
    top_k: int | None
    opset: int
    graphs: dict[str, str]
    files: dict[str, str]
    verification: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    feature_contract: FeatureContract | None = None

    def signature(self, graph: str) -> Signature:
        """The inputs and outputs of one of the graphs."""
        return signature(graph, self.preset, raw_features=self.raw_features, top_k=self.top_k)

    def to_dict(self) -> dict[str, Any]:
        """Plain values as in manifest.json; the graphs include their inputs and outputs."""
        plain: dict[str, Any] = {"format_version": FORMAT_VERSION, "kind": KIND}
        for field in dataclasses.fields(self):
            plain[field.name] = getattr(self, field.name)
        plain["preset"] = self.preset.to_dict()
        plain["text"] = dataclasses.asdict(self.text)
        plain["feature_contract"] = None if self.feature_contract is None else self.feature_contract.to_dict()
        plain["graphs"] = {
            name: {"file": file, **dataclasses.asdict(self.signature(name))} for name, file in self.graphs.items()
        }
        return plain

    def write(self, directory: Path) -> None:
        """Write manifest.json: the plain values and, last, their SHA-256."""
        plain = self.to_dict()
        text = json.dumps({**plain, _OWN: plain_sha256(plain)}, indent=2)
        (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")


_GRAPH_KEYS = ("file", "inputs", "outputs")
_RULES: dict[str, Rule] = {
    "format_version": Integer(),
    "kind": Text(),
    "preset": MapOf(anything),
    "text": MapOf(anything),
    "fingerprint": Text(),
    "source": Text(least=0),
    "weights_sha256": Text(),
    "precision": OneOf(EXPORTED),
    "fp32_stages": Each(Text(), least=0),
    "raw_features": flag,
    "top_k": Optional(Integer()),
    "opset": Integer(1, 1000),
    "graphs": MapOf(MapOf(anything)),
    "files": MapOf(Text()),
    "verification": MapOf(anything),
    "versions": MapOf(Text(least=0)),
    "feature_contract": Optional(MapOf(anything)),
}


def is_export(directory: Path) -> bool:
    """Whether a directory looks like an export."""
    return (directory / MANIFEST).is_file()


def read_manifest(directory: str | Path) -> Manifest:
    """Read manifest.json and check it against its own SHA-256 and the table of names; `check_files` checks the files.

    Raises:
        InputError: not an export, another format version, unreadable, changed or damaged, or the graphs do not fit the
            preset.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise InputError(f"export: {directory} is not an export: no {MANIFEST} (mmn-fast export makes one)")
    where = f"export: {path}"
    plain = read_json(path, where)
    if not isinstance(plain, dict) or plain.get("kind") != KIND:
        raise InputError(f"{where} is not the manifest of an mmn_fast export")
    if plain.get("format_version") not in (4, FORMAT_VERSION):
        raise InputError(
            f"{where}: format_version: expected {FORMAT_VERSION}, got {shown(plain.get('format_version'))};"
            f" export the model again, or install the mmn_fast that wrote it"
        )
    own = plain.pop(_OWN, None)
    if own != plain_sha256(plain):
        raise InputError(
            f"{where} has changed since it was written: its sha256 differs from the one that it names; copy it"
            " again, or export the model again"
        )
    values = check_record(plain if plain["format_version"] > 4 else {"feature_contract": None, **plain}, _RULES, where)
    del values["kind"], values["format_version"]
    try:
        values["preset"] = Preset.from_dict(values["preset"])
        values["text"] = build(TextEncoderConfig, values["text"], "text")
        if values["feature_contract"] is not None:
            values["feature_contract"] = FeatureContract.from_dict(values["feature_contract"], "feature_contract")
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    for stage in values["fp32_stages"]:
        if stage not in stages(values["preset"]):
            raise InputError(
                f"{where}: fp32_stages: unknown {shown(stage)}; {nearest(stage, stages(values['preset']))}"
            )
    for name, graph in values["graphs"].items():
        if name not in GRAPHS:
            raise InputError(f"{where}: graphs: unknown {shown(name)}; {nearest(name, GRAPHS)}")
        values["graphs"][name] = Text()(check_keys(graph, _GRAPH_KEYS, f"{where}: graphs: {name}")["file"], where)
    manifest = Manifest(**values)
    listed = json.loads(json.dumps(manifest.to_dict()))["graphs"]
    if listed != plain["graphs"]:
        raise InputError(
            f"export: {path}: the graphs' inputs and outputs are not those of preset {manifest.preset.name!r}"
        )
    for file in (*manifest.files, *manifest.graphs.values()):
        if Path(file).name != file or file in ("", ".", ".."):
            raise InputError(f"export: {path}: expected names of files in the same directory, got {file!r}")
    for name, file in manifest.graphs.items():
        if file not in manifest.files:
            raise InputError(f"export: {path}: graph {name!r} is in {file!r}, which is not among its files")
    return manifest


def check_files(directory: Path, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Refuse files that differ from the manifest.

    Args:
        directory: the export.
        manifest: the export's manifest.
        names: files to check; None for all.

    Raises:
        InputError: a file is missing or cannot be read, or its SHA-256 differs.
    """
    wanted = list(manifest.files if names is None else names)
    for name in wanted:
        if not (directory / name).is_file():
            raise InputError(f"export: {directory / name} is missing; the manifest lists it")

    def digest(name: str) -> str:
        try:
            return file_sha256(directory / name)
        except OSError as error:
            raise InputError(f"export: {directory / name} cannot be read ({error.strerror or error})") from None

    digests = side_by_side(digest, wanted, sum((directory / name).stat().st_size for name in wanted))
    for name, found in zip(wanted, digests, strict=True):
        if found != manifest.files[name]:
            raise InputError(
                f"export: {directory / name} is not the file that was verified: sha256 expected"
                f" {manifest.files[name]}, got {found}"
            )
