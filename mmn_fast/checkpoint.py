"""Reads models from official `.pth` files, converted directories (`directory`) and exports; writes them as directories.

Reading a directory or an export needs no torch. Files that carry checksums are verified, and the model's fingerprint is
computed from the values that were read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.checks import build, check_keys, shown
from mmn_fast.errors import InputError
from mmn_fast.features.contract import FeatureContract
from mmn_fast.presets import Preset, TextEncoderConfig, get_preset
from mmn_fast.process.once import kept_property
from mmn_fast.storage.checksums import array_digests, combined_sha256, file_sha256
from mmn_fast.storage.files import check_name, new_directory
from mmn_fast.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_json
from mmn_fast.weights.directory import (
    CONFIG,
    FILES,
    TOKENIZER,
    WEIGHTS,
    read_config,
    read_weights,
    write_directory,
)
from mmn_fast.weights.fingerprint import fingerprint_of, first_difference
from mmn_fast.weights.hub import download, is_hub_id
from mmn_fast.weights.official import RECORD, RECORD_FORMAT, read_official, text_sizes
from mmn_fast.weights.state import State, check_state

DEMO_MODEL = Path(__file__).parent / "demo" / "model"
IN_THE_BOX = {"demo": DEMO_MODEL, "shapes-tubes": DEMO_MODEL.with_name("tubes_model")}
"""The trained models that come with the package, by the names that `load` knows."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model's values, independent of any backend.

    Attributes:
        preset: sizes and conventions.
        text: sizes of the text encoder.
        state: float32 arrays under the official state-dict keys.
        tokenizer: the word pieces of the text encoder's training.
        source: name of the loaded file or directory, for messages.
        exported: directory of an export's graphs (`mmn-fast export`), else None. An export has no weights: its `state`
            is empty.
        weights_sha256: SHA-256 of the weights behind the export; None without an export.
        manifest_sha256: SHA-256 of the export's manifest, which lists every file's SHA-256; None without an export.
        contract: how the features of the model's training are made; None if that is not known. It is no part of the
            fingerprint, because it changes no result of given features.
    """

    preset: Preset
    text: TextEncoderConfig
    state: State
    tokenizer: Tokenizer
    source: str
    exported: Path | None = None
    weights_sha256: str | None = None
    manifest_sha256: str | None = None
    contract: FeatureContract | None = None

    @kept_property
    def fingerprint(self) -> str:
        """Hash of all values that affect results (`weights.fingerprint.fingerprint_of`).

        A checkpoint, its converted directory and its export have the same fingerprint.
        """
        weights = self.weights_sha256 or combined_sha256(array_digests(self.state))
        return fingerprint_of(self.preset, self.text, weights, self.tokenizer)

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)
        if self.exported is not None:
            _check_export(self.exported, self.manifest_sha256)

    def called(self, source: str) -> LoadedModel:
        """The same model with another name in messages."""
        return dataclasses.replace(self, source=source)._knowing(self.fingerprint)

    def _knowing(self, fingerprint: str) -> LoadedModel:
        """Store the fingerprint that was computed during reading; return the model."""
        self.__dict__["fingerprint"] = fingerprint  # the cached property's place; a copy by `replace` computes it anew
        return self


def load_model(
    model: str | Path, preset: str | Path | Preset | None = None, tokenizer: str | Path | None = None
) -> LoadedModel:
    """Read a model.

    Args:
        model: a converted directory, an official checkpoint file, a hub id of a converted directory, an export, or
            one of `IN_THE_BOX`.
        preset: needed for a checkpoint file of another program; otherwise it must agree with the model's own preset.
        tokenizer: needed for a checkpoint file of another program; otherwise it replaces the model's own.

    Raises:
        InputError: the model cannot be used; the message names the file, what was expected and what came.
    """
    check_name(model, "model")
    path = Path(model)
    if model in IN_THE_BOX:  # takes precedence over a file "demo"; "./demo" and a Path still reach that file
        return _from_directory(IN_THE_BOX[str(model)], preset, tokenizer)
    if path.is_file():
        if path.name in FILES and (path.parent / CONFIG).is_file():
            raise InputError(f"model: {path} is a file of a converted directory; name the directory, {path.parent}")
        return _from_official(path, preset, tokenizer)
    if path.is_dir():
        if is_export(model):
            return _from_export(path, preset, tokenizer)
        return _from_directory(path, preset, tokenizer)
    if is_hub_id(model):
        return _from_directory(download(str(model), list(FILES)), preset, tokenizer)
    raise InputError(f"model: {path}: no such file or directory, and not a hub id (owner/name)")


def is_export(model: str | Path) -> bool:
    """Whether `load_model` would read an export: a directory with a manifest.

    Raises:
        InputError: `model` cannot name anything.
    """
    check_name(model, "model")
    return model not in IN_THE_BOX and (Path(model) / "manifest.json").is_file()


def convert(
    checkpoint: str | Path,
    preset: str | Path | Preset | None,
    tokenizer: str | Path | None,
    output: str | Path,
    text_heads: int | None = None,
    contract: FeatureContract | None = None,
) -> Path:
    """Turn an official checkpoint into a directory that `mmn_fast.load` takes.

    The directory appears whole or not at all.

    Args:
        checkpoint: official `.pth` file; or a converted directory, to write it in the current format.
        preset: a preset's name, an official YAML file's path, or a `Preset`; None if the checkpoint records it, as
            files of `train --official-pth` do.
        tokenizer: tokenizer.json, vocab.txt, a directory with either, or a hub id; None if the checkpoint records it.
        output: directory to create; must not exist.
        text_heads: attention heads of the text encoder, if neither the checkpoint nor the width tells the number.
        contract: how the model's features are made, if the checkpoint does not record it.

    Returns:
        The directory.

    Raises:
        InputError: an input cannot be used or the output exists.
    """
    check_name(checkpoint, "checkpoint")
    output, path = Path(output), Path(checkpoint)
    if output.exists():
        raise InputError(f"output: {output} exists; name a directory that does not")
    if not path.is_dir():
        return save_model(_with_contract(_from_official(path, preset, tokenizer, text_heads), contract), output)
    if text_heads is not None:
        raise InputError(
            f"text_heads: expected none for the directory {path}, because it records its own number of heads"
        )
    return save_model(_with_contract(_from_directory(path, preset, tokenizer), contract), output)


def _with_contract(model: LoadedModel, contract: FeatureContract | None) -> LoadedModel:
    """The model with a contract for its features; refuses one that suits neither its width nor its own contract."""
    if contract is None:
        return model
    if contract.width != model.preset.input_size:
        raise InputError(
            f"contract: width: expected {model.preset.input_size}, that of the features of preset"
            f" {model.preset.name!r}, got {contract.width}"
        )
    difference = None if model.contract is None else model.contract.first_difference(contract)
    if difference is not None:
        raise InputError(f"contract: {model.source} has another contract for its features: {difference}")
    return dataclasses.replace(model, contract=contract)


def save_model(model: LoadedModel, output: str | Path) -> Path:
    """Write a model as a converted directory, whole or not at all.

    Args:
        model: the model.
        output: directory to create; must not exist.

    Returns:
        The directory.

    Raises:
        InputError: the output exists or cannot be written, or the model is an export, which has no weights.
    """
    if model.exported is not None:
        raise InputError(f"model: {model.source} is an export and has no weights; name the model that it was made from")
    output = Path(output)
    if output.exists():
        raise InputError(f"output: {output} exists; name a directory that does not")
    with new_directory(output, "output") as partial:
        source = Path(model.source).name
        write_directory(partial, model.preset, model.text, model.state, model.tokenizer, source, model.contract)
    return output


def model_from_state(
    preset: Preset,
    text: TextEncoderConfig,
    state: Mapping[str, npt.NDArray[Any]],
    tokenizer: Tokenizer,
    source: str,
    contract: FeatureContract | None = None,
) -> LoadedModel:
    """Make a model from weights in memory, as `load_model` makes it from files.

    Args:
        preset: sizes and conventions.
        text: sizes of the text encoder.
        state: arrays under official keys; contiguous float32 arrays are taken without a copy.
        tokenizer: the word pieces of the text encoder's training.
        source: origin of the weights, for messages.
        contract: how the features of the model's training are made, if that is known.

    Raises:
        InputError: the weights do not fit the preset's model, or are not finite.
    """
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in state.items()}
    check_state(arrays, preset, text, source)
    return _checked(preset, text, arrays, tokenizer, Path(source), contract)


def _from_official(
    path: Path,
    preset: str | Path | Preset | None,
    tokenizer: str | Path | None,
    text_heads: int | None = None,
) -> LoadedModel:
    found = read_official(path)
    if found.record is not None:
        return _from_recorded(path, found.state, found.record, preset, tokenizer, text_heads)
    if preset is None or tokenizer is None:
        missing = "preset=" if preset is None else "tokenizer="
        raise InputError(f"{path}: an official checkpoint needs preset= and tokenizer=; {missing} is missing")
    text = text_sizes(found.state, str(path), text_heads)
    check_state(found.state, get_preset(preset), text, str(path))
    return _checked(get_preset(preset), text, found.state, load_tokenizer(tokenizer, text.max_tokens), path)


def _from_recorded(
    path: Path,
    state: State,
    record: Mapping[str, Any],
    preset: str | Path | Preset | None,
    tokenizer: str | Path | None,
    text_heads: int | None,
) -> LoadedModel:
    """Make a model from a checkpoint that records its preset, text encoder and tokenizer."""
    where = f"checkpoint: {path}: {RECORD}"
    names = ("format_version", "preset", "text_encoder", "tokenizer")
    check_keys(record, (*names, "feature_contract"), where, names)
    if record["format_version"] != RECORD_FORMAT:
        raise InputError(
            f"{where}: format_version: expected {RECORD_FORMAT}, got {shown(record['format_version'])}; install the"
            f" mmn_fast that wrote it"
        )
    held, text = Preset.from_dict(record["preset"]), build(TextEncoderConfig, record["text_encoder"], where)
    contract = record.get("feature_contract")
    contract = None if contract is None else FeatureContract.from_dict(contract, f"{where}: feature_contract")
    _insist(held, preset, f"{path} was trained")
    if text_heads not in (None, text.num_heads):
        raise InputError(f"text_heads: {path} was trained with {text.num_heads}, got {text_heads!r}")
    check_state(state, held, text, str(path))
    if tokenizer is None:
        chosen = tokenizer_from_json(str(record["tokenizer"]), str(path), text.max_tokens)
    else:
        chosen = load_tokenizer(tokenizer, text.max_tokens)
    return _checked(held, text, state, chosen, path, contract)


def _insist(held: Preset, preset: str | Path | Preset | None, made: str) -> None:
    """Refuse a preset that gives other results than the model's own preset."""
    if preset is None:
        return
    wanted = get_preset(preset)
    difference = first_difference(held, wanted)
    if difference is not None:
        raise InputError(f"preset: {made} with preset {held.name!r}, got {wanted.name!r} ({difference})")


