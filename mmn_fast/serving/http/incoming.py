"""Reads requests: JSON, features as .npy, .npz or safetensors, multipart forms, videos; all sizes are bounded."""

from __future__ import annotations

import asyncio
import io
import math
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.types import Message, Receive

from mmn_fast.checks import Each, Integer, Number, Optional, Rule, Text, check_keys, fail, flag, in_bytes
from mmn_fast.errors import InputError
from mmn_fast.features.files import read_file
from mmn_fast.features.limits import Wanted
from mmn_fast.serving.http.problems import ClientGoneError, Problem
from mmn_fast.serving.settings import Limits
from mmn_fast.serving.uploads import private_file
from mmn_fast.storage.documents import NotJsonError, parse_json

_IN_THREAD = 2**16  # bytes: a larger body is parsed in a thread, so that others are answered meanwhile
_JSON, _FORM = "application/json", "multipart/form-data"
_ARRAYS = ("application/octet-stream", "application/x-npy", "application/x-npz", "application/x-safetensors")
_MOST_OF_A_FIELD = 2**16  # bytes of a form's field
_NPY = b"\x93NUMPY"  # how an .npy file begins
_ID = Text(1, 1000)
_LISTS = ("sentences", "videos")
_FEATURES = "features"


def _features(value: object, where: str) -> Any:
    if not isinstance(value, list) or not value:
        raise fail(where, "a list of rows of numbers", value)
    return value


def rules_of(limits: Limits) -> dict[str, Rule]:
    """The rule of each field that a request may have, in any form."""
    count = Integer(1, limits.max_top_k)
    return {
        "sentences": Each(Text(1, 10_000), 1, limits.max_sentences),
        "top_k": count,
        "maps": flag,
        "window_s": Optional(Number(0, above=True)),
        "overlap": Optional(Number(0, 1, below=True)),
        "video": _ID,
        "video_id": _ID,
        "duration_s": Number(0, above=True),
        "key": _ID,
        _FEATURES: _features,
        "per_video": count,
        "min_score": Optional(Number()),
        "videos": Optional(Each(_ID, 1, 10_000)),
        "replace": flag,
    }


@dataclass
class Incoming:
    """A request that has been read.

    Attributes:
        values: its fields, checked.
        features: float [n_src, D], if it has some.
        upload: a video in the private folder, if it has one.
        name: the uploaded file's name without its suffix, or "".
    """

    values: dict[str, Any] = field(default_factory=dict)
    features: npt.NDArray[Any] | None = None
    upload: Path | None = None
    name: str = ""


