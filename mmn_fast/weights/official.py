"""Official checkpoints, `.pth` files: reads them without running any code in them, and writes them.

A `.pth` holds the weights but not the preset, sizes and tokenizer of the training. `train --official-pth` adds an entry
"mmn_fast" with the preset, the text encoder's sizes and the tokenizer, so that nothing must be guessed; the official
code ignores this entry. Files of other tools hold other objects besides the weights. Harmless objects are not read: an
inert stand-in replaces each of them, and their classes are never called.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mmn_fast.errors import InputError
from mmn_fast.presets import Preset, TextEncoderConfig
from mmn_fast.process.forks import Lock, renew_in_child
from mmn_fast.weights.hub import check_arrived

RECORD = "mmn_fast"
"""Key of the record that `train --official-pth` writes besides the weights."""
RECORD_FORMAT = 1
_KEYS = ("model", "state_dict", "model_state_dict", "module", "net")
"""Keys under which tools put the weights, the official code's key first."""
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names that DataParallel, torch.compile, FSDP and activation checkpointing insert."""
_ROOTS = ("featpool", "feat2d", "proposal_conv", "text_encoder")  # every official name begins with one of these
_ZIP = b"PK\x03\x04"
_TORCH_MAGIC = (_ZIP, b"\x80\x02")  # a zip archive; before PyTorch 1.6, pickles in a row
# Width -> heads of the published encoders. No tensor's shape shows the number of heads; for other widths it is unknown.
_PUBLISHED_HEADS = {768: 12}
_BERT = "text_encoder.bert."
_UNUSED_LAYERS = ("featpool.fc1.", "featpool.fc2.")  # linear layers of MMN-STVG that no output depends on
_UNUSED_WIDTH = 256  # of both
_AGAIN = (
    "save the weights alone with the program that made it: torch.save({'model': model.state_dict()}, 'weights.pth')"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class OfficialCheckpoint:
    """Content of a `.pth` file.

    Attributes:
        state: float32 arrays under official keys.
        record: the record of `train --official-pth` ("preset", "text_encoder", "tokenizer"); None in files of other
            programs.
    """

    state: dict[str, npt.NDArray[Any]]
    record: Mapping[str, Any] | None


def read_official(path: Path) -> OfficialCheckpoint:
    """Read a checkpoint without running any code that it holds.

    Args:
        path: a file that `torch.save` wrote: a state dict, or a dict that has one under a usual key. The weights' names
            may have prefixes of DataParallel, torch.compile or a module around the model.

    Raises:
        InputError: the file is damaged, is no checkpoint, or holds objects that only running its code would make.
    """
    head = check_arrived(path, f"checkpoint: {path}")
    if not head.startswith(_TORCH_MAGIC):
        raise InputError(f"checkpoint: {path} is not a PyTorch checkpoint")
    if head.startswith(_ZIP):
        _check_records(path)
    content = _torch_load(path)
    record = content.get(RECORD) if isinstance(content, Mapping) else None
    return OfficialCheckpoint(
        _arrays(_weights_in(content, path), path), record if isinstance(record, Mapping) else None
    )


def official_content(
    state: Mapping[str, npt.NDArray[Any]], record: Mapping[str, Any], preset: Preset, epoch: int, steps: int
) -> dict[str, Any]:
    """Content for `torch.save`; the official code can load the file.

    Args:
        state: float32 arrays under official keys.
        record: "preset", "text_encoder" and "feature_contract" as plain values, "tokenizer" as the text of
            tokenizer.json.
        preset: the model's preset: its proposal convolution has a BatchNorm per layer, and the official model of tubes
            has two layers that no output depends on, written as zeros.
        epoch: epochs of the model's training.
        steps: steps of the model's training, for BatchNorm's counters.
    """
    import torch

    # The official code saves and loads its models wrapped in DistributedDataParallel, hence the prefix.
    tensors = {f"module.{name}": torch.from_numpy(array) for name, array in state.items()}
    for layer in range(preset.conv_layers):
        tensors[f"module.proposal_conv.bn.{layer}.num_batches_tracked"] = torch.tensor(steps)
    if preset.of_tubes:
        for unused, width in zip(_UNUSED_LAYERS, (preset.input_size, _UNUSED_WIDTH), strict=True):
            tensors[f"module.{unused}weight"] = torch.zeros(_UNUSED_WIDTH, width)
            tensors[f"module.{unused}bias"] = torch.zeros(_UNUSED_WIDTH)
    return {"model": tensors, "epoch": epoch, RECORD: {"format_version": RECORD_FORMAT, **record}}


def text_sizes(state: Mapping[str, npt.NDArray[Any]], where: str, text_heads: int | None = None) -> TextEncoderConfig:
    """The text encoder's sizes, derived from its tensors.

    Args:
        state: arrays under official keys.
        where: name of the checkpoint in messages.
        text_heads: attention heads; None if the width is that of a published encoder, because its heads are known.

    Raises:
        InputError: a tensor is missing, or the number of heads is unknown or does not divide the width.
    """
    needed = ("embeddings.word_embeddings", "embeddings.position_embeddings", "transformer.layer.0.ffn.lin1")
    missing = [name for part in needed if (name := f"{_BERT}{part}.weight") not in state]
    if missing:
        raise InputError(f"{where}: missing key {missing[0]}")
    words, positions, ffn = (state[f"{_BERT}{part}.weight"] for part in needed)
    if {words.ndim, positions.ndim, ffn.ndim} != {2}:
        raise InputError(f"{where}: expected matrices in the text encoder, got {words.shape}, {positions.shape}")
    layers = {name.split(".")[4] for name in state if name.startswith(f"{_BERT}transformer.layer.")}
    width = words.shape[1]
    heads = _PUBLISHED_HEADS.get(width) if text_heads is None else text_heads
    if heads is None:
        raise InputError(
            f"{where}: expected a text encoder of a published width ({', '.join(map(str, _PUBLISHED_HEADS))}), got"
            f" {width}: nothing in the file says how many attention heads it has; convert it with text_heads=, the"
            f" number that it was trained with (mmn-fast convert --text-heads N)"
        )
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1 or width % heads:
        raise InputError(f"text_heads: expected a divisor of the text encoder's width, {width}, got {heads!r}")
    return TextEncoderConfig(
        vocab_size=words.shape[0],
        max_tokens=positions.shape[0],
        width=width,
        num_layers=len(layers),
        num_heads=heads,
        ffn_width=ffn.shape[0],
    )


def _check_records(path: Path) -> None:
    """Verify the CRC-32 of every record of a zip archive; PyTorch writes the CRC-32 but does not check it."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except Exception as error:  # damaged headers may raise any error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"checkpoint: {path} is truncated or damaged ({reason}); copy it again") from None
    if bad is not None:
        raise InputError(f"checkpoint: {path} is damaged: {bad} in it differs from its checksum; copy it again")


