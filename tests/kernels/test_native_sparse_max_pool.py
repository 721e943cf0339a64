"""sparse_max_pool in C++ and CUDA: the reference, bit for bit, on every instruction set of the host."""

import numpy as np
import pytest
import torch

from mmn_fast import _C
from mmn_fast.geometry import proposal_mask
from mmn_fast.kernels import host, reference
from mmn_fast.kernels.cpu import ops

ISAS = _C.available_cpu_isas()
POOLINGS = {1: [0], 3: [2], 16: [15], 17: [5, 4], 64: [15, 8, 8], 128: [15, 8, 8, 8]}  # N -> pooling_counts


def reference_map(clips: np.ndarray, pooling_counts: list[int]) -> np.ndarray:
    return reference.sparse_max_pool(torch.from_numpy(clips), pooling_counts).numpy()


def brute_force(clips: np.ndarray, mask: np.ndarray) -> np.ndarray:
    out = np.zeros((*clips.shape, clips.shape[-1]), np.float32)
    for i, j in zip(*mask.nonzero(), strict=True):
        out[:, :, i, j] = clips[:, :, i : j + 1].max(-1)  # NumPy's max propagates NaN too
    return out


def poisoned(shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def run(clips: np.ndarray, mask: np.ndarray, isa: str, threads: int = 1) -> np.ndarray:
    out = poisoned((*clips.shape, clips.shape[-1]))
    _C.sparse_max_pool(clips, mask, out, threads, isa)
    return out


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("N", POOLINGS)
@pytest.mark.parametrize("C", [1, 5, 48])
def test_sparse_max_pool_equals_the_reference(rng, isa, N, C):
    clips = rng.standard_normal((2, C, N), np.float32)
    mask = proposal_mask(N, POOLINGS[N])
    np.testing.assert_array_equal(run(clips, mask, isa), reference_map(clips, POOLINGS[N]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("N", [1, 2, 3, 4, 7, 8, 15, 17, 31, 33, 63, 65, 129])
def test_sparse_max_pool_equals_brute_force_at_sizes_around_the_vector_width(rng, isa, N):
    clips = rng.standard_normal((1, 3, N), np.float32)
    mask = np.triu(rng.random((N, N)) < 0.5)
    np.testing.assert_array_equal(run(clips, mask, isa), brute_force(clips, mask))


@pytest.mark.parametrize("isa", ISAS)
def test_sparse_max_pool_writes_nothing_outside_out(rng, isa):
    for N in (1, 5, 17, 64, 70):
        memory = poisoned((2 * N * N + 64,))
        out = memory[32 : 32 + 2 * N * N].reshape(1, 2, N, N)
        _C.sparse_max_pool(rng.standard_normal((1, 2, N), np.float32), np.triu(np.ones((N, N), bool)), out, 1, isa)
        assert np.isnan(memory[:32]).all()
        assert np.isnan(memory[32 + 2 * N * N :]).all()
        assert not np.isnan(out).any()


@pytest.mark.parametrize("isa", ISAS)
def test_sparse_max_pool_propagates_nan_to_the_moments_that_hold_it(rng, isa):
    clips = rng.standard_normal((1, 2, 17), np.float32)
    clips[0, 0, 6] = clips[0, 1, 0] = np.nan
    clips[0, 0, 9] = np.inf
    mask = np.triu(np.ones((17, 17), bool))
    out = run(clips, mask, isa)
    np.testing.assert_array_equal(out, brute_force(clips, mask))
    pooled = torch.max_pool1d(torch.from_numpy(clips), 5, 1).numpy()
    np.testing.assert_array_equal(out[:, :, np.arange(13), np.arange(13) + 4], pooled)


@pytest.mark.parametrize("isa", ISAS)
def test_sparse_max_pool_keeps_the_signs_of_zero_and_infinity_as_torch_does(isa):
    clips = np.array([[[0.0, -0.0, 0.0, -np.inf, -np.inf, -0.0, 0.0, np.inf]]], np.float32)
    expected = reference_map(clips, [7])
    out = run(clips, proposal_mask(8, [7]), isa)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(np.signbit(out), np.signbit(expected))


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("isa", ISAS)
def test_sparse_max_pool_is_bit_equal_over_isas_and_threads(rng, isa, threads):
    clips = rng.standard_normal((3, 125, 63), np.float32)  # 1.5 M cells: worth five threads
    mask = np.triu(rng.random((63, 63)) < 0.7)
    assert run(clips, mask, isa, threads).tobytes() == run(clips, mask, "generic").tobytes()


def test_sparse_max_pool_allocates_out_and_accepts_a_uint8_mask(rng):
    clips = rng.standard_normal((2, 3, 9), np.float32)
    mask = np.triu(np.ones((9, 9), np.uint8)) * 7  # any non-zero byte is valid
    out = ops.sparse_max_pool(clips, mask)
    np.testing.assert_array_equal(out, brute_force(clips, mask))
    given = poisoned(out.shape)
    assert ops.sparse_max_pool(clips, mask.astype(bool), out=given, threads=2) is given
    np.testing.assert_array_equal(given, out)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (1, 2, 0)])
def test_sparse_max_pool_of_nothing_is_nothing(shape):
    N = shape[-1]
    assert ops.sparse_max_pool(np.zeros(shape, np.float32), np.triu(np.ones((N, N), bool))).shape == (*shape, N)


def good() -> dict:
    return {
        "clips": np.zeros((2, 3, 4), np.float32),
        "mask": np.triu(np.ones((4, 4), bool)),
        "out": poisoned((2, 3, 4, 4)),
    }


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


SHARED = np.zeros(2 * 3 * 4 * 4 + 8, np.float32)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"clips": [[1.0]]}, TypeError, r"^clips: expected a NumPy array, got list$"),
        ({"clips": np.zeros((2, 3, 4))}, TypeError, r"^clips: expected float32 \[B, C, N\], got float64 \[2, 3, 4\]$"),
        ({"clips": np.zeros(4, np.float32)}, ValueError, r"^clips: expected float32 \[B, C, N\], got float32 \[4\]$"),
        (
            {"clips": np.zeros((2, 3, 8), np.float32)[..., ::2]},
            ValueError,
            r"^clips: expected C-contiguous float32 \[B, C, N\], got strided float32 \[2, 3, 4\]$",
        ),
        (
            {"mask": np.ones((4, 4), np.int64)},
            TypeError,
            r"^mask: expected bool or uint8 \[N, N\], got int64 \[4, 4\]$",
        ),
        ({"mask": np.ones((4, 5), bool)}, ValueError, r"^mask: expected bool or uint8 \[4, 4\], got bool \[4, 5\]$"),
        (
            {"mask": np.ones((4, 4), bool)},
            ValueError,
            r"^mask: expected no valid cell below the diagonal, got one at \(1, 0\)$",
        ),
        ({"out": poisoned((2, 3, 4))}, ValueError, r"^out: expected float32 \[B, C, N, N\], got float32 \[2, 3, 4\]$"),
        (
            {"out": poisoned((2, 3, 4, 5))},
            ValueError,
            r"^out: expected float32 \[2, 3, 4, 4\], got float32 \[2, 3, 4, 5\]$",
        ),
        ({"out": read_only(poisoned((2, 3, 4, 4)))}, ValueError, r"^out: expected a writeable array, got a read-only"),
        (
            {"clips": SHARED[:24].reshape(2, 3, 4), "out": SHARED[8:].reshape(2, 3, 4, 4)},
            ValueError,
            r"^out: expected memory of its own, got memory shared with clips$",
        ),
        ({"threads": 1.5}, ValueError, r"^threads: expected a whole number from 1 to 4096, got 1\.5$"),
        ({"threads": 0}, ValueError, r"^threads: expected a whole number from 1 to 4096, got 0$"),
    ],
)
def test_sparse_max_pool_refuses_bad_arguments_with_a_sentence(wrong, error, message):
    with pytest.raises(error, match=message):
        ops.sparse_max_pool(**{**good(), **wrong})


