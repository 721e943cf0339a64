"""text_encoder in C++ agrees with the float64 reference, on odd sizes, on every instruction set of the host."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.golden import cases, recipe
from mmn_fast import _C
from mmn_fast.checkpoint import load_model
from mmn_fast.kernels import host
from mmn_fast.kernels.cpu.text import NativeTextEncoder
from mmn_fast.presets import TextEncoderConfig
from mmn_fast.text_encoder import TextEncoder
from mmn_fast.weights.state import state_shapes
from tests.tolerances import TOLERANCES, check_close

ISAS = _C.available_cpu_isas()
BF16_ISAS = [isa for isa in ISAS if isa in _C.bf16_isas()]
Ids = list[np.ndarray]


def config(width: int, heads: int, ffn: int, layers: int = 2, max_tokens: int = 40) -> TextEncoderConfig:
    """Make sizes that a model would refuse: the kernels accept 0 layers, and check the heads themselves."""
    sizes = TextEncoderConfig(60, max_tokens, width, 1, 1, ffn)
    object.__setattr__(sizes, "num_layers", layers)
    object.__setattr__(sizes, "num_heads", heads)
    return sizes


# Sizes, J, lengths: heads and widths that are and are not multiples of a vector, one token, more than 1024 at a time.
CASES: dict[str, tuple[TextEncoderConfig, int, list[int]]] = {
    "as-demo": (config(128, 2, 256, max_tokens=64), 64, [9, 2, 64, 17, 33]),
    "head-64": (config(192, 3, 200), 48, [12, 1, 7]),
    "odd": (config(36, 4, 50), 24, [5, 1, 40, 16, 2, 31]),
    "one-wide": (config(1, 1, 1), 1, [3, 1]),
    "narrow": (config(5, 5, 3, layers=1), 33, [4, 17]),
    "no-layers": (config(20, 2, 8, layers=0), 7, [6, 1]),
    "long": (config(40, 2, 33, max_tokens=512), 16, [512, 1, 511, 300]),
    "many": (config(24, 3, 40), 8, [1 + n % 40 for n in range(150)]),
}


class Case:
    """A text encoder whose weights keep values at their size, sentences, and the reference's output in float64."""

    def __init__(self, sizes: TextEncoderConfig, state: dict[str, np.ndarray], joint: int, ids: Ids) -> None:
        self.sizes, self.state, self.joint, self.ids = sizes, state, joint, ids

    def encoder(self, isa: str | None = None, precision: str = "fp32") -> NativeTextEncoder:
        return NativeTextEncoder(self.state, self.sizes, precision, isa)

    def run(self, encoder: NativeTextEncoder, threads: int = 1, rows: Sequence[int] | None = None) -> np.ndarray:
        """Encode the sentences at `rows` into outputs that held NaN: both branches [2, S, J]."""
        ids = self.ids if rows is None else [self.ids[row] for row in rows]
        out = np.full((2, len(ids), self.joint), np.nan, np.float32)
        encoder(ids, threads, (out[0], out[1]))
        return out

    def expected(self, bf16: bool = False) -> np.ndarray:
        """Compute the reference in float64; `bf16` rounds the operands of every linear map to bf16."""
        net = TextEncoder(self.sizes, self.joint).double().eval()
        net.load_state_dict({name: torch.from_numpy(array) for name, array in self.state.items()})
        for module in net.modules():
            if bf16 and isinstance(module, torch.nn.Linear):
                module.weight.data = module.weight.data.bfloat16().double()
                module.register_forward_pre_hook(lambda _, inputs: inputs[0].bfloat16().double())
        with torch.inference_mode():
            each = [net(torch.from_numpy(ids[None]), torch.tensor([len(ids)])) for ids in self.ids]
        return np.stack([F.normalize(torch.cat(branch), dim=-1).numpy() for branch in zip(*each, strict=True)])


@cache
def case(name: str) -> Case:
    sizes, joint, lengths = CASES[name]
    rng = np.random.default_rng(len(name) + joint)
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in TextEncoder(sizes, joint).state_dict().items()}
    state = {key: np.asarray(recipe.tensor(key, shape, 7), np.float32) for key, shape in shapes.items()}
    return Case(sizes, state, joint, [rng.integers(0, sizes.vocab_size, length) for length in lengths])


@cache
def expected(name: str) -> np.ndarray:
    return case(name).expected()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CASES)
def test_text_encoder_matches_the_reference(name: str, isa: str) -> None:
    check_close(case(name).run(case(name).encoder(isa)), expected(name), "native_text", what=f"{name} {isa}")


