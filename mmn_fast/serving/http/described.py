"""What the OpenAPI document says about bodies, with examples that this service answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmn_fast.serving.service import Service

_WIDEST = 512  # values of a feature row in an example; a wider one would be a page of zeros
_SENTENCE = "the violet star drifts to the bottom"
_FIELDS: dict[str, dict[str, Any]] = {
    "sentences": {"type": "array", "items": {"type": "string"}, "minItems": 1},
    "top_k": {"type": "integer", "minimum": 1},
    "maps": {"type": "boolean", "description": "Also give the score of every proposal."},
    "window_s": {"type": "number", "description": "Cut longer videos into windows of so many seconds."},
    "overlap": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    "video": {"type": "string", "description": "The id of a video of the index."},
    "video_id": {"type": "string"},
    "duration_s": {"type": "number", "description": "Length of the video in seconds; with features."},
    "features": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
    "per_video": {"type": "integer", "minimum": 1},
    "min_score": {"type": "number"},
    "videos": {"type": "array", "items": {"type": "string"}},
    "replace": {"type": "boolean"},
    "key": {"type": "string", "description": "The array to take, if a file has several."},
}
_OF = {
    "ground": ("sentences", "top_k", "maps", "window_s", "overlap", "video", "video_id", "duration_s", "features"),
    "search": ("sentences", "top_k", "per_video", "min_score", "videos"),
    "add": ("video_id", "duration_s", "features", "replace", "window_s", "overlap"),
}
_PROBLEM = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
    },
}


def examples(service: Service) -> dict[str, dict[str, Any]]:
    """Per route, named bodies of JSON that this service answers with success."""
    width = service.engine.preset.input_size
    found: dict[str, dict[str, Any]] = {
        "ground": {},
        "search": {"search": {"sentences": [_SENTENCE], "top_k": 5}},
        "add": {},
    }
    ids = service.library.index.video_ids[:1]
    if ids:
        found["ground"]["by id"] = {"video": ids[0], "sentences": [_SENTENCE], "top_k": 3}
    if width <= _WIDEST:
        rows = {"features": [[0.5] * width] * 2, "duration_s": 12.0}
        found["ground"]["features"] = {**rows, "sentences": [_SENTENCE], "top_k": 3}
        found["add"]["features"] = {**rows, "video_id": "example", "replace": True}
    return found


def body(route: str, found: dict[str, dict[str, Any]], videos: bool) -> dict[str, Any]:
    """The part of an operation that describes its body and its problems.

    Args:
        route: "ground", "search" or "add".
        found: `examples`.
        videos: whether a video may be uploaded.
    """
    schema = {"type": "object", "properties": {name: _FIELDS[name] for name in _OF[route]}}
    content: dict[str, Any] = {
        "application/json": {
            "schema": schema,
            "examples": {name: {"value": value} for name, value in found[route].items()},
        }
    }
    if route != "search":
        binary = {"type": "string", "format": "binary"}
        content["application/octet-stream"] = {"schema": binary}  # .npy, .npz or safetensors; fields in the query
        files = {"features": binary, **({"video": binary} if videos else {})}
        others = {name: _FIELDS[name] for name in _OF[route] if name not in ("features", "video")}
        content["multipart/form-data"] = {"schema": {"type": "object", "properties": {**others, **files}}}
        if videos:
            content["video/*"] = {"schema": binary}
    problem = {"content": {"application/problem+json": {"schema": _PROBLEM}}}
    told = {"422": "Input that cannot be used.", "413": "Too large.", "503": "Too busy; see Retry-After."}
    return {
        "requestBody": {"required": True, "content": content},
        "responses": {status: {"description": text, **problem} for status, text in told.items()},
    }
