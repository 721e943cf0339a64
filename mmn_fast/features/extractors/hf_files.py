"""The files of a model of `transformers`: a directory, or a download from the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmn_fast.errors import InputError
from mmn_fast.storage.checksums import file_sha256, plain_sha256
from mmn_fast.storage.documents import read_json
from mmn_fast.weights.hub import check_arrived, download, is_hub_id

# Files of weights in the order in which transformers looks for them; an index names several files.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_DESCRIPTIONS = ("config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


@dataclass(frozen=True)
class Files:
    """A model's files.

    Attributes:
        name: the directory, absolute, or the hub id.
        folder: the directory that holds the files.
        weights: the files of weights that transformers loads.
    """

    name: str
    folder: Path
    weights: tuple[Path, ...]

    def weights_sha256(self) -> str:
        """SHA-256 of the weights: of the file, as `sha256sum` prints it, or of all files' names and SHA-256s."""
        if len(self.weights) == 1:
            return file_sha256(self.weights[0])
        return plain_sha256({path.name: file_sha256(path) for path in self.weights})

    def video_processor(self) -> dict[str, Any] | None:
        """The values of the model's video processor; None if it has none."""
        path = self.folder / "video_preprocessor_config.json"
        if path.is_file():
            return _object(path)
        path = self.folder / "processor_config.json"
        values = _object(path).get("video_processor") if path.is_file() else None
        return values if isinstance(values, dict) else None


def find_files(place: str) -> Files:
    """Find a model's files; a hub id that is no directory is downloaded.

    Args:
        place: a directory, or a hub id. A directory is never looked for on the hub.

    Raises:
        InputError: transformers is not installed, the directory does not exist, the hub cannot be reached, or the files
            are no model of transformers.
    """
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise InputError("extractor: models of transformers need transformers (pip install mmn_fast[hf])") from None
    folder = Path(place)
    if folder.is_dir():
        name = str(folder.absolute())
    elif is_hub_id(place) and not folder.exists():
        name = place
        folder = _download(place)
    else:
        raise InputError(f"extractor: expected hf:<a directory, or a hub id>, got no directory {place!r}")
    check_arrived(folder / "config.json", f"extractor: {folder / 'config.json'}")
    return Files(name, folder, _weights_in(folder))


def _download(repo_id: str) -> Path:
    """Download a model's descriptions, then the weights that transformers would take."""
    from huggingface_hub import HfApi

    download(repo_id, ["config.json"])
    try:
        there = set(HfApi().list_repo_files(repo_id))
    except Exception:  # offline: what an earlier download left
        there = set()
    for name in _WEIGHTS:
        if name in there:
            wanted = [name, *(sorted(one for one in there if one.startswith(name.partition(".")[0] + "-")))]
            wanted = wanted if name.endswith(".index.json") else [name]
            return download(repo_id, [*wanted, *(one for one in _DESCRIPTIONS if one in there)])
    return download(repo_id, ["config.json"])


def _weights_in(folder: Path) -> tuple[Path, ...]:
    for name in _WEIGHTS:
        path = folder / name
        if not path.is_file():
            continue
        if not name.endswith(".index.json"):
            check_arrived(path, f"extractor: {path}")
            return (path,)
        shards = _object(path).get("weight_map")
        names = sorted(set(shards.values())) if isinstance(shards, dict) else []
        if not names or any(not isinstance(one, str) or Path(one).name != one for one in names):
            raise InputError(f"extractor: {path}: expected the names of files beside it, got others")
        for one in names:
            check_arrived(folder / one, f"extractor: {folder / one}")
        return tuple(folder / one for one in names)
    raise InputError(f"extractor: {folder}: expected weights in one of {', '.join(_WEIGHTS)}, got none")


def _object(path: Path) -> dict[str, Any]:
    values = read_json(path, f"extractor: {path}")
    if not isinstance(values, dict):
        raise InputError(f"extractor: {path}: expected an object, got a {type(values).__name__}")
    return values