@pytest.mark.parametrize("isa", ISAS)
def test_gelu_and_softmax_saturate_as_the_reference(isa: str) -> None:
    """Inner rows reach +-67 and queries +-120, so most exponentials vanish."""
    c = case("as-demo")
    state = dict(c.state)
    for key, factor in (("attention.q_lin.weight", 30), ("ffn.lin1.weight", 15)):
        state[f"bert.transformer.layer.0.{key}"] = c.state[f"bert.transformer.layer.0.{key}"] * np.float32(factor)
    far = Case(c.sizes, state, c.joint, c.ids)
    check_close(far.run(far.encoder(isa)), far.expected(), "native_text", what=isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["odd", "many", "long"])
def test_a_sentence_has_the_same_bits_alone_in_any_call_and_on_any_threads(name: str, isa: str) -> None:
    c = case(name)
    encoder = c.encoder(isa)
    together = c.run(encoder)
    for threads in (2, 5):
        assert c.run(encoder, threads).tobytes() == together.tobytes()
    last = len(c.ids) - 1
    for rows in ([0], [last], [last, 1, 0], [2, 2, 1]):
        assert c.run(encoder, 2, rows).tobytes() == together[:, rows].tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_nan_stays_in_its_own_sentence(isa: str) -> None:
    c = case("odd")
    words = "bert.embeddings.word_embeddings.weight"
    spoiled = Case(c.sizes, {**c.state, words: c.state[words].copy()}, c.joint, [ids.clip(1) for ids in c.ids])
    clean = spoiled.run(spoiled.encoder(isa))
    spoiled.state[words][0] = np.nan
    spoiled.ids[2][3] = 0
    out = spoiled.run(spoiled.encoder(isa))
    assert np.isnan(out[:, 2]).all()
    others = [0, 1, 3, 4, 5]
    assert out[:, others].tobytes() == clean[:, others].tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["as-demo", "head-64", "odd", "long"])
def test_bf16_is_at_most_twice_as_far_off_as_rounded_operands_or_refused(name: str, isa: str) -> None:
    c = case(name)
    if isa not in BF16_ISAS:
        with pytest.raises(ValueError, match=r"^isa: expected one with bf16 products"):
            c.encoder(isa, "bf16")
        return
    encoder = c.encoder(isa, "bf16")
    out, exact, rounded = c.run(encoder, 2), expected(name), c.expected(bf16=True)
    assert np.abs(out - exact).max() <= 2 * np.abs(rounded - exact).max()
    assert np.abs(out - exact).max() > TOLERANCES["native_text", "fp32"].atol, "bf16 was asked for, float32 came"
    assert c.run(encoder, 1, [1]).tobytes() == out[:, [1]].tobytes()


def test_no_sentences_and_unit_norm() -> None:
    c = case("odd")
    encoder = c.encoder()
    assert [branch.shape for branch in encoder([])] == [(0, c.joint)] * 2
    check_close(np.linalg.norm(c.run(encoder), axis=-1), np.ones((2, len(c.ids))), "unit_norm")
    assert encoder.packed_mib > 0


def test_concurrent_calls_give_the_serial_results() -> None:
    c = case("many")
    encoder = c.encoder()
    serial = c.run(encoder)
    with ThreadPoolExecutor(4) as executor:
        for result in executor.map(lambda n: c.run(encoder, threads=1 + n % 3), range(16)):
            assert result.tobytes() == serial.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*cases.SMALL, pytest.param("charades_full", marks=pytest.mark.full)])
def test_text_encoder_of_golden_cases(name: str, golden_model: Callable[[str], Path]) -> None:
    golden, weights = cases.load(name), load_model(golden_model(name)).state
    prefix = "text_encoder."
    state = {key.removeprefix(prefix): array for key, array in weights.items() if key.startswith(prefix)}
    assert {f"{prefix}{key}" for key in state} == {
        key for key in state_shapes(golden.preset, golden.text) if key.startswith(prefix)
    }
    ids = [row[row != 0] for video in golden.videos for row in video.token_ids]
    ids += [np.random.default_rng(3).integers(0, golden.text.vocab_size, 14)]
    c = Case(golden.text, state, golden.preset.joint_size, ids)
    check_close(c.run(c.encoder(), 2), c.expected(), "native_text", what=name)


