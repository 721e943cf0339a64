"""The text graph at its limits: encoders of few word pieces, sentences without word pieces."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from mmn_fast.checkpoint import LoadedModel, load_model
from mmn_fast.errors import InputError
from mmn_fast.export.to_onnx import export_loaded
from mmn_fast.export.verify import verify
from tests.conftest import Exports

pytestmark = pytest.mark.slow


def demo_of(max_tokens: int) -> LoadedModel:
    """Make the demo model with a text encoder of at most `max_tokens` word pieces."""
    model, name = load_model("demo"), "text_encoder.bert.embeddings.position_embeddings.weight"
    state = {**model.state, name: np.ascontiguousarray(model.state[name][:max_tokens])}
    return dataclasses.replace(model, state=state, text=dataclasses.replace(model.text, max_tokens=max_tokens))


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("limit", [2, 3])
def test_an_encoder_of_few_word_pieces_is_exported_and_verified(limit: int, tmp_path: Path) -> None:
    output = export_loaded(demo_of(limit), tmp_path / "out", "fp32", ["text"], False, None)
    assert verify(output)["token_lengths"] == [n for n in (2, 3) if n <= limit]
    session = open_graph(output / "text.onnx")
    for length in range(1, limit + 1):
        ones = np.ones((3, length), np.int64)
        for array in session.run(None, {"token_ids": ones, "attention_mask": ones}):
            assert np.isfinite(array).all()


def test_an_encoder_without_room_for_cls_and_sep_is_refused(tmp_path: Path) -> None:
    message = r"model: .*: expected a text encoder of at least 2 word pieces, \[CLS\] and \[SEP\], got 1"
    with pytest.raises(InputError, match=message):
        export_loaded(demo_of(1), tmp_path / "out", "fp32", ["text"], False, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_rows_that_are_all_padding_are_finite_and_leave_the_others_alone(precision: str, exports: Exports) -> None:
    session, rng = open_graph(exports("demo", precision) / "text.onnx"), np.random.default_rng(0)
    ids, mask = rng.integers(1, 40, (8, 9)), np.ones((8, 9), np.int64)
    mask[3, 4:] = 0
    full = session.run(None, {"token_ids": ids, "attention_mask": mask})
    mask[6:] = 0
    padded = session.run(None, {"token_ids": ids * mask, "attention_mask": mask})
    for ours, theirs in zip(padded, full, strict=True):
        assert np.isfinite(ours).all()
        assert ours[:6].tobytes() == theirs[:6].tobytes()
    nothing = np.zeros((2, 5), np.int64)
    assert all(np.isfinite(a).all() for a in session.run(None, {"token_ids": nothing, "attention_mask": nothing}))