def _torch_load(path: Path) -> Any:
    import pickle

    import torch

    try:
        with _stand_ins.allowed():
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                found = _refused_names(path, error)
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"checkpoint: {path} is truncated or damaged ({reason})") from None
    if found:
        raise InputError(
            f"checkpoint: {path} holds Python objects beside tensors ({_few(found)}) and is not loaded, since that"
            f" runs code; {_AGAIN}"
        )
    raise InputError(f"checkpoint: {path} is damaged, or reading it would run code that it holds; {_AGAIN}")


def _refused_names(path: Path, error: Exception) -> list[str]:
    """Names of the classes and functions that a checkpoint wants to call but must not."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    first = re.search(r"GLOBAL (\S+)", str(error))
    names = {first[1]} if first else set()
    try:
        found = set(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a file from before 1.6, or unknown operations: the first name is known
        found = set()
    # PyTorch omits "builtins." in one of the two sources.
    return sorted(found | {name for name in names if f"builtins.{name}" not in found})


def _weights_in(content: object, path: Path) -> Mapping[Any, Any]:
    """The state dict of a checkpoint."""
    if isinstance(content, Mapping) and not _holds_tensors(content):
        held = [key for key in _KEYS if isinstance(content.get(key), Mapping) and content[key]]
        if len(held) > 1:
            raise InputError(
                f"checkpoint: {path}: expected one state dict, got {len(held)}: {', '.join(held)}; {_AGAIN}"
            )
        if held:
            return cast(Mapping[Any, Any], content[held[0]])
    elif isinstance(content, Mapping) and content:
        return content
    came = f"a dict of {_few(content)}" if isinstance(content, Mapping) and content else type(content).__name__
    raise InputError(
        f"checkpoint: {path}: expected a state dict, or a dict with one under {_few(map(repr, _KEYS))}, got {came}"
    )


def _few(names: Iterable[object], limit: int = 6) -> str:
    """List the first few names."""
    listed = list(map(str, names))
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


def _holds_tensors(tree: Mapping[Any, Any]) -> bool:
    return any(
        hasattr(value, "detach") and str(key).split(".")[-1] in ("weight", "bias") for key, value in tree.items()
    )


def _arrays(tree: Mapping[Any, Any], path: Path) -> dict[str, npt.NDArray[Any]]:
    """The model's float32 arrays under official names."""
    prefix = _prefix(tree, path)
    state: dict[str, npt.NDArray[Any]] = {}
    others = []
    for key, value in tree.items():
        if not str(key).startswith(prefix):
            others.append(str(key))
            continue
        name = ".".join(part for part in str(key)[len(prefix) :].split(".") if part not in _WRAPPERS)
        if not hasattr(value, "detach"):
            raise InputError(f"checkpoint: {path}: {name}: expected a tensor, got {type(value).__name__}")
        # Skip buffers of older transformers and BatchNorm's step counter, too.
        if name.endswith((".position_ids", ".num_batches_tracked")) or name.startswith(_UNUSED_LAYERS):
            continue
        if name in state:
            raise InputError(f"checkpoint: {path}: expected one tensor {name}, got two ({key} is the second)")
        if not value.is_floating_point():
            raise InputError(f"checkpoint: {path}: {name}: expected floating-point numbers, got {value.dtype}")
        try:
            state[name] = np.ascontiguousarray(value.detach().float().cpu().numpy())
        except (RuntimeError, NotImplementedError, TypeError) as error:  # meta, sparse or quantised
            reason = str(error).splitlines()[0]
            raise InputError(f"checkpoint: {path}: {name}: expected a dense tensor ({reason})") from None
    if others:
        logger.warning("checkpoint: %s: left out keys that do not start with %s: %s", path, prefix, _few(others))
    return state


