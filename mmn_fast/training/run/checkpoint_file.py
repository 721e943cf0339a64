"""A run's checkpoint on the disk: a file of `torch.save` that ends in a checksum of all bytes before it.

The checksum is the comment of the zip archive, which other readers ignore. PyTorch writes a CRC-32 per tensor but does
not check it when it reads, so without the checksum a run could resume from damaged weights.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from mmn_fast.errors import InputError
from mmn_fast.storage.checksums import chunked_sha256

_COMMENT = b"mmn_fast sha256 "
_DIGITS = 64
_END = b"PK\x05\x06"  # start of the last record of a zip archive; the record has 22 bytes without a comment


def write_checkpoint(content: Any, path: str | Path) -> None:
    """Write a checkpoint with `torch.save` and append its checksum.

    Args:
        content: values that `torch.load(weights_only=True)` can read.
        path: file to write.

    Raises:
        OSError: the system refuses.
    """
    import torch

    path = Path(path)
    with path.open("wb") as file:  # PyTorch hides the system's error if it opens the path
        torch.save(content, file)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size - 22)
        if file.read(4) != _END:
            raise RuntimeError(f"{path}: PyTorch {torch.__version__} wrote an archive that does not end as expected")
        file.seek(size - 2)
        file.write(struct.pack("<H", len(_COMMENT) + _DIGITS) + _COMMENT)
        file.flush()
        file.write(chunked_sha256(path, size + len(_COMMENT)).encode())


def read_checkpoint(path: Path) -> Any:
    """Read a file that `write_checkpoint` wrote, to the CPU; its checksum is verified first.

    Raises:
        InputError: damaged, or without a checksum.
    """
    import torch

    again = "copy it again, or remove it to start the run anew"
    try:
        size = path.stat().st_size - _DIGITS
        with path.open("rb") as file:
            file.seek(max(size - len(_COMMENT), 0))
            comment, digest = file.read(len(_COMMENT)), file.read()
        if comment != _COMMENT:
            raise InputError(
                f"resume: {path}: not a checkpoint of a run, cut off, or of a version without checksums; {again}"
            )
        if digest != chunked_sha256(path, size).encode():
            raise InputError(f"resume: {path} is damaged: its checksum differs; {again}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # the file is whole, but this version cannot read it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"resume: {path}: not a checkpoint of a run ({reason})") from None
