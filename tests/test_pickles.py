"""Pickles are read without running anything: what the published files hold comes out, every gadget is refused."""

from __future__ import annotations

import builtins
import collections
import contextlib
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmn_fast.errors import InputError
from mmn_fast.storage.pickles import MAX_DEPTH, read_pickle

RNG = np.random.default_rng(0)
CONTENT = {
    "array": RNG.standard_normal((2, 3)).astype(np.float32),
    "columns": np.asfortranarray(RNG.standard_normal((3, 4))),
    "big-endian": np.arange(3, dtype=">i4"),
    "flags": np.array([True, False]),
    "tensor": torch.arange(12.0).reshape(3, 4),
    "view": torch.arange(24.0).reshape(4, 6).T[1:3],
    "half": torch.ones(3).half(),
    "bfloat16": torch.arange(3.0).bfloat16(),
    "ids": torch.arange(5)[None],
    "empty": torch.empty(0, 3),
    "scalar": np.float64(3.5),
    "ordered": collections.OrderedDict(a=1),
    "plain": [1, -(2**70), 2.5, "naïve", None, True, (1, (2,)), b"\xff\x00"],
}


def read(data: bytes, tmp_path: Path) -> Any:
    path = tmp_path / "some.pkl"
    path.write_bytes(data)
    return read_pickle(path, "some.pkl")


def check_same(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        expected = expected.float().numpy() if expected.dtype == torch.bfloat16 else expected.numpy()
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_gives_what_was_pickled(tmp_path: Path, protocol: int) -> None:
    found = read(pickle.dumps(CONTENT, protocol), tmp_path)
    assert found.keys() == CONTENT.keys()
    for name, value in CONTENT.items():
        check_same(found[name], value)


@pytest.mark.parametrize("as_zip", [True, False])
def test_both_formats_of_torch_save_give_what_was_saved(tmp_path: Path, as_zip: bool) -> None:
    content = CONTENT | {"rows": list(torch.randn(4, 5)), "parameter": torch.nn.Parameter(torch.ones(2))}
    torch.save(content, tmp_path / "stream.pth", _use_new_zipfile_serialization=as_zip)
    found = read_pickle(tmp_path / "stream.pth", "stream.pth")
    for name in CONTENT:
        check_same(found[name], CONTENT[name])
    for row, expected in zip(found["rows"], content["rows"], strict=True):
        check_same(row, expected)
    check_same(found["parameter"], torch.ones(2))


def test_shared_values_are_read_once(tmp_path: Path) -> None:
    row: Any = [1.0]
    for _ in range(MAX_DEPTH - 4):
        row = [row, row]  # 2^20 values if each were copied
    assert read(pickle.dumps(row), tmp_path)[0] is not None


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def touching(tmp_path: Path) -> str:
    return f"touch {tmp_path / 'ran'}"


def values_of(tensor: torch.Tensor) -> Any:
    """The storage as tensors pickle it."""
    return torch.storage.TypedStorage(wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True)


def nested_storage(inner: object) -> Calls:
    """A tensor's storage whose bytes are a file of their own, which holds something else."""
    file = io.BytesIO()
    torch.save(inner, file, _use_new_zipfile_serialization=False)
    return Calls(torch.storage._load_from_bytes, file.getvalue())


def text(module: str, name: str, arguments: bytes) -> bytes:
    """A pickle of protocol 0 that calls a function by any name."""
    return f"c{module}\n{name}\n".encode() + arguments + b"R."


GADGETS = {
    "os.system": lambda t: pickle.dumps({"x": Calls(os.system, touching(t))}),
    "builtins.eval": lambda t: pickle.dumps([Calls(eval, f"__import__('os').system({touching(t)!r})")]),
    "builtins.exec": lambda t: pickle.dumps(Calls(exec, f"import os; os.system({touching(t)!r})"), 0),
    "builtins.getattr": lambda t: pickle.dumps(Calls(builtins.getattr, "x", "upper")),
    "in a list of arguments": lambda t: pickle.dumps(Calls(bytearray, Calls(os.system, touching(t)))),
    "numpy.core._multiarray_umath._reconstruct": lambda t: text(
        "numpy.core._multiarray_umath", "_reconstruct", b"(cnumpy\nndarray\n(I0\ntS'b'\nt"
    ),
    "numpy.load": lambda t: text("numpy", "load", b"(S'x.npy'\nI1\nt"),
    "torch.load": lambda t: pickle.dumps(Calls(torch.load, "x.pth")),
    "a dotted name": lambda t: b"\x80\x04\x8c\x08builtins\x8c\x0bstr.__class__\x93)R.",
    "torch.storage._load_from_bytes of os.system": lambda t: pickle.dumps(
        nested_storage(Calls(os.system, touching(t)))
    ),
    "INST": lambda t: f"(S'{touching(t)}'\nios\nsystem\n.".encode(),
    "OBJ": lambda t: f"(cos\nsystem\nS'{touching(t)}'\no.".encode(),
    "NEWOBJ": lambda t: b"\x80\x02cnumpy\nndarray\n(I1\nt\x81.",
    "a class's state": lambda t: pickle.dumps(Path("x"), 2),
    "state of a name": lambda t: b"cnumpy\nndarray\n}S'x'\nI1\nsb.",
    "EXT1": lambda t: b"\x82\x01.",
    "a set": lambda t: pickle.dumps({1, 2}),
    "an object array": lambda t: pickle.dumps(np.array([None, "x"], object)),
    "an array of records": lambda t: pickle.dumps(np.zeros(2, [("a", "f4")])),
}


@pytest.mark.parametrize("name", GADGETS)
def test_a_pickle_that_would_run_code_is_refused_without_running_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"^some\.pkl: ") as refused:
        read(GADGETS[name](tmp_path), tmp_path)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_a_gadget_in_torch_files_is_refused(tmp_path: Path) -> None:
    for as_zip in (True, False):
        content = {"x": torch.ones(2), "y": Calls(os.system, touching(tmp_path))}
        torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=as_zip)
        with pytest.raises(InputError, match=r"bad: it would call posix\.system, and is not read"):
            read_pickle(tmp_path / "bad.pth", "bad")
    deep = nested_storage(nested_storage(values_of(torch.ones(2))))
    with pytest.raises(InputError, match="got a file in a file in a file"):
        read(pickle.dumps(deep), tmp_path)
    assert not (tmp_path / "ran").exists()


