"""Checkpoints: official `.pth` files in, converted directories out, and the checks between.

A converted directory holds config.json (every preset value, the text encoder's sizes, a format version),
model.safetensors (official state-dict keys) and tokenizer.json. Reading one needs no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.files import check_name, new_directory
from mmn_fast.hub import check_arrived, download, is_hub_id
from mmn_fast.presets import PRESETS, Preset, get_preset
from mmn_fast.tokenizer import Tokenizer, load_tokenizer
from mmn_fast.types import InputError, TextEncoderConfig
from mmn_fast.version import __version__

State = dict[str, npt.NDArray[Any]]
Shape = tuple[int, ...]

FORMAT_VERSION = 1
DEMO_MODEL = Path(__file__).parent / "demo" / "model"
"""The trained model that comes with the package: "demo"."""
_FILES = ["config.json", "model.safetensors", "tokenizer.json"]
_TORCH_MAGIC = (b"PK\x03\x04", b"\x80\x02")  # a zip archive, or before PyTorch 1.6 pickles in a row
_HEAD_WIDTH = 64  # of every published BERT and DistilBERT; the number of heads leaves no trace in the tensors
_BERT = "text_encoder.bert."


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model's values, before any backend has taken them.

    Attributes:
        preset: sizes and conventions.
        text: sizes of the text encoder.
        state: float32 arrays under the official state-dict keys.
        tokenizer: the word pieces the text encoder was trained with.
        fingerprint: hash of preset and weights; equal for a checkpoint and its converted directory.
        source: what was loaded, for messages.
        exported: directory of the graphs if an export was loaded (`mmn-fast export`); it has no weights, so `state` is
            empty then.
    """

    preset: Preset
    text: TextEncoderConfig
    state: State
    tokenizer: Tokenizer
    fingerprint: str
    source: str
    exported: Path | None = None


def load_model(
    model: str | Path, preset: str | Path | Preset | None = None, tokenizer: str | Path | None = None
) -> LoadedModel:
    """Read a model.

    Args:
        model: a converted directory, an official checkpoint file, a hub id of a converted directory, an export, or
            "demo".
        preset: needed for a checkpoint file; for a directory only to insist on what it holds.
        tokenizer: needed for a checkpoint file; replaces the directory's own.

    Raises:
        InputError: nothing usable there; the message names the file, what was expected and what came.
    """
    check_name(model, "model")
    path = Path(model)
    if model == "demo":  # before files of that name, which "./demo" and a Path still reach
        return _from_directory(DEMO_MODEL, preset, tokenizer)
    if path.is_file():
        if path.name in _FILES and (path.parent / _FILES[0]).is_file():
            raise InputError(f"model: {path} is a file of a converted directory; name the directory, {path.parent}")
        if preset is None or tokenizer is None:
            missing = "preset=" if preset is None else "tokenizer="
            raise InputError(f"{path}: an official checkpoint needs preset= and tokenizer=; {missing} is missing")
        return _from_official(path, get_preset(preset), tokenizer)
    if path.is_dir():
        if is_export(model):
            return _from_export(path, preset, tokenizer)
        return _from_directory(path, preset, tokenizer)
    if is_hub_id(model):
        return _from_directory(download(str(model), _FILES), preset, tokenizer)
    raise InputError(f"model: {path}: no such file or directory, and not a hub id (owner/name)")


def is_export(model: str | Path) -> bool:
    """Whether `load_model` would read an export: a directory with a manifest.

    Raises:
        InputError: `model` cannot name anything.
    """
    check_name(model, "model")
    return model != "demo" and (Path(model) / "manifest.json").is_file()


def convert(checkpoint: str | Path, preset: str | Path | Preset, tokenizer: str | Path, output: str | Path) -> Path:
    """Turn an official checkpoint into a directory that `mmn_fast.load` takes.

    The directory appears whole or not at all.

    Args:
        checkpoint: official `.pth` file.
        preset: a preset's name, an official YAML file's path, or a `Preset`.
        tokenizer: tokenizer.json, vocab.txt, a directory with either, or a hub id.
        output: directory to create; must not exist.

    Returns:
        The directory.

    Raises:
        InputError: an input cannot be used or the output exists.
    """
    output = Path(output)
    if output.exists():
        raise InputError(f"output: {output} exists; name a directory that does not")
    return save_model(_from_official(Path(checkpoint), get_preset(preset), tokenizer), output)