def _from_directory(path: Path, preset: str | Path | Preset | None, tokenizer: str | Path | None) -> LoadedModel:
    missing = [name for name in FILES if not (path / name).is_file() and (name != TOKENIZER or tokenizer is None)]
    if missing:
        raise InputError(f"model: {path} is not a converted directory: no {', '.join(missing)}")
    found = read_config(path / CONFIG)
    config, held, text = found.record, found.preset, found.text
    _insist(held, preset, f"{path} was converted")
    state, weights = read_weights(path / WEIGHTS, config)
    check_state(state, held, text, str(path / WEIGHTS))
    if tokenizer is not None:
        words = load_tokenizer(tokenizer, text.max_tokens)
        fingerprint = fingerprint_of(held, text, weights, words)
        return _checked(held, text, state, words, path, found.contract)._knowing(fingerprint)
    if config["format_version"] > 1 and file_sha256(path / TOKENIZER) != config["tokenizer_sha256"]:
        raise InputError(
            f"model: {path / TOKENIZER} is not the file that {CONFIG} was written for: its sha256 differs; copy it"
            f" again, or give another tokenizer with tokenizer="
        )
    words = load_tokenizer(path / TOKENIZER, text.max_tokens)
    fingerprint = fingerprint_of(held, text, weights, words)
    if config["format_version"] > 1 and fingerprint != config["fingerprint"]:
        raise InputError(
            f"model: {path}: fingerprint: expected {fingerprint}, as computed from the files, got"
            f" {config['fingerprint']}; convert the checkpoint again"
        )
    return _checked(held, text, state, words, path, found.contract)._knowing(fingerprint)


