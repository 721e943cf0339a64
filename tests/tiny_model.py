"""A model of some kilobytes with random weights, for tests that read and write it hundreds of times."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from mmn_fast.checkpoint import LoadedModel, model_from_state
from mmn_fast.tokenizer import load_tokenizer
from mmn_fast.weights.state import state_shapes
from tests.training_task import PRESET, TEXT, WORDS


def vocabulary(path: Path) -> Path:
    """Write a vocabulary of `TEXT`'s size."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "dog", *WORDS]
    path.write_text("\n".join(words + [f"[unused{n}]" for n in range(TEXT.vocab_size - len(words))]) + "\n")
    return path


def tiny_model(root: Path, seed: int = 0, **text: Any) -> LoadedModel:
    """Make the model; its vocabulary is written to `root`."""
    sizes, rng = dataclasses.replace(TEXT, **text), np.random.default_rng(seed)
    state = {name: rng.standard_normal(shape, np.float32) for name, shape in state_shapes(PRESET, sizes).items()}
    for name in state:
        if name.endswith("running_var"):
            state[name] = np.abs(state[name]) + 0.5
    words = load_tokenizer(vocabulary(root / "vocab.txt"), sizes.max_tokens)
    return model_from_state(PRESET, sizes, state, words, "tiny")


def assert_same(one: LoadedModel, other: LoadedModel) -> None:
    """Check that two models have the same bits, values, words and fingerprint."""
    assert one.state.keys() == other.state.keys()
    for name, array in one.state.items():
        assert array.dtype == other.state[name].dtype, name
        assert np.array_equal(array, other.state[name]), name
    assert (one.preset, one.text) == (other.preset, other.text)
    assert one.tokenizer.digest() == other.tokenizer.digest()
    assert one.fingerprint == other.fingerprint