def save_model(model: LoadedModel, output: str | Path) -> Path:
    """Write a model as a converted directory, whole or not at all.

    Args:
        model: the model.
        output: directory to create; must not exist.

    Returns:
        The directory.

    Raises:
        InputError: the output exists or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    output = Path(output)
    if output.exists():
        raise InputError(f"output: {output} exists; name a directory that does not")
    config = {
        "format_version": FORMAT_VERSION,
        "mmn_fast_version": __version__,
        "preset": model.preset.to_dict(),
        "text_encoder": dataclasses.asdict(model.text),
        "fingerprint": model.fingerprint,
        "source": Path(model.source).name,
    }
    try:
        with new_directory(output, "output") as partial:
            (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            save_file(model.state, str(partial / "model.safetensors"), metadata={"format": "pt"})
            # safetensors writes for the owner alone; a model is as readable as its config.
            (partial / "model.safetensors").chmod((partial / "config.json").stat().st_mode)
            model.tokenizer.save(partial / "tokenizer.json")
    except SafetensorError as error:
        raise InputError(f"output: {output}: {error}") from None
    return output


def model_from_state(
    preset: Preset, text: TextEncoderConfig, state: Mapping[str, npt.NDArray[Any]], tokenizer: Tokenizer, source: str
) -> LoadedModel:
    """A model from weights in memory, as `load_model` gives it from files.

    Args:
        preset: sizes and conventions.
        text: sizes of the text encoder.
        state: arrays under official keys; float32 contiguous ones are taken without a copy.
        tokenizer: the word pieces the text encoder was trained with.
        source: where the weights come from, for messages.

    Raises:
        InputError: the weights are not those of the preset's model, or not finite.
    """
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in state.items()}
    check_state(arrays, preset, text, source)
    return _checked(preset, text, arrays, tokenizer, _fingerprint(preset, arrays), Path(source))


def state_shapes(preset: Preset, text: TextEncoderConfig) -> dict[str, Shape]:
    """Official state-dict keys of a model's parameters and statistics, with their shapes.

    `num_batches_tracked` is left out: inference does not read it, and not every checkpoint has it.
    """
    hidden, width, joint, k = preset.hidden_size, preset.conv_hidden_size, preset.joint_size, preset.conv_kernel
    shapes: dict[str, Shape] = {}

    def add(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"] = weight
        shapes[f"{name}.bias"] = weight[:1]

    add("featpool.conv", hidden, preset.input_size, 1)
    if preset.pooling == "conv":
        number = 0
        for level, count in enumerate(preset.pooling_counts):
            for index in range(count):
                add(f"feat2d.convs.{number}", hidden, hidden, 3 if level and not index else 2)
                number += 1
    for layer in range(preset.conv_layers):
        add(f"proposal_conv.convs.{layer}", width, width if layer else hidden, k, k)
        add(f"proposal_conv.bn.{layer}", width)
        shapes[f"proposal_conv.bn.{layer}.running_mean"] = (width,)
        shapes[f"proposal_conv.bn.{layer}.running_var"] = (width,)
    add("proposal_conv.conv1x1_iou", joint, width, 1, 1)
    add("proposal_conv.conv1x1_contrastive", joint, width, 1, 1)

    shapes[f"{_BERT}embeddings.word_embeddings.weight"] = (text.vocab_size, text.width)
    shapes[f"{_BERT}embeddings.position_embeddings.weight"] = (text.max_tokens, text.width)
    add(f"{_BERT}embeddings.LayerNorm", text.width)
    for layer in range(text.num_layers):
        block = f"{_BERT}transformer.layer.{layer}"
        for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
            add(f"{block}.attention.{name}", text.width, text.width)
        add(f"{block}.sa_layer_norm", text.width)
        add(f"{block}.ffn.lin1", text.ffn_width, text.width)
        add(f"{block}.ffn.lin2", text.width, text.ffn_width)
        add(f"{block}.output_layer_norm", text.width)
    add("text_encoder.layernorm", text.width)
    add("text_encoder.fc_out1", joint, text.width)
    add("text_encoder.fc_out2", joint, text.width)
    return shapes


def check_state(state: Mapping[str, npt.NDArray[Any]], preset: Preset, text: TextEncoderConfig, where: str) -> None:
    """Refuse weights that are not those of the preset's model.

    Args:
        state: arrays under official keys.
        preset: the preset they should belong to.
        text: sizes of the text encoder.
        where: what is read, for the message.

    Raises:
        InputError: a key is missing or unknown (named), a shape differs (with the preset it belongs to, if any), or
            a value is not finite.
    """
    expected = state_shapes(preset, text)
    others = [
        other.name
        for other in PRESETS.values()
        if _video_shapes(state) == {k: s for k, s in state_shapes(other, text).items() if not k.startswith("text_")}
    ]
    hint = f"; these weights are of the sizes of {' and '.join(map(repr, others))}" if others else ""
    for name, shape in expected.items():
        if name in state and state[name].shape != shape:
            owners = [p.name for p in PRESETS.values() if state_shapes(p, text).get(name) == state[name].shape]
            if owners and not others:
                hint = f"; this width belongs to {' and '.join(map(repr, owners))}"
            raise InputError(
                f"{where}: {name} is {list(state[name].shape)}, preset {preset.name!r} expects {list(shape)}{hint}"
            )
    problems = []
    for label, names in (("missing", expected.keys() - state.keys()), ("unexpected", state.keys() - expected.keys())):
        if names:
            first = sorted(names)
            more = f" and {len(first) - 4} more" if len(first) > 4 else ""
            problems.append(f"{label} {'key' if len(first) == 1 else 'keys'} {', '.join(first[:4])}{more}")
    if problems:
        raise InputError(f"{where}: {'; '.join(problems)} (for preset {preset.name!r}){hint}")
    for name, array in state.items():
        if not np.isfinite(array).all():
            raise InputError(f"{where}: {name} holds NaN or infinite values")


def _video_shapes(state: Mapping[str, npt.NDArray[Any]]) -> dict[str, Shape]:
    return {name: array.shape for name, array in state.items() if not name.startswith("text_")}


def _from_official(path: Path, preset: Preset, tokenizer: str | Path) -> LoadedModel:
    state = _read_official(path)
    text = _text_sizes(state, str(path))
    check_state(state, preset, text, str(path))
    return _checked(preset, text, state, load_tokenizer(tokenizer, text.max_tokens), _fingerprint(preset, state), path)


def _read_official(path: Path) -> State:
    """The model's float32 arrays of an official checkpoint, read without running any code that it holds."""
    if not check_arrived(path, f"checkpoint: {path}").startswith(_TORCH_MAGIC):
        raise InputError(f"checkpoint: {path} is not a PyTorch checkpoint")
    content = _torch_load(path)
    tree = content.get("model", content) if isinstance(content, Mapping) else content
    if not isinstance(tree, Mapping) or not tree:
        raise InputError(f"checkpoint: {path}: expected a state dict or a dict with 'model', got {type(tree).__name__}")
    state: State = {}
    for key, value in tree.items():
        name = str(key).removeprefix("module.")
        if not hasattr(value, "detach"):
            raise InputError(f"checkpoint: {path}: {name}: expected a tensor, got {type(value).__name__}")
        # Buffers of older transformers, BatchNorm's step counter, and layers of MMN-STVG that no output depends on.
        if name.endswith((".position_ids", ".num_batches_tracked")) or name.startswith(
            ("featpool.fc1.", "featpool.fc2.")
        ):
            continue
        state[name] = np.ascontiguousarray(value.detach().float().cpu().numpy())
    return state


