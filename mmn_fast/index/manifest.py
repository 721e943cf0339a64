"""manifest.json of an index: what the index is, and which shards make it up. Replacing it is what commits a change."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmn_fast.checks import Each, Integer, OneOf, Optional, Rule, Text, anything, check_record, fail, shown
from mmn_fast.errors import InputError
from mmn_fast.features.contract import FeatureContract
from mmn_fast.geometry import plan_for
from mmn_fast.presets import Preset
from mmn_fast.process.once import kept_property
from mmn_fast.storage.checksums import plain_sha256
from mmn_fast.storage.documents import read_json
from mmn_fast.storage.files import write_whole
from mmn_fast.version import __version__

FORMAT = "mmn_fast index"
FORMAT_VERSION = 2  # 1: int8 shards had codes of one branch
MANIFEST = "manifest.json"
SHARDS = "shards"
STORAGES = ("fp16", "fp32", "int8")
_OWN = "sha256"  # key of the SHA-256 of everything else in manifest.json
_MOST = 2**62

_SHARD_RULES: dict[str, Rule] = {
    "file": Text(most=255),
    "num_bytes": Integer(8, _MOST),
    "head_bytes": Integer(8, _MOST),
    "head_sha256": Text(64, 64),
    "sha256": Text(64, 64),
    "num_videos": Integer(),
    "num_windows": Integer(),
    "removed": Each(Integer(0), least=0, most=_MOST),
}


@dataclass(frozen=True)
class ShardRecord:
    """What the manifest says of a shard.

    Attributes:
        file: name of the file in the folder `SHARDS`.
        num_bytes: size of the file.
        head_bytes: size of its header and its catalogue, which stand first.
        head_sha256: SHA-256 of these bytes.
        sha256: `storage.checksums.chunked_sha256` of the whole file.
        num_videos: videos that are stored, removed ones too.
        num_windows: windows of these videos.
        removed: numbers of removed videos, rising.
    """

    file: str
    num_bytes: int
    head_bytes: int
    head_sha256: str
    sha256: str
    num_videos: int
    num_windows: int
    removed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """Content of manifest.json.

    Attributes:
        fingerprint: the model's; embeddings of another model are refused.
        preset: the model's sizes and conventions.
        contract: how the model's features are made; None if that is not known.
        storage: one of `STORAGES`.
        model: where the model was when the index was made, as `mmn_fast.load` takes it; a hint for the command line.
        generation: counts the changes.
        shards: in the order of the library's videos.
    """

    fingerprint: str
    preset: Preset
    contract: FeatureContract | None
    storage: str
    model: str | None = None
    generation: int = 0
    shards: tuple[ShardRecord, ...] = ()

    @property
    def num_proposals(self) -> int:
        """P, rows per window."""
        return plan_for(self.preset).num_proposals

    @property
    def num_videos(self) -> int:
        """Videos that are in the index."""
        return sum(shard.num_videos for shard in self.shards) - self.num_removed

    @property
    def num_removed(self) -> int:
        """Removed videos that still take space."""
        return sum(len(shard.removed) for shard in self.shards)

    def followed_by(self, shards: tuple[ShardRecord, ...]) -> Manifest:
        """The manifest after a change."""
        return dataclasses.replace(self, generation=self.generation + 1, shards=shards)

    @kept_property
    def sha256(self) -> str:
        """Tells two states of an index apart."""
        return plain_sha256(self._record())

    def _record(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "mmn_fast_version": __version__,
            "fingerprint": self.fingerprint,
            "model": self.model,
            "preset": self.preset.to_dict(),
            "feature_contract": None if self.contract is None else self.contract.to_dict(),
            "storage": self.storage,
            "generation": self.generation,
            "num_videos": self.num_videos,
            "num_removed": self.num_removed,
            "shards": [dataclasses.asdict(shard) for shard in self.shards],
        }

    def write(self, path: Path) -> None:
        """Write the manifest of the index at `path`; a reader finds the old one or the new one, also after a power cut.

        Raises:
            WriteError: the system refuses; the old manifest is still there.
        """
        record = self._record()
        record[_OWN] = plain_sha256(record)
        content = json.dumps(record, indent=1).encode() + b"\n"
        write_whole(path / MANIFEST, content, overwrite=True, argument="index", durable=True)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the index at `path`.

    Raises:
        InputError: there is no index, or it is damaged or of another version.
    """
    if not path.is_dir():
        raise InputError(f"index: {path}: no such directory; `mmn-fast index create` makes an index")
    file = path / MANIFEST
    if not file.exists():
        raise InputError(f"index: {path} is no index: it has no {MANIFEST}")
    where = f"index: {file}"
    record = read_json(file, where)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"{where}: expected the manifest of an index, got something else")
    version = record.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise InputError(
            f"{where}: format_version: expected {FORMAT_VERSION}, got {shown(version)}; install the mmn_fast that wrote"
            f" the index ({shown(record.get('mmn_fast_version'))})"
        )
    if version == 1 and record.get("storage") == "int8":
        raise InputError(f"{where}: int8 of format version 1 cannot be searched any more; create the index again")
    if record.pop(_OWN, None) != plain_sha256(record):
        raise InputError(
            f"{where} is damaged: its sha256 differs from the one that it names; copy the index again, or make it again"
        )
    return _manifest(record, where)


def _manifest(record: dict[str, Any], where: str) -> Manifest:
    rules: dict[str, Rule] = {
        "fingerprint": Text(),
        "model": Optional(Text()),
        "preset": anything,
        "feature_contract": anything,
        "storage": OneOf(STORAGES),
        "generation": Integer(0, _MOST),
        "shards": Each(_shard, least=0, most=_MOST),
    }
    only_read_by_people = ("format", "format_version", "mmn_fast_version", "num_videos", "num_removed")
    values = check_record(record, {**dict.fromkeys(only_read_by_people, anything), **rules}, where)
    try:
        preset = Preset.from_dict(values["preset"])
        contract = values["feature_contract"]
        contract = None if contract is None else FeatureContract.from_dict(contract, "feature_contract")
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    rest = {name: values[name] for name in ("fingerprint", "storage", "model", "generation", "shards")}
    return Manifest(preset=preset, contract=contract, **rest)


def _shard(value: object, where: str) -> ShardRecord:
    """Rule for a shard."""
    record = ShardRecord(**check_record(value, _SHARD_RULES, where))
    if Path(record.file).name != record.file or record.file in (".", ".."):
        raise InputError(f"{where}: file: expected the name of a file, got {shown(record.file)}")
    if record.removed != tuple(sorted(set(record.removed))) or max(record.removed, default=-1) >= record.num_videos:
        raise fail(f"{where}: removed", f"rising numbers below {record.num_videos}", record.removed)
    if not 8 <= record.head_bytes <= record.num_bytes:
        raise fail(f"{where}: head_bytes", f"a number from 8 to {record.num_bytes}", record.head_bytes)
    return record
