"""Checks of an array of features before it is read: its memory and its width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmn_fast.errors import InputError

MAX_BYTES = 2**31
"""Most bytes of one video's features as stored, 2 GiB: 131,072 rows of 4096 float32 values."""


@dataclass(frozen=True)
class Wanted:
    """The array that a caller wants from a file.

    Attributes:
        where: the file, or the video and the file; begins every message.
        key: the array to take if the file holds several.
        lenient: a file with one array needs no matching key.
        width: D, if known; arrays of another width are refused before they are read.
    """

    where: str
    key: str | None = None
    lenient: bool = False
    width: int | None = None

    def check(self, shape: Sequence[int], itemsize: float, dtype: object) -> None:
        """Refuse an array that is too large or has another width, judged by its header.

        Args:
            shape: the array's dimensions.
            itemsize: bytes per value.
            dtype: the array's type, for the message.

        Raises:
            InputError: the array takes more than `MAX_BYTES`, or is not [n_src, width].
        """
        if self.width is not None and (len(shape) != 2 or shape[1] != self.width):
            transposed = "; transpose it" if len(shape) == 2 and shape[0] == self.width else ""
            raise InputError(
                f"{self.where}: expected a float array [n_src, {self.width}], got {dtype} {list(shape)}{transposed}"
            )
        size = math.prod(shape) * itemsize
        if size > MAX_BYTES:
            raise InputError(
                f"{self.where}: expected at most {MAX_BYTES / 2**30:.0f} GiB of one video's features, "
                f"got {dtype} {list(shape)}, {size / 2**30:,.1f} GiB"
            )