def _torch_load(path: Path) -> Any:
    import pickle
    from collections import Counter

    import torch

    try:
        with torch.serialization.safe_globals([Counter]):  # MultiStepLR keeps its milestones in one
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise InputError(
                f"checkpoint: {path} holds Python objects beside tensors ({found[1]}) and is not loaded, since that"
                f" runs code"
            ) from None
        raise InputError(f"checkpoint: {path} is damaged: its pickled part cannot be read") from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"checkpoint: {path} is truncated or damaged ({reason})") from None


def _text_sizes(state: State, where: str) -> TextEncoderConfig:
    """The text encoder's sizes, read off its tensors."""
    needed = ("embeddings.word_embeddings", "embeddings.position_embeddings", "transformer.layer.0.ffn.lin1")
    missing = [name for part in needed if (name := f"{_BERT}{part}.weight") not in state]
    if missing:
        raise InputError(f"{where}: missing key {missing[0]}")
    words, positions, ffn = (state[f"{_BERT}{part}.weight"] for part in needed)
    layers = {name.split(".")[4] for name in state if name.startswith(f"{_BERT}transformer.layer.")}
    width = words.shape[1]
    if width % _HEAD_WIDTH:
        raise InputError(f"{where}: text encoder width: expected a multiple of {_HEAD_WIDTH}, got {width}")
    return TextEncoderConfig(
        vocab_size=words.shape[0],
        max_tokens=positions.shape[0],
        width=width,
        num_layers=len(layers),
        num_heads=width // _HEAD_WIDTH,
        ffn_width=ffn.shape[0],
    )