def _prefix(tree: Mapping[Any, Any], path: Path) -> str:
    """The prefix of the official names: "" or, for example, "module." or "model._orig_mod."."""
    anchor = f"{_ROOTS[0]}.conv.weight"
    found = set()
    for key in map(str, tree):
        parts = key.split(".")
        if _ROOTS[0] in parts:
            at = parts.index(_ROOTS[0])
            if ".".join(part for part in parts[at:] if part not in _WRAPPERS) == anchor:
                found.add("".join(f"{part}." for part in parts[:at]))
    if len(found) > 1:
        raise InputError(f"checkpoint: {path}: expected one model, got {len(found)}: {_few(sorted(found))}; {_AGAIN}")
    return found.pop() if found else ""


class _LeftUnread:
    """Replaces an object besides the weights: accepts the arguments of the object's class, and keeps nothing."""

    def __new__(cls, *_: object, **__: object) -> _LeftUnread:
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


class _DictLeftUnread:
    """Replaces a class of dicts: gives an OrderedDict, because PyTorch's reader fills only exact dict types."""

    def __new__(cls, *_: object, **__: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def _list_left_unread(*_: object) -> list[Any]:
    return []


def _stand_in_names() -> dict[str, Callable[..., object]]:
    """Full names of classes that checkpoints hold besides weights -> their stand-ins. None of them is imported."""
    numpy = [f"numpy.{module}.multiarray.{name}" for module in ("core", "_core") for name in ("scalar", "_reconstruct")]
    numpy += [
        f"numpy.{name}" for name in ("dtype", "ndarray", "bool", "bool_", "str_", "float16", "float32", "float64")
    ]
    numpy += [f"numpy.{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
    random = [f"numpy.random._pickle.__{what}_ctor" for what in ("randomstate", "generator", "bit_generator")]
    random += ["numpy.random.mtrand.RandomState", "numpy.random._generator.Generator", "random.Random"]
    random += ["numpy.random.bit_generator.SeedSequence", "numpy.random.bit_generator.__pyx_unpickle_SeedSequence"]
    random += [f"numpy.random._{lower}.{name}" for lower, name in (("mt19937", "MT19937"), ("pcg64", "PCG64"))]
    path_names = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    paths = [f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in path_names]
    plain = ["argparse.Namespace", "types.SimpleNamespace", "torch.torch_version.TorchVersion"]
    plain += [f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")]
    plain += [f"builtins.{name}" for name in ("list", "dict", "int", "float", "str", "bool", "tuple", "frozenset")]
    dicts = ["collections.defaultdict", "easydict.EasyDict", "yacs.config.CfgNode", "addict.addict.Dict"]
    dicts += [f"{package}.pytorch.utilities.parsing.AttributeDict" for package in ("lightning",)]
    dicts += ["pytorch_lightning.utilities.parsing.AttributeDict", "lightning_fabric.utilities.data.AttributeDict"]
    dicts += ["lightning.fabric.utilities.data.AttributeDict"]
    return {
        **dict.fromkeys([*numpy, *random, *paths, *plain], _LeftUnread),
        **dict.fromkeys(dicts, _DictLeftUnread),
        "collections.deque": _list_left_unread,
        "collections.Counter": Counter,  # MultiStepLR keeps its milestones in one
    }


class _StandIns:
    """Registers the stand-ins with PyTorch's reader while any thread reads a checkpoint.

    PyTorch keeps one table of safe names for the whole process.
    """

    def __init__(self) -> None:
        self._pairs: list[Any] = [(stand_in, name) for name, stand_in in _stand_in_names().items()]
        self._lock = Lock()
        self._readers = 0
        self._table: Any = None
        renew_in_child(self._start_anew)

    def _start_anew(self) -> None:
        """Reset after a fork: a thread that was reading does not exist in the child."""
        self._readers = 0
        self._leave()

    def _leave(self) -> None:
        if self._table is not None:
            self._table.__exit__(None, None, None)
            self._table = None

    @contextmanager
    def allowed(self) -> Iterator[None]:
        from torch.serialization import safe_globals

        with self._lock:
            self._readers += 1
            if self._readers == 1:
                self._table = safe_globals(self._pairs)
                self._table.__enter__()
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                if not self._readers:
                    self._leave()


_stand_ins = _StandIns()
