"""Groups of options: a command's parameter may be a dataclass; each of its fields is then an option."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints


def with_fields_as_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Replace each group in a command's signature by its fields, so that Typer sees one option per field."""
    hints = get_type_hints(command, include_extras=True)
    options: list[Parameter] = []
    groups: dict[str, Any] = {}
    for name, parameter in signature(command).parameters.items():
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            groups[name] = kind
            types = get_type_hints(kind, include_extras=True)
            found = [(field.name, types[field.name], field.default) for field in dataclasses.fields(kind)]
        else:
            found = [(name, kind, parameter.default)]
        options += [
            Parameter(
                option,
                Parameter.KEYWORD_ONLY,
                annotation=annotation,
                default=Parameter.empty if default is dataclasses.MISSING else default,
            )
            for option, annotation, default in found
        ]

    @wraps(command)
    def run(**given: Any) -> Any:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in dataclasses.fields(kind)})
        return command(**given)

    run.__signature__ = Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run