def test_native_backend_does_not_import_torch() -> None:
    script = (
        "import sys, mmn_fast; engine = mmn_fast.load('demo', backend='native', device='auto');"
        "assert engine.encode_text(['a red circle moves right']).iou.shape[0] == 1;"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_cuda_device_exists_if_pytorch_sees_one() -> None:
    assert host.has_cuda_device() == torch.cuda.is_available()


def run_with(**changes: Any) -> None:
    """Call the native object with changed arguments."""
    c = case("odd")
    arguments: dict[str, Any] = {
        "token_ids": np.array([1, 2, 3, 4]),
        "starts": np.array([0, 1, 4]),
        "contrastive": np.full((2, c.joint), np.nan, np.float32),
        "iou": np.full((2, c.joint), np.nan, np.float32),
        "threads": 1,
    }
    arguments |= changes
    try:
        c.encoder()._native.run(**arguments)
    finally:
        for name in ("contrastive", "iou"):  # untouched: the call is refused before any work
            assert np.isnan(arguments[name]).all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"token_ids": np.array([1, 2, 3, 60])}, ValueError, "token_ids: expected 0 to 59, got 60 at place 3"),
        ({"token_ids": np.array([-1, 2, 3, 4])}, ValueError, "token_ids: expected 0 to 59, got -1 at place 0"),
        (
            {"token_ids": np.array([1, 2, 3, 4], np.int32)},
            TypeError,
            r"token_ids: expected int64 \[tokens\], got int32 \[4\]",
        ),
        ({"starts": np.array([0, 1, 3])}, ValueError, "starts: expected 0 to 4, got 0 to 3"),
        ({"starts": np.array([1, 2, 4])}, ValueError, "starts: expected 0 to 4, got 1 to 4"),
        (
            {"starts": np.array([0, 0, 4])},
            ValueError,
            "starts: expected sentences of 1 to 40 tokens, got 0 in sentence 0",
        ),
        (
            {"token_ids": np.ones(42, np.int64), "starts": np.array([0, 1, 42])},
            ValueError,
            "starts: expected sentences of 1 to 40 tokens, got 41 in sentence 1",
        ),
        ({"starts": np.empty(0, np.int64)}, ValueError, r"starts: expected int64 \[S \+ 1\], got int64 \[0\]"),
        (
            {"iou": np.full((2, 23), np.nan, np.float32)},
            ValueError,
            r"iou: expected float32 \[2, 24\], got float32 \[2, 23\]",
        ),
        ({"threads": 0}, ValueError, "threads: expected at least 1, got 0"),
    ],
)
def test_run_refuses_bad_arguments(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        run_with(**changes)


def test_outputs_that_share_memory_are_refused() -> None:
    shared = np.full((2, case("odd").joint), np.nan, np.float32)
    with pytest.raises(ValueError, match=r"^out: expected memory of its own, got memory shared with iou$"):
        run_with(contrastive=shared, iou=shared)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        (
            "bert.embeddings.position_embeddings.weight",
            (40, 35),
            r"position_embeddings: expected float32 \[40, 36\], got float32 \[40, 35\]",
        ),
        (
            "bert.transformer.layer.1.ffn.lin2.weight",
            (36, 49),
            r"outer weight: expected float32 \[36, 50\], got float32 \[36, 49\]",
        ),
        ("bert.transformer.layer.0.attention.q_lin.bias", (35,), r"qkv bias: expected float32 \[108\], got .* \[107\]"),
        ("layernorm.weight", (35,), r"sentence_norm weight: expected float32 \[36\], got float32 \[35\]"),
        ("fc_out2.weight", (25, 36), r"heads weight: expected float32 \[2 J, 36\], got float32 \[49, 36\]"),
    ],
)
def test_weights_of_other_shapes_are_refused(key: str, shape: tuple[int, ...], message: str) -> None:
    c = case("odd")
    with pytest.raises(ValueError, match=f"^{message}$"):
        NativeTextEncoder({**c.state, key: np.ones(shape, np.float32)}, c.sizes, "fp32")


def test_weights_of_another_dtype_and_heads_that_do_not_fit_are_refused() -> None:
    c = case("odd")
    wide = {**c.state, "layernorm.bias": c.state["layernorm.bias"].astype(np.float64)}
    with pytest.raises(TypeError, match=r"^sentence_norm bias: expected float32 \[H\], got float64 \[36\]$"):
        NativeTextEncoder(wide, c.sizes, "fp32")
    with pytest.raises(ValueError, match=r"^num_heads: expected a divisor of 36, got 5$"):
        NativeTextEncoder(c.state, config(36, 5, 50), "fp32")