def test_cuda_sparse_max_pool_refuses_a_build_without_cuda():
    if host.build_info()["cuda"]:
        pytest.skip("this build has CUDA kernels")
    with pytest.raises(RuntimeError, match="has no CUDA kernels: install it with MMN_FAST_CUDA=ON"):
        ops.cuda_sparse_max_pool(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))


@pytest.fixture
def cuda_build() -> None:
    if not host.build_info()["cuda"]:
        pytest.skip("this build has no CUDA kernels")


def test_cuda_sparse_max_pool_refuses_cpu_tensors(cuda_build):
    message = r"^clips: expected contiguous float32 \[\?, \?, \?\] on a CUDA device, got float32 \[1, 1, 1\] on cpu$"
    with pytest.raises(ValueError, match=message):
        ops.cuda_sparse_max_pool(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("N", [1, 3, 17, 64, 128])
def test_cuda_sparse_max_pool_is_bit_equal_to_the_cpu(rng, cuda_build, N):
    clips = rng.standard_normal((2, 5, N), np.float32)
    clips[0, 0, N // 2] = np.nan
    clips[1, 1, : N // 2] = -0.0
    mask = np.triu(rng.random((N, N)) < 0.7)
    out = torch.full((2, 5, N, N), torch.nan, device="cuda")
    ops.cuda_sparse_max_pool(torch.from_numpy(clips).cuda(), torch.from_numpy(mask).cuda(), out)
    np.testing.assert_array_equal(out.cpu().numpy(), ops.sparse_max_pool(clips, mask))