def _from_directory(path: Path, preset: str | Path | Preset | None, tokenizer: str | Path | None) -> LoadedModel:
    missing = [name for name in _FILES if not (path / name).is_file() and (name != _FILES[2] or tokenizer is None)]
    if missing:
        raise InputError(f"model: {path} is not a converted directory: no {', '.join(missing)}")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        version = config["format_version"]
        if version != FORMAT_VERSION:
            raise InputError(
                f"model: {path / 'config.json'}: format_version: expected {FORMAT_VERSION}, got {version!r};"
                f" convert the checkpoint again, or install the mmn_fast that wrote it"
            )
        held = Preset.from_dict(config["preset"])
        text = TextEncoderConfig(**config["text_encoder"])
        if not all(type(size) is int and size >= 1 for size in dataclasses.astuple(text)):
            raise TypeError(f"text_encoder: expected integers >= 1, got {config['text_encoder']}")
        fingerprint = str(config["fingerprint"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"model: {path / 'config.json'} is damaged ({type(error).__name__}: {error})") from None
    if preset is not None and get_preset(preset) != held:
        raise InputError(f"preset: {path} was converted with preset {held.name!r}, got {str(preset)!r}")
    state = _read_safetensors(path / "model.safetensors")
    check_state(state, held, text, str(path / "model.safetensors"))
    source = path / "tokenizer.json" if tokenizer is None else tokenizer
    return _checked(held, text, state, load_tokenizer(source, text.max_tokens), fingerprint, path)


def _from_export(path: Path, preset: str | Path | Preset | None, tokenizer: str | Path | None) -> LoadedModel:
    from mmn_fast.export.manifest import TOKENIZER, check_files, read_manifest

    manifest = read_manifest(path)
    if preset is not None and get_preset(preset) != manifest.preset:
        raise InputError(f"preset: {path} was exported with preset {manifest.preset.name!r}, got {str(preset)!r}")
    check_files(path, manifest)
    words = load_tokenizer(path / TOKENIZER if tokenizer is None else tokenizer, manifest.text.max_tokens)
    loaded = _checked(manifest.preset, manifest.text, {}, words, manifest.fingerprint, path)
    return dataclasses.replace(loaded, exported=path)


def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    check_arrived(path, f"model: {path}")
    try:
        state: State = load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"model: {path} is truncated or damaged ({error})") from None
    return state


def _checked(
    preset: Preset, text: TextEncoderConfig, state: State, tokenizer: Tokenizer, fingerprint: str, source: Path
) -> LoadedModel:
    if tokenizer.vocab_size != text.vocab_size:
        raise InputError(
            f"tokenizer: expected {text.vocab_size} word pieces, as {source} embeds, got {tokenizer.vocab_size}"
        )
    return LoadedModel(preset, text, state, tokenizer, fingerprint, str(source))


def _fingerprint(preset: Preset, state: State) -> str:
    digest = hashlib.sha256(json.dumps(preset.to_dict(), sort_keys=True).encode())
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].data)
    return digest.hexdigest()[:32]
