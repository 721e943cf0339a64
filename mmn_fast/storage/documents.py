"""Reads untrusted JSON and YAML: size and depth are bounded, duplicate keys and huge integers are refused."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from mmn_fast.checks import in_bytes, shown
from mmn_fast.errors import InputError

MAX_DEPTH = 32
"""Most levels of nested objects and lists; the deepest of the package's own files has 6."""
MAX_FILE = 64 * 2**20
"""Most bytes of a file that describes a model; the demo's file takes 2 kB."""
_MAX_YAML = 2**20  # bytes; PyYAML reads 0.1 MB a second
_INTEGER_DIGITS = 20  # 64 bits and a sign
_YAML_DEEP = 12  # the official files have 4 levels
# YAML 1.2 and the official program read 1e-3 and 1.5E3 as numbers; YAML 1.1 demands a point and a sign.
_EXPONENT = re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")


# Errors that PyYAML raises for a tag that does not suit its value, such as !!int '' or !!bool x.
_ODD_TAGS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class NotJsonError(InputError):
    """The text breaks JSON's syntax."""


class NotYamlError(InputError):
    """The text breaks YAML's syntax, or has a tag that does not suit its value."""


class _RefusedError(ValueError):
    """A refusal by a hook of the JSON or YAML reader; it becomes an InputError that names the file."""


def read_text(path: str | Path, where: str, most: int = MAX_FILE) -> str:
    """Read the text of a UTF-8 file, with or without a byte order mark.

    Args:
        path: the file.
        where: name of the file in messages.
        most: most bytes that the file, pipe or device may give.

    Raises:
        InputError: the file is missing, unreadable, larger, or not UTF-8.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(most + 1)
    except FileNotFoundError as error:
        raise InputError(f"{where}: {error.strerror}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"{where} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(content) > most:
        raise InputError(f"{where}: expected at most {in_bytes(most)}, got more")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{where}: expected UTF-8 text, got other bytes") from None


def read_json(path: str | Path, where: str, most: int = MAX_FILE) -> Any:
    """Read the content of a JSON file; see `read_text` and `parse_json`.

    Raises:
        InputError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, where, most), where)


def parse_json(text: str, where: str, one_line: bool = False) -> Any:
    """Parse a JSON text. NaN and Infinity are accepted here; the rules of `checks` refuse them by name.

    Args:
        text: the JSON.
        where: name of the text in messages.
        one_line: the text is a line of a longer file, so messages name only the column.

    Raises:
        NotJsonError: the syntax is broken; the message says where.
        InputError: a key stands twice in an object, an integer does not fit in 64 bits, or there are more than
            `MAX_DEPTH` levels.
    """
    try:
        value = _JSON.decode(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if one_line else f"line {error.lineno}, column {error.colno}"
        raise NotJsonError(f"{where}: not JSON ({error.msg} at {place})") from None
    except _RefusedError as error:
        raise InputError(f"{where}: {error}") from None
    except RecursionError:
        raise InputError(f"{where}: expected at most {MAX_DEPTH} levels of nesting, got more") from None
    level, depth = [value], 0
    while level:
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        if inner and depth == MAX_DEPTH:
            raise InputError(f"{where}: expected at most {MAX_DEPTH} levels of nesting, got more")
        level, depth = [one for values in inner for one in values], depth + 1
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _RefusedError(f"key {shown(twice)} stands twice in one object")
    return values


def _integer(digits: str) -> int:
    if len(digits) > _INTEGER_DIGITS:
        raise _RefusedError(f"expected integers of 64 bits, got one of {len(digits)} digits")
    return int(digits)


_JSON = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)


def read_yaml(path: str | Path, where: str) -> Any:
    """Read the content of a YAML file; see `read_text` and `parse_yaml`.

    Raises:
        InputError: as `read_text` and `parse_yaml`.
    """
    return parse_yaml(read_text(path, where, _MAX_YAML), where)


def parse_yaml(text: str, where: str) -> Any:
    """Parse a YAML text like PyYAML's safe loader, except that 1e-3 is a number.

    Args:
        text: the YAML.
        where: name of the text in messages.

    Raises:
        NotYamlError: the syntax is broken, or a tag would run code.
        InputError: a key stands twice, there is an alias (aliases of aliases grow without bound), an integer does not
            fit in 64 bits, or there are too many levels.
    """
    import yaml

    try:
        loader = _yaml_loader()(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except _RefusedError as error:
        raise InputError(f"{where}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise NotYamlError(f"{where}: not a YAML file ({error.problem}{place})") from None
    except (yaml.YAMLError, *_ODD_TAGS) as error:
        raise NotYamlError(f"{where}: not a YAML file ({' '.join(str(error).split())[:120]})") from None


@cache
def _yaml_loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise _RefusedError(f"expected no alias, got *{self.peek_event().anchor}")
            self.depth += 1
            if self.depth > _YAML_DEEP:
                raise _RefusedError(f"expected at most {_YAML_DEEP} levels of nesting, got more")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in seen:
                        raise _RefusedError(f"key {shown(key.value)} stands twice (line {key.start_mark.line + 1})")
                    seen.add((key.tag, key.value))
            return super().construct_mapping(node, deep)

        def construct_yaml_int(self, node: Any) -> int:
            if len(node.value) > _INTEGER_DIGITS + 44:  # 64 bits in base 2
                raise _RefusedError(f"expected integers of 64 bits, got one of {len(node.value)} digits")
            return int(super().construct_yaml_int(node))

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    return Loader