class Reader:
    """Reads the requests of one application.

    Args:
        limits: sizes and times.
        width: D of the model.
        folder: private folder for uploads.
    """

    def __init__(self, limits: Limits, width: int, folder: Path) -> None:
        self._limits, self._width, self._folder = limits, width, folder
        self._rules = rules_of(limits)

    async def read(self, request: Request, known: tuple[str, ...], stack: ExitStack, videos: bool) -> Incoming:
        """Read a request.

        Args:
            request: the request; its body is unread.
            known: names of its fields; "features" among them allows features.
            stack: removes files that were uploaded.
            videos: whether a video may be uploaded.

        Raises:
            Problem: 400, 408, 413 or 415.
            InputError: a field or the features cannot be used.
            ClientGoneError: the client has gone.
        """
        kind = request.headers.get("content-type", _JSON).partition(";")[0].strip().lower()
        is_video = kind.startswith("video/")
        takes_arrays = _FEATURES in known
        allowed = kind == _JSON or (takes_arrays and (kind in _ARRAYS or kind == _FORM or (is_video and videos)))
        if not allowed:
            raise Problem(415, self._expected(kind, takes_arrays, videos))
        large = videos and (is_video or kind == _FORM)
        most = self._limits.max_upload_bytes if large else self._limits.max_body_bytes
        receive = _counted(request, most)
        seconds = self._limits.upload_deadline_s if large else self._limits.body_s
        with _Deadline(seconds):
            return await self._read_kind(request, receive, kind, known, stack, videos)

    async def _read_kind(
        self, request: Request, receive: Receive, kind: str, known: tuple[str, ...], stack: ExitStack, videos: bool
    ) -> Incoming:
        if kind == _FORM:
            return await self._form(Request(request.scope, receive), known, stack, videos)
        values = self._texts(_query(request), known) if request.scope["query_string"] else {}
        if kind.startswith("video/"):
            path = stack.enter_context(private_file(self._folder, ".video"))
            with path.open("xb") as file:
                async for chunk in _chunks(receive):
                    file.write(chunk)
            return Incoming(values, upload=path)
        body = await _whole(receive)
        if kind != _JSON:
            return Incoming(values, await _in_thread(body, self._array, body, values.get("key")))
        given = await _in_thread(body, _json_of, body)
        given = check_keys(given, known, "body", ())
        values |= self._checked({name: value for name, value in given.items() if name != _FEATURES})
        if given.get(_FEATURES) is None:
            return Incoming(values)
        rows = self._rules[_FEATURES](given[_FEATURES], _FEATURES)
        return Incoming(values, await _in_thread(body, self._rows, rows))

    async def _form(self, request: Request, known: tuple[str, ...], stack: ExitStack, videos: bool) -> Incoming:
        fields = self._limits.max_sentences + len(self._rules)
        form = await request.form(max_files=1, max_fields=fields, max_part_size=_MOST_OF_A_FIELD)
        try:
            texts = _query(request)
            files: list[tuple[str, UploadFile]] = []
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    files.append((name, value))
                else:
                    texts.append((name, value))
            read = Incoming(self._texts(texts, known))
            for name, file in files:
                if name == "video" and videos:
                    read.name = Path(file.filename or "").stem
                    read.upload = stack.enter_context(private_file(self._folder, ".video"))
                    await asyncio.to_thread(_copy, file.file, read.upload)
                elif name == _FEATURES:
                    size, most = file.size or 0, self._limits.max_body_bytes
                    if size > most:
                        raise Problem(413, f"features: expected at most {in_bytes(most)}, got {in_bytes(size)}")
                    body = await file.read()
                    read.features = await _in_thread(body, self._array, body, read.values.get("key"))
                else:
                    wanted = "features or video" if videos else "features"
                    raise InputError(f"body: expected a file named {wanted}, got one named {name[:60]!r}")
            return read
        finally:
            await form.close()

    def _texts(self, items: list[tuple[str, str]], known: tuple[str, ...]) -> dict[str, Any]:
        """Fields from a query or a form, where every value is text; `sentence` may be repeated."""
        found: dict[str, Any] = {}
        for name, value in items:
            plural = f"{name}s" if f"{name}s" in _LISTS and not (name == "video" and name in known) else name
            if plural in _LISTS:
                found.setdefault(plural, []).append(value)
            elif name in found:
                raise InputError(f"{name[:60]}: given twice")
            else:
                found[name] = self._typed(name, value)
        return self._checked(check_keys(found, [name for name in known if name != _FEATURES], "parameters", ()))

    def _typed(self, name: str, value: str) -> Any:
        """Turn text into the kind of value that the field's rule takes."""
        if name in ("video", "video_id", "key") or name not in self._rules:
            return value
        try:
            return {"true": True, "false": False}.get(value) if self._rules[name] is flag else _number(value)
        except ValueError:
            return value

    def _checked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._rules[name](value, name) for name, value in values.items()}

    def _rows(self, rows: list[Any]) -> npt.NDArray[Any]:
        try:
            array = np.asarray(rows, np.float32)
        except (TypeError, ValueError, OverflowError):
            raise InputError(
                f"features: expected rows of {self._width} numbers each, got rows of other values"
            ) from None
        return self._sized(array)

    def _array(self, body: bytes, key: str | None) -> npt.NDArray[Any]:
        wanted = Wanted(_FEATURES, key, width=self._width)
        if body.startswith(_NPY):
            return self._sized(_npy(body, wanted))
        suffix = ".npz" if body.startswith(b"PK") else ".safetensors" if body[8:9] == b"{" else None
        if suffix is None:
            raise InputError("features: expected an .npy, .npz or safetensors file, got other bytes")
        with private_file(self._folder, suffix) as path:
            path.write_bytes(body)
            try:
                return self._sized(np.array(read_file(path, wanted)))
            except InputError as error:
                raise InputError(str(error).replace(str(path), "the body")) from None

    def _sized(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if array.ndim != 2 or array.shape[1] != self._width:
            got = f"{array.dtype} {list(array.shape)}"
            raise InputError(f"features: expected a float array [n_src, {self._width}], got {got}")
        if len(array) > self._limits.max_rows:
            raise Problem(413, f"features: expected at most {self._limits.max_rows} rows, got {len(array)}")
        return array

    def _expected(self, kind: str, arrays: bool, videos: bool) -> str:
        kinds = [_JSON, *([*_ARRAYS, _FORM] if arrays else []), *(["video/*"] if videos else [])]
        why = "; the model does not say how its features are made" if kind.startswith("video/") and not videos else ""
        return f"Content-Type: expected {', '.join(kinds)}, got {kind[:100]!r}{why}"


def _query(request: Request) -> list[tuple[str, str]]:
    """The fields of the query, in order."""
    return parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)