def deep_list(levels: int) -> bytes:
    return b"]" * levels + b"a" * (levels - 1) + b"."


def tensor_call(size: str, stride: str) -> bytes:
    """A tensor of shape `size` over a storage of two values."""
    storage = io.BytesIO()
    torch.save(values_of(torch.ones(2)), storage, _use_new_zipfile_serialization=False)
    held = b"ctorch.storage\n_load_from_bytes\n(B" + struct.pack("<I", len(storage.getvalue())) + storage.getvalue()
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + held + f"tRI0\n({size}t({stride}tI00\n}}tR.".encode()


HOSTILE = {
    "deeply nested": (deep_list(20_000), f"expected at most {MAX_DEPTH} levels of nesting, got more"),
    "in itself": (b"]q\x00h\x00a.", "expected values that are not inside themselves"),
    "a deep key": (
        b"}" + b")" + b"\x85" * 200_000 + b"I1\ns.",
        "expected keys that are text or numbers, got a tuple",
    ),
    "bytes that are not there": (b"\x8e" + struct.pack("<Q", 2**60) + b"x.", "truncated, damaged or no pickle"),
    "a bytearray that is not there": (b"\x96" + struct.pack("<Q", 2**40) + b"x.", "truncated, damaged"),
    "a memo of gigabytes": (b"Nr\xff\xff\xff\x7f0j\xff\xff\xff\x7f.", None),
    "a bytearray by its length": (b"cbuiltins\nbytearray\n(I1000000000000\ntR.", "truncated, damaged or no pickle"),
    "strides that blow up": (tensor_call("I1000000\nI1000000\n", "I0\nI0\n"), "truncated, damaged or no pickle"),
    "beyond its storage": (tensor_call("I3\n", "I1\n"), "truncated, damaged or no pickle"),
    "a function": (b"cnumpy\nndarray\n.", "expected arrays, .* got numpy.ndarray"),
    "no value": (b".", "truncated, damaged or no pickle"),
    "no pickle": (b"hello", "truncated, damaged or no pickle"),
    "an empty file": (b"", "is empty"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_cost_a_sentence(tmp_path: Path, name: str) -> None:
    data, message = HOSTILE[name]
    if message is None:  # harmless here, gigabytes for the reader in C
        assert read(data, tmp_path) is None
        return
    with pytest.raises(InputError, match=message) as refused:
        read(data, tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_damaged_files_are_one_sentence(tmp_path: Path, kind: str) -> None:
    """Cut anywhere or with any byte changed: a sentence, or other values where the format has no checksum."""
    content, path = {"a": torch.arange(3.0), "b": np.ones(2), "c": "x"}, tmp_path / "file"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for length in range(0, len(whole), max(len(whole) // 25, 1)):
        with pytest.raises(InputError, match=r"^some\.pkl"):
            read(whole[:length], tmp_path)
    rng = np.random.default_rng(1)
    for _ in range(40):
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        with contextlib.suppress(InputError):
            read(bytes(changed), tmp_path)


def test_a_zip_bomb_and_a_large_file_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * 10**6)
    with pytest.raises(InputError, match=r"bomb: a file of .* unpacks to 1 MB, so it is not read"):
        read_pickle(tmp_path / "bomb", "bomb")
    with pytest.raises(InputError, match=r"bomb: expected at most 10 bytes, got"):
        read_pickle(tmp_path / "bomb", "bomb", most=10)
    with pytest.raises(InputError, match="none: No such file"):
        read_pickle(tmp_path / "none", "none")
    with pytest.raises(InputError, match="folder: Is a directory"):
        read_pickle(tmp_path, "folder")
