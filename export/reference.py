"""Records inputs and the reference's outputs next to an export's graphs; `verify` compares the graphs with them.

A graph can therefore be verified without the model and without PyTorch. The reference is backend torch in fp64: a
float32 reference would add an error of the same size as the graphs' error. Its outputs are stored as float32.
Arrays of reference.safetensors (V = 2 videos, S sentences of at most L word pieces; the last sentence has the encoder's
greatest length):

    pre_clips [V, T, D], features [V, R, D] (NaN past a video's length) and lengths [V]
    token_ids [S, L] and attention_mask [S, L]
    video_contrastive, video_iou [V, P, J]; text_contrastive, text_iou [S, J]
    contrastive_scores, iou_scores, fused_scores [V, S, P]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.artifact.manifest import REFERENCE
from mmn_fast.backends.base import Settings
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.features import pre_clips
from mmn_fast.postprocess import fuse_scores

Arrays = dict[str, npt.NDArray[Any]]

_VIDEOS = 2
_LENGTHS = (2, 3, 5, 8, 11, 13, 16, 17, 21, 24, 29, 32)  # word pieces; sentences in the data sets have 5 to 30


def record_reference(model: LoadedModel, directory: Path) -> None:
    """Run the reference on random inputs and write reference.safetensors.

    Args:
        model: the model.
        directory: directory of the file.
    """
    from safetensors.numpy import save

    from mmn_fast.backends.torch_ref import TorchBackend

    preset, rng = model.preset, np.random.default_rng(0)
    reference = TorchBackend(model, Settings("cpu", "fp64"))
    arrays: Arrays = {}
    # Neighbouring rows of an extractor are alike, so the inputs add a slow part and a fast part of the same size.
    rows = 2 * preset.num_pre_clips + 13
    slow = rng.standard_normal((_VIDEOS, -(-rows // 8), preset.input_size)).repeat(8, axis=1)[:, :rows]
    features = (slow + rng.standard_normal(slow.shape)).astype(np.float32)
    lengths = np.array([rows, preset.num_pre_clips // 2 + 1], np.int64)
    for video, length in zip(features, lengths, strict=True):
        video[length:] = np.nan
    arrays |= {"features": features, "lengths": lengths}
    arrays["pre_clips"] = np.stack(
        [
            pre_clips(video[:n], preset).reshape(preset.num_pre_clips, -1)
            for video, n in zip(features, lengths, strict=True)
        ]
    )
    longest = model.text.max_tokens
    tokens = ([n for n in _LENGTHS if n < longest] or [longest]) * 3 + [longest]
    ids = np.zeros((len(tokens), max(tokens)), np.int64)
    mask = (np.arange(ids.shape[1]) < np.array(tokens)[:, None]).astype(np.int64)
    ids[mask > 0] = rng.integers(1, model.text.vocab_size, int(mask.sum()))
    arrays |= {"token_ids": ids, "attention_mask": mask}
    sentences = [row[:n] for row, n in zip(ids, tokens, strict=True)]
    arrays["video_contrastive"], arrays["video_iou"] = reference.encode_video(arrays["pre_clips"])
    arrays["text_contrastive"], arrays["text_iou"] = reference.encode_text(sentences)
    text = arrays["text_contrastive"], arrays["text_iou"]
    videos = zip(arrays["video_contrastive"], arrays["video_iou"], strict=True)
    contrastive, iou = zip(*(reference.score(video, text) for video in videos), strict=True)
    arrays |= {"contrastive_scores": np.stack(contrastive), "iou_scores": np.stack(iou)}
    arrays["fused_scores"] = fuse_scores(arrays["contrastive_scores"], arrays["iou_scores"], preset)
    # The file is written from bytes, because safetensors' own write errors are not OSErrors.
    (directory / REFERENCE).write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def read_reference(directory: Path) -> Arrays:
    """Read the arrays that `record_reference` wrote."""
    from safetensors.numpy import load_file

    arrays: Arrays = load_file(str(directory / REFERENCE))
    return arrays