class _Deadline:
    """Refuses the request whose body is read here if that takes too long. `asyncio.wait_for` would start a task."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._late = seconds, False

    def __enter__(self) -> None:
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._end)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._timer.cancel()
        if self._late and kind is asyncio.CancelledError:
            if sys.version_info >= (3, 11):
                self._task.uncancel()
            raise Problem(408, f"the body did not arrive within {self._seconds:g} s") from None

    def _end(self) -> None:
        self._late = True
        self._task.cancel()


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    """The body, piece by piece."""
    more = True
    while more:
        message = await receive()
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _whole(receive: Receive) -> bytes:
    """The body; that of most requests is one piece."""
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body", False):
        body = b"".join([body, *[chunk async for chunk in _chunks(receive)]])
    return body


def _counted(request: Request, most: int) -> Receive:
    """Receive the body of a request, at most so many bytes."""
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > most:
        raise Problem(413, f"body: expected at most {in_bytes(most)}, got {in_bytes(int(declared))}")
    taken = 0

    async def receive() -> Message:
        nonlocal taken
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        taken += len(message.get("body", b""))
        if taken > most:
            raise Problem(413, f"body: expected at most {in_bytes(most)}, got more", {"Connection": "close"})
        return message

    return receive


async def _in_thread(body: bytes, work: Callable[..., Any], *arguments: Any) -> Any:
    """Do small work here, and large work in a thread; an .npy file is not copied, so it is small work."""
    small = len(body) < _IN_THREAD or body.startswith(_NPY)
    return work(*arguments) if small else await asyncio.to_thread(work, *arguments)


def _json_of(body: bytes) -> Any:
    try:
        return parse_json(body.decode("utf-8"), "body")
    except NotJsonError as error:
        raise Problem(400, str(error)) from None
    except UnicodeDecodeError:
        raise Problem(400, "body: expected UTF-8 text, got other bytes") from None


def _number(text: str) -> int | float:
    try:
        return int(text[:40])
    except ValueError:
        return float(text)


def _npy(body: bytes, wanted: Wanted) -> npt.NDArray[Any]:
    """An .npy file in memory, without a copy of its values."""
    try:
        shape, fortran, dtype, begin = _npy_header(_npy_head(body))
    except ValueError as error:
        raise InputError(f"features: truncated, damaged or no .npy file ({str(error)[:200]})") from None
    if dtype.hasobject or dtype.kind not in "fiu":
        raise InputError(f"features: expected numbers, got {dtype}")
    wanted.check(shape, dtype.itemsize, dtype)
    count = math.prod(shape)
    if len(body) - begin != count * dtype.itemsize:
        raise InputError(f"features: truncated, damaged or no .npy file (its header says {dtype} {list(shape)})")
    array = np.frombuffer(body, dtype, count, begin)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _npy_head(body: bytes) -> bytes:
    """The part before the values: magic, version, length and text of the header."""
    size = 2 if body[6:7] == b"\x01" else 4  # bytes of the length
    return body[: 8 + size + min(int.from_bytes(body[8 : 8 + size], "little"), 10_000)]


@lru_cache(64)  # most clients send one shape; parsing it takes a sixth of a millisecond
def _npy_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order, type and the place of the first value."""
    file = io.BytesIO(head)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return (*read(file), file.tell())


def _copy(source: BinaryIO, target: Path) -> None:
    source.seek(0)
    with target.open("xb") as file:
        shutil.copyfileobj(source, file, 2**20)
