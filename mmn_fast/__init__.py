"""Temporal grounding with the Mutual Matching Network, fast.

`import mmn_fast` loads neither torch nor triton: the names below are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmn_fast.process.environment import configure_logging

if TYPE_CHECKING:
    from mmn_fast.backends.registry import available_backends
    from mmn_fast.engine import Engine, load
    from mmn_fast.index import Match, MomentIndex
    from mmn_fast.kept_engines import ground
    from mmn_fast.presets import PRESETS
    from mmn_fast.tubes import Tube, TubeMoment, TubeQuery
    from mmn_fast.types import Moment, Query, Video
    from mmn_fast.version import __version__

_HOME = {
    "load": "engine",
    "ground": "kept_engines",
    "Engine": "engine",
    "Video": "types",
    "Query": "types",
    "Moment": "types",
    "Tube": "tubes",
    "TubeQuery": "tubes",
    "TubeMoment": "tubes",
    "MomentIndex": "index",
    "Match": "index",
    "PRESETS": "presets",
    "available_backends": "backends.registry",
    "__version__": "version",
}

__all__ = [
    "PRESETS",
    "Engine",
    "Match",
    "Moment",
    "MomentIndex",
    "Query",
    "Tube",
    "TubeMoment",
    "TubeQuery",
    "Video",
    "__version__",
    "available_backends",
    "ground",
    "load",
]


configure_logging()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
