"""Makes the model that training starts from: random weights, a published text encoder's, or a whole model's."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import torch
from torch import nn

from mmn_fast.checkpoint import load_model
from mmn_fast.checks import build, check_keys, shown
from mmn_fast.errors import InputError
from mmn_fast.features.contract import FeatureContract
from mmn_fast.model import MMN
from mmn_fast.presets import Preset, TextEncoderConfig
from mmn_fast.storage.documents import parse_json, read_json
from mmn_fast.tokenizer import Tokenizer, load_tokenizer
from mmn_fast.weights.fingerprint import first_difference
from mmn_fast.weights.hub import download, is_hub_id
from mmn_fast.weights.state import State

PUBLISHED_TEXT_ENCODER = "distilbert/distilbert-base-uncased"
_FILES = ["config.json", "model.safetensors", "tokenizer.json"]
_SIZES = {f.name: f.type for f in dataclasses.fields(TextEncoderConfig)}
# DistilBERT's configuration file -> TextEncoderConfig.
_PUBLISHED_SIZES = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_tokens",
    "dim": "width",
    "n_layers": "num_layers",
    "n_heads": "num_heads",
    "hidden_dim": "ffn_width",
}
_INITIAL_STD = 0.02  # standard deviation of BERT's initial weights


def new_model(
    preset: Preset,
    text_encoder: str | Path | TextEncoderConfig | None,
    tokenizer: str | Path | None,
    init: str | Path | None,
    dropout: float,
) -> tuple[MMN, TextEncoderConfig, Tokenizer, FeatureContract | None]:
    """Make the initial model; also return its text encoder's sizes, its tokenizer and the contract of its features.

    Random weights come from PyTorch's global generator.

    Args:
        preset: sizes and geometry.
        text_encoder: sizes of an encoder that starts from scratch (a `TextEncoderConfig`, a JSON file or object, or
            "width=128,num_layers=2,..."), or a directory or hub id of published DistilBERT weights; None takes
            `PUBLISHED_TEXT_ENCODER`.
        tokenizer: tokenizer.json, vocab.txt, a directory or hub id; None takes the published text encoder's tokenizer.
        init: a whole model to start from instead: a converted directory, an official `.pth`, or a hub id.
        dropout: dropout of the text encoder.

    Raises:
        InputError: an argument cannot be used.
    """
    if init is not None:
        if text_encoder is not None:
            raise InputError("text_encoder: expected none beside init, which brings its own")
        is_file = Path(init).is_file()
        loaded = load_model(init, preset if is_file else None, tokenizer)
        difference = first_difference(loaded.preset, preset)
        if difference is not None:
            raise InputError(
                f"init: {init} holds a model of preset {loaded.preset.name!r}, not of {preset.name!r} ({difference})"
            )
        model = MMN(preset, loaded.text)
        model.load_state_dict({name: torch.from_numpy(a) for name, a in loaded.state.items()}, strict=False)
        config, chosen, contract = loaded.text, loaded.tokenizer, loaded.contract
    else:
        config, weights, chosen = _text_start(text_encoder, tokenizer)
        contract = None
        model = MMN(preset, config)
        if weights is None:
            _initialise(model.text_encoder.bert)
        else:
            model.text_encoder.bert.load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()})
    model.text_encoder.bert.dropout = dropout
    return model.train(), config, chosen, contract


def parse_text_encoder(value: str, vocab_size: int) -> TextEncoderConfig:
    """Parse a text encoder's sizes from a JSON file, a JSON object, or "width=128,num_layers=2,...".

    Args:
        value: the sizes. A missing size takes the published value, or follows from the width: ffn_width is 4 times the
            width, and each head is 64 wide (one head if the width is smaller). The vocabulary's size is `vocab_size`.
        vocab_size: word pieces of the tokenizer.

    Raises:
        InputError: another form, an unknown name, or a value that is no integer >= 1.
    """
    expected = f"text_encoder: expected sizes ({', '.join(_SIZES)}), a directory or a hub id"
    if Path(value).suffix == ".json":
        sizes = read_json(value, f"text_encoder: {value}")
    elif value.lstrip().startswith("{"):
        sizes = parse_json(value, "text_encoder")
    else:
        sizes = {}
        for part in value.split(","):
            name, equals, number = (word.strip() for word in part.partition("="))
            if not equals or not re.fullmatch(r"[0-9]{1,20}", number):
                raise InputError(f"{expected}, got {shown(value)}")
            if name in sizes:
                raise InputError(f"text_encoder: {name} stands twice in {shown(value)}")
            sizes[name] = int(number)
    sizes = check_keys(sizes, _SIZES, "text_encoder", ())
    implied = {"vocab_size": vocab_size}
    if type(sizes.get("width")) is int and sizes["width"] >= 1:
        implied |= {"num_heads": max(1, sizes["width"] // 64), "ffn_width": 4 * sizes["width"]}
    return build(TextEncoderConfig, {**implied, **sizes}, "")


def starts_from_scratch(text_encoder: str | Path | TextEncoderConfig | None, init: str | Path | None) -> bool:
    """Whether the text encoder begins with random weights, given these arguments of `new_model`."""
    if init is not None or text_encoder is None:
        return False
    return isinstance(text_encoder, TextEncoderConfig) or not (
        os.path.isdir(text_encoder) or is_hub_id(str(text_encoder))
    )


def _text_start(
    text_encoder: str | Path | TextEncoderConfig | None, tokenizer: str | Path | None
) -> tuple[TextEncoderConfig, State | None, Tokenizer]:
    source = PUBLISHED_TEXT_ENCODER if text_encoder is None else text_encoder
    if isinstance(source, TextEncoderConfig) or starts_from_scratch(source, None):
        if tokenizer is None:
            raise InputError("tokenizer: expected one for a text encoder that starts from scratch, got none")
        chosen = load_tokenizer(tokenizer)
        if not isinstance(source, TextEncoderConfig):
            config = parse_text_encoder(str(source), chosen.vocab_size)
        elif source.vocab_size == TextEncoderConfig.vocab_size:  # the caller named no vocabulary size
            config = dataclasses.replace(source, vocab_size=chosen.vocab_size)
        else:
            config = source
        if config.vocab_size != chosen.vocab_size:
            raise InputError(
                f"text_encoder: vocab_size: expected the tokenizer's {chosen.vocab_size}, got {config.vocab_size}"
            )
        chosen.max_tokens = config.max_tokens
        return config, None, chosen
    root = Path(source) if os.path.isdir(source) else download(str(source), _FILES)
    config, weights = _published(root)
    return config, weights, load_tokenizer(root if tokenizer is None else tokenizer, config.max_tokens)


def _published(root: Path) -> tuple[TextEncoderConfig, State]:
    """Read a published DistilBERT: its sizes, and its weights under our keys, without the language-model head."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        values = read_json(root / "config.json", f"text_encoder: {root / 'config.json'}")
        config = TextEncoderConfig(**{ours: values[theirs] for theirs, ours in _PUBLISHED_SIZES.items()})
        tensors = load_file(str(root / "model.safetensors"))
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise InputError(f"text_encoder: {root}: expected a DistilBERT directory ({error})") from None
    with torch.device("meta"):
        from mmn_fast.text_encoder import TextEncoder

        expected = TextEncoder(config, 1).bert.state_dict()
    weights = {name.removeprefix("distilbert."): array for name, array in tensors.items()}
    for name, tensor in expected.items():
        if name not in weights or weights[name].shape != tuple(tensor.shape):
            came = list(weights[name].shape) if name in weights else "nothing"
            raise InputError(f"text_encoder: {root}: {name}: expected {list(tensor.shape)}, got {came}")
    return config, {name: weights[name] for name in expected}


def _initialise(bert: nn.Module) -> None:
    """Initialise weights like BERT: normal weights, zero biases, a zero vector for padding."""
    for module in bert.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=_INITIAL_STD)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx] = 0
