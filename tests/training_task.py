"""A grounding task that a tiny model learns in seconds: each word has a direction in feature space, and a video's
clips point in that direction during the word's event.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from mmn_fast.presets import PRESETS, LossParams, Preset, Recipe, TextEncoderConfig

WORDS = ("jumps", "sleeps", "turns", "falls", "sings", "waits")
WIDTH, NUM_CLIPS, CLIP_S = 12, 8, 2.0

PRESET = Preset(
    name="tiny",
    num_pre_clips=NUM_CLIPS * 2,
    num_clips=NUM_CLIPS,
    feature_streams=(WIDTH,),
    hidden_size=24,
    clip_pool_kernel=2,
    pooling_counts=(NUM_CLIPS - 1,),
    conv_hidden_size=24,
    conv_kernel=3,
    conv_layers=2,
    joint_size=16,
    loss=LossParams(),
    recipe=Recipe(
        learning_rate=5e-3, batch_size=8, epochs=4, milestones=(3,), freeze_text_epochs=0, all_losses_epochs=4
    ),
)
CONV_PRESET = dataclasses.replace(PRESET, name="tiny-conv", pooling="conv", pooling_counts=(3, 1))
TEXT = TextEncoderConfig(vocab_size=20, max_tokens=12, width=16, num_layers=1, num_heads=2, ffn_width=32)
assert "tiny" not in PRESETS


def write_task(root: Path, num_videos: int, seed: int, name: str = "train") -> dict[str, Path]:
    """Write annotations (official layout), features (one .npy per video) and a vocabulary.

    Args:
        root: directory to write to.
        num_videos: videos, each with two events of different words.
        seed: seed of all random choices.
        name: prefix of the videos' names, and the name of the annotation file.

    Returns:
        Paths: annotations, features, tokenizer.
    """
    rng = np.random.RandomState(seed)
    directions = np.random.RandomState(0).standard_normal((len(WORDS), WIDTH))
    features = root / "features"
    features.mkdir(parents=True, exist_ok=True)
    annotations: dict[str, Any] = {}
    duration = NUM_CLIPS * CLIP_S
    for video in range(num_videos):
        rows = 0.3 * rng.standard_normal((NUM_CLIPS * 2, WIDTH))
        spans, sentences = [], []
        for word in rng.choice(len(WORDS), 2, replace=False):
            first = rng.randint(0, NUM_CLIPS - 1)
            last = rng.randint(first + 1, min(first + 5, NUM_CLIPS) + 1)
            rows[2 * first : 2 * last] += directions[word]
            spans.append([first * CLIP_S, last * CLIP_S])
            sentences.append(f"{rng.choice(['a', 'the'])} dog {WORDS[word]}")
        np.save(features / f"{name}{video}.npy", rows.astype(np.float32))
        annotations[f"{name}{video}"] = {"duration": duration, "timestamps": spans, "sentences": sentences}
    path = root / f"{name}.json"
    path.write_text(json.dumps(annotations))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "dog", *WORDS]
    vocabulary = root / "vocab.txt"
    vocabulary.write_text("\n".join(words + [f"[unused{n}]" for n in range(TEXT.vocab_size - len(words))]) + "\n")
    return {"annotations": path, "features": features, "tokenizer": vocabulary}
