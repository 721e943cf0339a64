"""Preset files of one's own: YAML with one key per value of a preset, and a mark that tells them from official files.

A file's first key is `mmn_fast_preset: 1`, the version of this format; official configuration files never have it.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mmn_fast.checks import shown
from mmn_fast.errors import InputError

_Preset = TypeVar("_Preset")

MARK = "mmn_fast_preset"
_VERSION = 1
_LONGEST_LINE = 110
_YAML = {"None": "null", "True": "true", "False": "false"}


def is_own(tree: object) -> bool:
    """Whether the content of a YAML file has the mark of a preset file of one's own."""
    return isinstance(tree, dict) and MARK in tree


def own_preset(
    tree: Mapping[Any, Any], path: Path, make: Callable[[Mapping[str, Any]], _Preset], taken: Collection[str]
) -> _Preset:
    """Make the preset that a file of one's own describes.

    Args:
        tree: the file's content, with its mark. A file without `name` is named by its stem.
        path: the file.
        make: makes a preset of nested values, `Preset.from_dict`.
        taken: names of the package's own presets, which a file cannot have: other code knows facts by these names.

    Raises:
        InputError: another version of the format, a taken name, or values that do not make a model; the message names
            the file.
    """
    where = f"preset: {path}"
    version = tree[MARK]
    if version != _VERSION or isinstance(version, bool):
        raise InputError(f"{where}: {MARK}: expected {_VERSION}, the version of this format, got {shown(version)}")
    values: dict[Any, Any] = {"name": path.stem, **{key: value for key, value in tree.items() if key != MARK}}
    check_own_name(values["name"], taken, f"{where}: name")
    try:
        return make(values)
    except InputError as error:
        said = str(error).removeprefix(f"preset {shown(values['name'])}: ")
        raise InputError(f"{where}: {said}") from None


def check_own_name(name: object, taken: Collection[str], where: str) -> None:
    """Refuse the name of one of the package's presets.

    Raises:
        InputError: the name is taken.
    """
    if isinstance(name, str) and name in taken:
        raise InputError(f"{where}: expected a name of its own, got {name!r}, a preset of mmn_fast")


def own_text(preset: Any, made_by: str) -> str:
    """The text of a preset's file: every value with the meaning that its class's docstring gives.

    Args:
        preset: a `Preset`.
        made_by: the command that made it; stands in a comment.
    """
    made_by = "".join(character if character.isprintable() else "?" for character in made_by)
    lines = [f"# Preset {preset.name!r} of mmn_fast, made by: {made_by}", f"{MARK}: {_VERSION}", ""]
    lines += _section(preset, "")
    return "\n".join(lines) + "\n"


def _section(values: Any, indent: str) -> list[str]:
    meanings, lines = _meanings(type(values)), []
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        meaning = meanings.get(field.name, "")
        if dataclasses.is_dataclass(value):
            lines += ["", f"{indent}{field.name}:" + (f"  # {meaning}" if meaning else "")]
            lines += _section(value, indent + "  ")
            continue
        line = f"{indent}{field.name}: {_written(value)}"
        if field.name == "name":  # its docstring speaks of where presets stand
            meaning = ""
        if meaning and len(line) + len(meaning) + 4 > _LONGEST_LINE:
            lines += [f"{indent}# {part}" for part in textwrap.wrap(meaning, _LONGEST_LINE - len(indent) - 2)]
            meaning = ""
        lines.append(f"{line}  # {meaning}" if meaning else line)
    return lines


def _written(value: Any) -> str:
    """A value as YAML that every version of YAML reads alike."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, float):
        return np.format_float_positional(value, trim="0")
    return json.dumps(value)


def _meanings(kind: type) -> dict[str, str]:
    """Field -> the first sentence about it in a class's docstring; empty if Python runs without docstrings."""
    _, _, attributes = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", attributes, re.MULTILINE)
    meanings = {}
    for name, text in found:
        sentence = re.split(r"(?<!\.)\.(?: |$)", " ".join(text.split()), maxsplit=1)[0]
        meanings[name] = re.sub(r"\b(None|True|False)\b", lambda word: _YAML[word[0]], sentence)
    return meanings
