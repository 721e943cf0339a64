"""Errors of a command name the option that was typed (`--top-k`), not the Python argument behind it (`top_k`)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperCommand

from mmn_fast.cli.groups import with_fields_as_options
from mmn_fast.errors import BackendUnavailable, InputError

# Beginning of a Python message -> what stands there instead, in commands that ground one video or its tubes: the
# parameter behind it, and for an entry of a list its number, as a person counts, or a tube's, as the output does.
_PLACES = (
    (re.compile(r"batch\[\d+\]\.video\.duration_s(?=:)"), "duration", ""),
    (re.compile(r"batch\[\d+\]\.video\.features(?=:)|source(?=:)"), "features", ""),
    (re.compile(r"(?:batch\[\d+\]\.)?sentences(?:\[(\d+)\])?(?=:)"), "query", " number {1}"),
    (re.compile(r"batch\[\d+\]\.tubes\[(\d+)\](?= \(|:)"), "tubes", ": tube {0}"),
)
# A part of a preset ("recipe: " or "loss: "), followed by the name of one of its values.
_PART = re.compile(r"(?:recipe|loss): (?=([a-z_]+):)")
# A message begins with names before a colon.
_LEADING = re.compile(r"[a-z][a-z0-9_]*(?:, [a-z][a-z0-9_]*)*(?=:)")
_PLURALS = {"backend_options": "backend_option"}
_OPTIONS = re.compile(r"\bbackend_options=\{'(\w+)': (\w+)\}")
_ARGUMENT = re.compile(r"(?<![\w'\"/.-])([a-z][a-z0-9_]*)=(?:'([^']*)'|(?=[\s,;.)]|$))")
_WORD = re.compile(r"(?<![\w'\"/.-])[a-z0-9]+(?:_[a-z0-9]+)+(?![\w'\"/.(=-])")


def typed_names(context: typer.Context) -> dict[str, str]:
    """Spelling of each parameter of a command: `--top-k`, or MODEL for an argument without an option's name.

    Args:
        context: context of the running command. A model from the environment is spelled MMN_FAST_MODEL.
    """
    names = {}
    for parameter in context.command.params:
        if parameter.name is None:
            continue
        is_option = parameter.param_type_name == "option"
        names[parameter.name] = max(parameter.opts, key=len) if is_option else parameter.name.upper()
    source = context.get_parameter_source("model")
    untyped = source is not None and source.name == "DEFAULT"
    if untyped and os.environ.get("MMN_FAST_MODEL"):
        names["model"] = "MMN_FAST_MODEL"
    return names


def in_typed_names(message: str, names: Mapping[str, str]) -> str:
    """Rewrite a message of the Python interface with the names that the user typed.

    Args:
        message: the message, with names of Python arguments.
        names: parameter -> its typed spelling, see `typed_names`.
    """
    for place, name, entry in _PLACES if "query" in names else ():
        found = place.match(message)
        if found is not None:
            number = entry.format(int(found[1]), int(found[1]) + 1) if found.lastindex else ""
            message = f"{names[name]}{number}{message[found.end() :]}"
    part = _PART.match(message)
    if part is not None and part[1] in names:
        message = message[part.end() :]
    leading = _LEADING.match(message)
    if leading is not None:
        said = ", ".join(names.get(_PLURALS.get(name, name), name) for name in leading[0].split(", "))
        message = said + message[leading.end() :]
    if "backend_option" in names:
        message = _OPTIONS.sub(lambda m: f"{names['backend_option']} {m[1]}={m[2].lower()}", message)

    def argument(found: re.Match[str]) -> str:
        if found[1] not in names:
            return found[0]
        return names[found[1]] if found[2] is None else f"{names[found[1]]} {found[2]}"

    message = _ARGUMENT.sub(argument, message)
    return _WORD.sub(lambda found: names.get(found[0], found[0]), message)


class Command(TyperCommand):
    """A command whose errors name its options."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (InputError, BackendUnavailable) as error:
            said = in_typed_names(str(error), typed_names(ctx))
            if said == str(error):
                raise
            raise type(error)(said) from error


class Commands(typer.Typer):
    """Commands whose errors name their options, and whose options may stand in groups (`groups`)."""

    def command(self, *arguments: Any, **settings: Any) -> Any:
        """Register a command, as `typer.Typer.command` does."""
        register = super().command(*arguments, **{"cls": Command, **settings})

        def registered(command: Any) -> Any:
            register(with_fields_as_options(command))
            return command

        return registered
