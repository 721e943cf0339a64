"""Copies of arrays on the device: which arrays get one, and how long it is kept."""

from __future__ import annotations

import numpy as np
import torch

from mmn_fast.runtime.device_copies import DeviceCopies


class _Uploads:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, array: np.ndarray) -> torch.Tensor:
        self.count += 1
        return torch.from_numpy(array.copy())


def _frozen(*shape: int, value: float = 1.0) -> np.ndarray:
    array = np.full(shape, value, np.float32)
    array.setflags(write=False)
    return array


def test_a_view_of_a_read_only_array_is_uploaded_once() -> None:
    upload = _Uploads()
    copies, owner = DeviceCopies(upload, 2**20), _frozen(3, 4, 5)
    first = copies.take(owner[1])
    assert first is not None
    assert copies.take(owner[1]) is first
    assert copies.take(owner[2]) is not first
    assert copies.take(owner[1:2]) is not first  # the same address, another shape
    assert upload.count == 3
    assert copies.info() == {"video_copies": 3, "video_mib": 0.0, "max_video_mib": 1.0}
    copies.clear()
    assert copies.num_bytes == 0


def test_copies_of_writable_arrays_are_not_kept() -> None:
    copies = DeviceCopies(_Uploads(), 2**20)
    writable = np.ones((2, 3), np.float32)
    view = writable[0]
    view.setflags(write=False)
    for array in (
        writable,
        view,  # writable through the array that owns the memory
        np.frombuffer(bytearray(8), np.float32),
        torch.ones(3).numpy(),
        np.broadcast_to(np.float32(1), (3,)),
    ):
        assert copies.take(array) is None
    kept = _frozen(3)
    assert copies.take(kept) is not None
    kept.setflags(write=True)
    assert copies.take(kept) is None


def test_a_copy_dies_with_its_array_even_if_another_comes_to_its_place() -> None:
    upload = _Uploads()
    copies = DeviceCopies(upload, 2**20)
    for value in range(20):  # the allocator returns the same block again and again
        array = _frozen(1000, value=value)
        found = copies.take(array)
        assert found is not None
        assert found[0] == value
        del array
    assert upload.count == 20
    assert len(copies._held) == 1


def test_the_least_recently_used_goes_first() -> None:
    upload = _Uploads()
    copies = DeviceCopies(upload, 2 * 4000)
    a, b, c = (_frozen(1000, value=value) for value in range(3))
    copies.take(a)
    copies.take(b)
    copies.take(a)
    copies.take(c)  # evicts b
    assert copies.num_bytes == 8000
    copies.take(a)
    assert upload.count == 3
    copies.take(b)
    assert upload.count == 4
    assert copies.take(_frozen(2001)) is None  # larger than the limit