def _from_export(path: Path, preset: str | Path | Preset | None, tokenizer: str | Path | None) -> LoadedModel:
    from mmn_fast.artifact.manifest import MANIFEST, TOKENIZER, check_files, read_manifest

    manifest = read_manifest(path)
    _insist(manifest.preset, preset, f"{path} was exported")
    check_files(path, manifest)
    words = load_tokenizer(path / TOKENIZER if tokenizer is None else tokenizer, manifest.text.max_tokens)
    loaded = dataclasses.replace(
        _checked(manifest.preset, manifest.text, {}, words, path, manifest.feature_contract),
        exported=path.absolute(),
        weights_sha256=manifest.weights_sha256,
        manifest_sha256=file_sha256(path / MANIFEST),
    )
    if tokenizer is None and loaded.fingerprint != manifest.fingerprint:
        raise InputError(
            f"export: {path}: fingerprint: expected {loaded.fingerprint}, as computed from the files, got"
            f" {manifest.fingerprint}; export the model again"
        )
    return loaded


def _check_export(path: Path, manifest_sha256: str | None) -> None:
    """Refuse an export that changed since it was pickled; the pickle does not contain the graphs."""
    from mmn_fast.artifact.manifest import MANIFEST, check_files, read_manifest

    manifest = read_manifest(path)
    if file_sha256(path / MANIFEST) != manifest_sha256:
        raise InputError(
            f"model: {path} has changed since its model was pickled: it is another export now; load it again"
        )
    check_files(path, manifest)


def _checked(
    preset: Preset,
    text: TextEncoderConfig,
    state: State,
    tokenizer: Tokenizer,
    source: Path,
    contract: FeatureContract | None = None,
) -> LoadedModel:
    if tokenizer.vocab_size != text.vocab_size:
        raise InputError(
            f"tokenizer: expected the {text.vocab_size} word pieces that {source} embeds, got {tokenizer.vocab_size}"
        )
    return LoadedModel(preset, text, state, tokenizer, str(source), contract=contract)
