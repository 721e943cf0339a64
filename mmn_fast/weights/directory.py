"""The three files of a converted directory: writing adds checksums, reading verifies them.

config.json has the preset, the text encoder's sizes, the contract of the features, the fingerprint, the SHA-256 of the
weights and of tokenizer.json, the first digits of every tensor's SHA-256 (so that a message can name a tensor), and
last the SHA-256 of all of these.
model.safetensors carries no checksum: the order of several entries in its metadata changes from write to write.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmn_fast.checks import build, check_keys, shown
from mmn_fast.errors import InputError
from mmn_fast.features.contract import FeatureContract
from mmn_fast.presets import Preset, TextEncoderConfig
from mmn_fast.storage.checksums import array_digests, combined_sha256, file_sha256, plain_sha256
from mmn_fast.storage.documents import read_json
from mmn_fast.tokenizer import Tokenizer
from mmn_fast.version import __version__
from mmn_fast.weights.fingerprint import fingerprint_of
from mmn_fast.weights.hub import check_arrived
from mmn_fast.weights.state import State

FORMAT_VERSION = 3
CONFIG, WEIGHTS, TOKENIZER = FILES = ("config.json", "model.safetensors", "tokenizer.json")
_OLD_KEYS = ("format_version", "mmn_fast_version", "preset", "text_encoder", "fingerprint", "source")
_CHECKED_KEYS = (*_OLD_KEYS, "weights_sha256", "tokenizer_sha256", "tensors")
_KEYS = {1: _OLD_KEYS, 2: _CHECKED_KEYS, FORMAT_VERSION: (*_CHECKED_KEYS, "feature_contract")}
_DIGITS = 16  # kept digits of a tensor's SHA-256; the full SHA-256 of all weights guards them
_OWN = "sha256"  # key of the SHA-256 of everything else in config.json
_OTHER = (
    "copy the directory again, or convert the checkpoint again (changed on purpose: save_model(model_from_state(...))"
    " of mmn_fast.checkpoint writes a directory for them)"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """Content of config.json.

    Attributes:
        record: all of its values, as plain JSON types.
        preset: sizes and conventions.
        text: sizes of the text encoder.
        contract: how the model's features are made; None if the directory does not say.
    """

    record: Mapping[str, Any]
    preset: Preset
    text: TextEncoderConfig
    contract: FeatureContract | None


def write_directory(
    directory: Path,
    preset: Preset,
    text: TextEncoderConfig,
    state: State,
    tokenizer: Tokenizer,
    source: str,
    contract: FeatureContract | None,
) -> None:
    """Write the three files.

    Args:
        directory: an empty directory.
        preset: sizes and conventions.
        text: sizes of the text encoder.
        state: float32 arrays under the official keys.
        tokenizer: the word pieces.
        source: name of the weights' origin.
        contract: how the model's features are made; None if that is not known.

    Raises:
        OSError: the system refuses.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    digests = array_digests(state)  # computed from the arrays to write, not taken from earlier
    weights = combined_sha256(digests)
    tokenizer.save(directory / TOKENIZER)
    config: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "mmn_fast_version": __version__,
        "preset": preset.to_dict(),
        "text_encoder": dataclasses.asdict(text),
        "fingerprint": fingerprint_of(preset, text, weights, tokenizer),
        "source": source,
        "weights_sha256": weights,
        "tokenizer_sha256": file_sha256(directory / TOKENIZER),
        "tensors": {name: digest[:_DIGITS] for name, digest in digests.items()},
        "feature_contract": None if contract is None else contract.to_dict(),
    }
    config[_OWN] = plain_sha256(config)
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    try:
        save_file(state, str(directory / WEIGHTS), metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from None
    # safetensors lets only the owner read the file; the weights get the permissions of the config.
    (directory / WEIGHTS).chmod((directory / CONFIG).stat().st_mode)


def read_config(path: Path) -> Config:
    """Read config.json.

    Raises:
        InputError: the file is damaged, changed, or in a format that this version does not read.
    """
    where = f"model: {path}"
    config = read_json(path, where)
    version = config.get("format_version") if isinstance(config, dict) else None
    if type(version) is not int or version not in _KEYS:
        raise InputError(
            f"{where}: format_version: expected {FORMAT_VERSION}, got {shown(version)}; convert the checkpoint again,"
            f" or install the mmn_fast that wrote it"
        )
    if version > 1 and config.pop(_OWN, None) != plain_sha256(config):
        raise InputError(
            f"{where} has changed since it was written: its sha256 differs from the one that it names; copy the"
            f" directory again, or convert the checkpoint again"
        )
    check_keys(config, _KEYS[version], where)
    contract = config.get("feature_contract")
    try:
        return Config(
            config,
            Preset.from_dict(config["preset"]),
            build(TextEncoderConfig, config["text_encoder"], "text_encoder"),
            None if contract is None else FeatureContract.from_dict(contract, "feature_contract"),
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def read_weights(path: Path, config: Mapping[str, Any]) -> tuple[State, str]:
    """Read the weights that config.json describes; also return their SHA-256.

    Args:
        path: model.safetensors.
        config: `Config.record`.

    Raises:
        InputError: the file is damaged, or has other weights than config.json describes (the first tensor is named).
    """
    state = _read_safetensors(path)
    digests = array_digests(state)
    weights = combined_sha256(digests)
    if config["format_version"] == 1:
        if _fingerprint_of_format_1(config["preset"], state) != config["fingerprint"]:
            raise InputError(f"model: {path}: its weights are not those that config.json was written for; {_OTHER}")
        logger.warning(
            "model: %s has format 1, whose hash does not cover tokenizer.json and the text encoder's sizes;"
            " `mmn-fast convert %s -o NEW` writes it with checksums",
            path.parent, path.parent,
        )  # fmt: skip
    elif weights != config["weights_sha256"]:
        others = [name for name, digest in digests.items() if config["tensors"].get(name) != digest[:_DIGITS]]
        named = f" ({others[0]}{f' and {len(others) - 1} more tensors' if others[1:] else ''})" if others else ""
        raise InputError(f"model: {path}: its weights{named} are not those that config.json was written for; {_OTHER}")
    return state, weights


def _fingerprint_of_format_1(preset: Mapping[str, Any], state: State) -> str:
    digest = hashlib.sha256(json.dumps(preset, sort_keys=True).encode())
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].data)
    return digest.hexdigest()[:32]


def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    check_arrived(path, f"model: {path}")
    try:
        state: State = load_file(str(path))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"model: {path} is truncated or damaged ({error})") from None
    for name, array in state.items():
        if array.dtype != np.float32:
            raise InputError(f"model: {path}: {name}: expected float32, got {array.dtype}")
    return state
