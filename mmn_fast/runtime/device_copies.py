"""Device copies of host arrays that are used repeatedly. Nothing here calls CUDA; the caller passes the upload."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mmn_fast.runtime.graph_cache import MIB

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Copy:
    owner: weakref.ref[Array]
    tensor: Tensor


class DeviceCopies:
    """Keeps copies of read-only arrays; the least recently used copy leaves first.

    An array can change between two calls unless it and the array that owns its memory are read-only, so copies of other
    arrays are not kept. A copy is void once the owner is gone, because another array may then have its address.

    Args:
        upload: makes a tensor on the device.
        limit_bytes: device memory that all copies together may hold.
    """

    def __init__(self, upload: Callable[[Array], Tensor], limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._upload = upload
        self._held: OrderedDict[tuple[Any, ...], _Copy] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """Device memory that copies hold."""
        return sum(copy.tensor.nbytes for copy in self._held.values())

    def take(self, array: Array) -> Tensor | None:
        """Get the copy of a read-only array; upload the array if there is no copy.

        Returns:
            A tensor, which the caller must not write; None if the array may change or is larger than the limit.
        """
        owner = array if array.base is None else array.base
        if not _cannot_change(array, owner) or array.nbytes > self.limit_bytes:
            return None
        key = (array.ctypes.data, array.shape, array.strides, array.dtype)
        known = self._held.get(key)
        if known is not None and known.owner() is owner:
            self._held.move_to_end(key)
            return known.tensor
        for old in [old for old, copy in self._held.items() if copy.owner() is None]:
            del self._held[old]
        while self._held and self.num_bytes + array.nbytes > self.limit_bytes:
            self._held.popitem(last=False)
        tensor = self._upload(array)
        self._held[key] = _Copy(weakref.ref(owner), tensor)
        return tensor

    def clear(self) -> None:
        """Drop every copy."""
        self._held.clear()

    def info(self) -> dict[str, Any]:
        """The number of held copies of videos' embeddings, their memory and its limit in MiB."""
        return {
            "video_copies": len(self._held),
            "video_mib": round(self.num_bytes / MIB, 1),
            "max_video_mib": round(self.limit_bytes / MIB, 1),
        }


def _cannot_change(array: Array, owner: Any) -> bool:
    # If the owner is no array, or has a base itself, something else may write the memory.
    owns = isinstance(owner, np.ndarray) and owner.base is None and owner.flags.owndata
    return bool(owns and not owner.flags.writeable and not array.flags.writeable)
