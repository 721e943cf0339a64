"""Reads untrusted pickles and `torch.save` files without running anything that they name.

A pickle is a program that may call any function. This reader knows the few names behind arrays, tensors and dicts, and
answers each with a maker of its own: neither NumPy nor PyTorch takes part, and no other name is looked up. So a file
gives arrays, numbers, text, bytes, lists, tuples and dicts, or one sentence.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from mmn_fast.checks import in_bytes, shown
from mmn_fast.errors import InputError

MAX_FILE = 64 * 2**30
"""Most bytes of a file: one stream of features of all of HC-STVG's tubes."""
MAX_DEPTH = 24
"""Most levels of nested lists, tuples and dicts; the published files have 4."""
_LEGACY = 0x1950A86A20F9469CFC6C  # the first pickle of a file that PyTorch before 1.6 wrote, or a storage alone
_NESTED = 1  # a tensor in a plain pickle holds its storage as the bytes of such a file; that file holds none
_ALLOWED = "arrays, tensors, numbers, text, lists, tuples and dicts"
_DTYPE = re.compile(r"[<>|=]?(f[248]|[iu][1248]|b1|\?)")
_DIMENSIONS = 8
_KEYS = (str, int, float, bytes, type(None))  # not tuples: hashing a deep one would exhaust the C stack
_STORAGES = {
    **{"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "bf16"},
    **{"LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "|i1"},
    **{"ByteStorage": "|u1", "BoolStorage": "|b1"},
}


class _RefusedError(ValueError):
    """A refusal by the reader; it becomes an InputError that names the file."""


def read_pickle(path: str | Path, where: str, most: int = MAX_FILE) -> Any:
    """Read a pickle, or a file that `torch.save` wrote, without running code that it holds.

    Args:
        path: the file: a pickle of any protocol, with arrays and tensors in it or not; or what `torch.save` wrote, in
            its zip format or the one before that.
        where: name of the file in messages.
        most: most bytes of the file.

    Returns:
        The content: arrays and tensors as NumPy arrays that may be read-only (bfloat16 as float32), `OrderedDict` as
        dict, NumPy's scalars as numbers.

    Raises:
        InputError: the file is missing, larger, truncated or damaged, is nested deeper than `MAX_DEPTH` or in itself,
            or holds anything but arrays, tensors, numbers, text, lists, tuples and dicts; the name of what it would
            have called is in the message.
    """
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            if size > most:
                raise InputError(f"{where}: expected at most {in_bytes(most)}, got {in_bytes(size)}")
            if not size:
                raise InputError(f"{where} is empty")
            with _Mapped(file.fileno(), 0, access=mmap.ACCESS_READ) as content, _one_sentence(where):
                return _resolved(_read(content, size, 0))
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: {getattr(error, 'strerror', None) or error}") from None


class _Mapped(mmap.mmap):
    """A file in memory: a read beyond its end, of whatever length, allocates nothing."""

    def seekable(self) -> bool:  # zipfile asks; from Python 3.13 on mmap answers
        return True


@contextmanager
def _one_sentence(where: str) -> Iterator[None]:
    try:
        yield
    except _RefusedError as error:
        raise InputError(f"{where}: {error}") from None
    except MemoryError:
        raise InputError(f"{where}: it needs more memory than there is") from None
    except Exception as error:  # on damaged bytes an operation may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise InputError(f"{where}: truncated, damaged or no pickle ({reason})") from None


def _read(file: Any, size: int, depth: int) -> Any:
    """Read a file of any of the three formats; `file` is a mmap or BytesIO of `size` bytes at its start."""
    head = file.read(4)
    file.seek(0)
    if head == b"PK\x03\x04":
        return _read_zip(file, size, depth)
    first = _Unpickler(file, depth).load()
    if not (isinstance(first, int) and first == _LEGACY):
        return first
    version = _Unpickler(file, depth).load()
    if version != 1001:
        raise _RefusedError(f"expected version 1001 of PyTorch's format, got {shown(version)}")
    _Unpickler(file, depth).load()  # facts about the machine that wrote it
    storages: dict[str, _Storage] = {}
    content = _Unpickler(file, depth, storages).load()
    for key in _Unpickler(file, depth).load():
        (count,) = struct.unpack("<q", file.read(8))
        if count != storages[key].count:
            raise ValueError(f"a storage of {shown(count)} values instead of {storages[key].count}")
        storages[key].fill(file.read(storages[key].num_bytes))
    return content


def _read_zip(file: Any, size: int, depth: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        unpacked = sum(entry.file_size for entry in entries.values())
        if unpacked > size:  # torch.save compresses nothing
            raise _RefusedError(f"a file of {in_bytes(size)} unpacks to {in_bytes(unpacked)}, so it is not read")
        pickled = [name for name in entries if name.endswith("data.pkl") and name.count("/") == 1]
        if len(pickled) != 1:
            raise ValueError("a zip archive without PyTorch's data.pkl")
        root = pickled[0].removesuffix("data.pkl")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise _RefusedError("expected numbers in little-endian order, got another")
        storages: dict[str, _Storage] = {}
        content = _Unpickler(io.BytesIO(archive.read(pickled[0])), depth, storages).load()
        for key, storage in storages.items():
            storage.fill(archive.read(f"{root}data/{key}"))  # checks the CRC-32 too
    return content


class _Storage:
    """Values of tensors: `count` of a type, whose bytes may come later."""

    def __init__(self, code: str, count: object) -> None:
        self.code, self.count = code, _whole(count)
        self.num_bytes = self.count * (2 if code == "bf16" else np.dtype(code).itemsize)
        self.values: npt.NDArray[Any] | None = None

    def fill(self, data: bytes) -> None:
        if len(data) != self.num_bytes:
            raise ValueError(f"a storage of {len(data)} bytes instead of {self.num_bytes}")
        if self.code == "bf16":
            self.values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            self.values = np.frombuffer(data, self.code)


class _Dtype:
    """A NumPy dtype of plain numbers, built in two steps like the pickle's."""

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise _RefusedError(f"expected arrays of numbers, got one of type {shown(code)}")
        self.dtype = np.dtype(code)

    def build(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
            raise ValueError("the state of a dtype")
        if any(part is not None for part in state[2:5]):
            raise _RefusedError("expected arrays of numbers, got one of records")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """A NumPy array, built in two steps like the pickle's."""

    array: npt.NDArray[Any] | None = None

    def build(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("the state of an array")
        _, shape, dtype, in_fortran_order, data = state
        self.fill(data, dtype, shape, "F" if in_fortran_order else "C")

    def fill(self, data: object, dtype: object, shape: object, order: object) -> None:
        if isinstance(data, str):  # Python 2's
            data = data.encode("latin1")
        if not isinstance(data, (bytes, bytearray)) or not isinstance(dtype, _Dtype) or order not in ("C", "F"):
            raise ValueError("an array without values")
        sides = _sizes(shape)
        if len(data) != math.prod(sides) * dtype.dtype.itemsize:
            raise ValueError(f"an array of {len(data)} bytes whose shape is {shown(sides)}")
        self.array = np.frombuffer(data, dtype.dtype).reshape(sides, order="F" if order == "F" else "C")


class _Tensor:
    """A PyTorch tensor over a storage."""

    def __init__(self, storage: object, offset: object, size: object, stride: object, *_: object) -> None:
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor without a storage")
        self.storage, self.offset = storage, _whole(offset)
        self.size, self.stride = _sizes(size), _sizes(stride)
        if len(self.size) != len(self.stride):
            raise ValueError("a tensor whose strides are not those of its shape")

    def resolved(self) -> npt.NDArray[Any]:
        values, count = self.storage.values, math.prod(self.size)
        if values is None:
            raise ValueError("a tensor whose values are missing")
        if not count:
            return np.empty(self.size, values.dtype)
        last = self.offset + sum((side - 1) * step for side, step in zip(self.size, self.stride, strict=True))
        if last >= len(values) or count > len(values):  # strides of 0 blow up small data
            raise ValueError(f"a tensor of shape {shown(self.size)} over {len(values)} values")
        steps = [step * values.itemsize for step in self.stride]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.size, steps, writeable=False)


class _Maker:
    """What stands for an allowed name: calls a function of this module, and cannot be changed by the pickle."""

    __slots__ = ("_make", "name")

    def __init__(self, name: str, make: Callable[..., Any] | None) -> None:
        self.name, self._make = name, make

    def __call__(self, *arguments: Any) -> Any:
        if self._make is None:
            raise ValueError(f"a call of {self.name}")
        return self._make(*arguments)


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**48:
        raise ValueError(f"a size of {shown(value)}")
    return value


def _sizes(values: object) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > _DIMENSIONS:
        raise ValueError("a shape that is none")
    return tuple(map(_whole, values))


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in {shown(encoding)}")
    return text.encode("latin1")


def _bytes(data: Any = b"", encoding: str = "latin1") -> bytes:
    """Bytes of bytes or text; never of a number, which would allocate so many."""
    return _encoded(data, encoding) if isinstance(data, str) else bytes(memoryview(data))


def _dict(pairs: object = ()) -> dict[Any, Any]:
    if not isinstance(pairs, (list, tuple)):
        raise ValueError("an OrderedDict of no pairs")
    return {_key(key): value for key, value in pairs}


def _key(key: Any) -> Any:
    if not isinstance(key, _KEYS):
        raise _RefusedError(f"expected keys that are text or numbers, got a {type(key).__name__.lstrip('_').lower()}")
    return key


def _buffered(data: object, dtype: object, shape: object, order: object) -> _Array:
    array = _Array()
    array.fill(data, dtype, shape, order)
    return array


def _scalar(dtype: object, data: object) -> Any:
    array = _buffered(data, dtype, (), "C").array
    return None if array is None else array.item()


def _makers() -> dict[str, Callable[..., Any] | None]:
    """Every name that a file may hold -> what this reader makes of its call; None for a name that is not called."""
    makers: dict[str, Callable[..., Any] | None] = {"_codecs.encode": _encoded, "collections.OrderedDict": _dict}
    for module in ("builtins", "__builtin__"):
        makers |= {f"{module}.bytearray": _bytes, f"{module}.bytes": _bytes}
    makers |= {"numpy.dtype": _Dtype, "numpy.ndarray": None}
    for core in ("numpy.core", "numpy._core"):
        makers |= {f"{core}.multiarray._reconstruct": lambda *_: _Array(), f"{core}.multiarray.scalar": _scalar}
        makers[f"{core}.numeric._frombuffer"] = _buffered
    makers |= {f"torch.{name}": None for name in _STORAGES}
    makers |= {f"torch._utils.{name}": _Tensor for name in ("_rebuild_tensor", "_rebuild_tensor_v2")}
    return makers | {"torch._utils._rebuild_parameter": lambda tensor, *_: tensor, "torch.Size": _sizes}


_MAKERS = _makers()
_LOAD_FROM_BYTES = "torch.storage._load_from_bytes"


def _resolved(content: Any) -> Any:
    """Replace stand-ins by arrays, each container once."""
    done: dict[int, Any] = {}
    open_now: set[int] = set()

    def resolve(value: Any, level: int) -> Any:
        if isinstance(value, (bool, int, float, str, bytes, type(None))):
            return value
        if isinstance(value, _Tensor):
            return value.resolved()
        if id(value) in done:
            return done[id(value)][1]
        if level > MAX_DEPTH:
            raise _RefusedError(f"expected at most {MAX_DEPTH} levels of nesting, got more")
        if id(value) in open_now:
            raise _RefusedError("expected values that are not inside themselves, got one that is")
        open_now.add(id(value))
        made: Any
        if isinstance(value, dict):
            made = {key: resolve(one, level + 1) for key, one in value.items()}
        elif isinstance(value, (list, tuple)):
            made = type(value)([resolve(one, level + 1) for one in value])
        elif isinstance(value, _Array) and value.array is not None:
            made = value.array
        else:
            kind = value.name if isinstance(value, _Maker) else type(value).__name__.lstrip("_").lower()
            raise _RefusedError(f"expected {_ALLOWED}, got {kind}")
        open_now.discard(id(value))
        done[id(value)] = (value, made)  # the value stays alive, so that its id stays its own
        return made

    return resolve(content, 0)


def _refuse_name(name: str) -> NoReturn:
    raise _RefusedError(f"it would call {shown(name).strip(chr(39))}, and is not read; expected {_ALLOWED} alone")


class _Operations(dict[int, Any]):
    """The operations of a pickle that this reader carries out."""

    def __missing__(self, operation: int) -> NoReturn:
        known = {getattr(pickle, name)[0]: name for name in ("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2")}
        if operation in known:
            raise _RefusedError(f"it would make an object of a class ({known[operation]}); expected {_ALLOWED} alone")
        raise ValueError(f"operation {operation:#04x}")


_base: Any = pickle._Unpickler  # in Python: its memo grows with the file alone
_PLAIN = (
    *("PROTO", "FRAME", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINUNICODE", "BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2"),
    *("TUPLE3", "EMPTY_LIST", "LIST", "EMPTY_DICT", "GLOBAL", "STACK_GLOBAL", "PERSID", "BINPERSID", "POP"),
    *("POP_MARK", "DUP", "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "MARK", "STOP"),
)


class _Unpickler(_base):
    """A reader of one pickle whose operations and names are listed; `storages` receives the tensors' values."""

    dispatch = _Operations()

    def __init__(self, file: Any, depth: int, storages: dict[str, _Storage] | None = None) -> None:
        super().__init__(file, encoding="latin1")  # Python 2's bytes, of arrays too
        self._depth, self._storages = depth, storages

    def find_class(self, module: Any, name: Any) -> Any:
        full = f"{module}.{name}"
        if full == _LOAD_FROM_BYTES:
            return _Maker(full, self._load_from_bytes)
        if full not in _MAKERS:
            _refuse_name(full)
        return _Maker(full, _MAKERS[full])

    def _load_from_bytes(self, data: object) -> Any:
        if not isinstance(data, bytes):
            raise ValueError("a storage without bytes")
        if self._depth >= _NESTED:
            raise _RefusedError("expected a tensor's values, got a file in a file in a file")
        return _read(io.BytesIO(data), len(data), self._depth + 1)

    def persistent_load(self, pid: Any) -> _Storage:
        if self._storages is None or not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise ValueError("a reference to something outside")
        _, kind, key, _, count = pid[:5]
        if len(pid) == 6 and pid[5] is not None:
            raise _RefusedError("expected whole storages, got a part of one")
        name = kind.name.removeprefix("torch.") if isinstance(kind, _Maker) else ""
        if name not in _STORAGES or not isinstance(key, str):
            raise ValueError("a storage of an unknown type")
        return self._storages.setdefault(key, _Storage(_STORAGES[name], count))

    def _load_reduce(self) -> None:
        arguments = self.stack.pop()
        make = self.stack[-1]
        if not isinstance(make, _Maker) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that is no function")
        self.stack[-1] = make(*arguments)

    def _load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], (_Array, _Dtype)):
            raise _RefusedError(f"it would set the state of an object; expected {_ALLOWED} alone")
        self.stack[-1].build(state)

    def _load_append(self) -> None:
        self._extend([self.stack.pop()])

    def _load_appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("items of something that is no list")
        self.stack[-1].extend(items)

    def _load_setitem(self) -> None:
        value = self.stack.pop()
        self._update([self.stack.pop(), value])

    def _load_setitems(self) -> None:
        self._update(self.pop_mark())

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._update(items)

    def _update(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise ValueError("entries of something that is no dict")
        self.stack[-1].update((_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))

    def _load_bytearray8(self) -> None:
        (count,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(min(count, MAX_FILE)))


_OWN = ("REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "DICT", "BYTEARRAY8")
for _code, _name in ((getattr(pickle, name)[0], name) for name in (*_PLAIN, *_OWN)):
    _Unpickler.dispatch[_code] = (
        getattr(_Unpickler, f"_load_{_name.lower()}") if _name in _OWN else _base.dispatch[_code]
    )
