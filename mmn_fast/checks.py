"""Checks of values that come from files or callers: one rule per value, one sentence per refusal.

A rule takes a value and its name in messages, and returns the value in its final type. Integers are never bools,
numbers are finite, and no value is converted from text.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from mmn_fast.errors import InputError

MAX_COUNT = 2**31 - 1
"""Largest allowed size of anything: kernels count cells in 32 bits."""
MAX_BYTES = 16 * 2**30
"""Most memory of a model's weights, or of one video's features, map or embeddings; published ones take 0.1 GiB."""

Rule = Callable[[object, str], Any]
_Kind = TypeVar("_Kind")


class _Short(reprlib.Repr):
    """repr in bounded time and space for any value; repr() itself refuses integers of 4,300 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60
        self.maxlevel = 3

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 128 else f"an integer of {x.bit_length()} bits"


def shown(value: object) -> str:
    """Show a value in a message: on one line and short."""
    return " ".join(_Short().repr(value).split())


def nearest(name: object, known: Iterable[str]) -> str:
    """End of a message about an unknown name: names the most similar known name, or else all known names."""
    names = list(known)
    lower = {other.lower(): other for other in names}
    close = difflib.get_close_matches(str(name)[:80].lower(), lower, 1)
    if close:
        return f"did you mean {lower[close[0]]!r}?"
    return f"expected one of {', '.join(names)}" if names else "expected none"


def in_bytes(number: int) -> str:
    """A number of bytes in a suitable unit, such as "3.1 TB"."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
    power = min(int(math.log10(max(number, 1)) / 3), len(units) - 1)
    return f"{number / 1000**power:.3g} {units[power]}"


def fail(where: str, expected: str, value: object) -> InputError:
    """The error that refuses a value; the caller raises it."""
    return InputError(f"{where}: expected {expected}, got {shown(value)}")


@dataclass(frozen=True)
class Integer:
    """An integer from `low` to `high`."""

    low: int = 1
    high: int = MAX_COUNT

    def __call__(self, value: object, where: str) -> int:
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < self.low:
            raise fail(where, f"an integer >= {self.low}", value)
        if value > self.high:
            raise fail(where, f"an integer from {self.low} to {self.high}", value)
        return int(value)


@dataclass(frozen=True)
class Number:
    """A finite number from `low` to `high`; `above` leaves out `low` itself, `below` leaves out `high`."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __call__(self, value: object, where: str) -> float:
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise fail(where, str(self), value)
        try:
            number = float(value)
        except OverflowError:  # an integer beyond float64
            number = math.inf
        inside = self.low < number if self.above else self.low <= number
        inside = inside and (number < self.high if self.below else number <= self.high)
        if not (math.isfinite(number) and inside):
            raise fail(where, str(self), value)
        return number

    def __str__(self) -> str:
        sign = ">" if self.above else ">="
        if math.isinf(self.high):
            return "a finite number" + ("" if math.isinf(self.low) else f" {sign} {self.low:g}")
        return f"a number {sign} {self.low:g} and {'<' if self.below else '<='} {self.high:g}"


@dataclass(frozen=True)
class Text:
    """Text of `least` to `most` characters that UTF-8 can encode."""

    least: int = 1
    most: int = 10_000

    def __call__(self, value: object, where: str) -> str:
        if not isinstance(value, str) or not self.least <= len(value) <= self.most:
            raise fail(where, f"text of {self.least} to {self.most} characters", value)
        if not is_unicode(value):
            raise fail(where, "text without halves of surrogate pairs", value)
        return value


def is_unicode(text: str) -> bool:
    """Whether text can be encoded; JSON may hold half a surrogate pair, and tokenizers and files refuse it."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def flag(value: object, where: str) -> bool:
    """Rule for a bool."""
    if not isinstance(value, bool):
        raise fail(where, "true or false", value)
    return value


def anything(value: object, where: str) -> Any:
    """Rule for a value that only people read, or that is checked later."""
    return value


@dataclass(frozen=True)
class OneOf:
    """One of some texts."""

    choices: tuple[str, ...]

    def __call__(self, value: object, where: str) -> str:
        if not isinstance(value, str) or value not in self.choices:
            raise fail(where, " or ".join(map(repr, self.choices)), value)
        return value


@dataclass(frozen=True)
class Each:
    """A list of `least` to `most` values of one rule; the result is a tuple."""

    rule: Rule
    least: int = 1
    most: int = 10_000

    def __call__(self, value: object, where: str) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or not self.least <= len(value) <= self.most:
            count = str(self.most) if self.least == self.most else f"{self.least} to {self.most}"
            raise fail(where, f"a list of {count} values", value)
        return tuple(self.rule(one, f"{where}[{index}]") for index, one in enumerate(value))


@dataclass(frozen=True)
class Optional:
    """None, or a value that follows a rule."""

    rule: Rule

    def __call__(self, value: object, where: str) -> Any:
        return None if value is None else self.rule(value, where)


@dataclass(frozen=True)
class MapOf:
    """An object whose keys are texts and whose values follow one rule."""

    rule: Rule

    def __call__(self, value: object, where: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise fail(where, "an object", value)
        return {Text()(key, f"{where}: key"): self.rule(one, f"{where}: {shown(key)}") for key, one in value.items()}


def check_keys(
    record: object, known: Collection[str], where: str, required: Collection[str] | None = None
) -> dict[str, Any]:
    """Refuse a value that is no object, lacks a key or has an unknown key.

    Args:
        record: the value that was read.
        known: all allowed keys.
        where: name of the record in messages.
        required: keys that must be there; None means all of `known`.

    Returns:
        The record.

    Raises:
        InputError: as above; an unknown key is named together with the most similar known key.
    """
    if not isinstance(record, Mapping):
        raise fail(where, f"an object with {', '.join(known)}", record)
    for key in record:
        if key not in known:
            raise InputError(f"{where}: unknown key {shown(key)}; {nearest(key, known)}")
    missing = [name for name in (known if required is None else required) if name not in record]
    if missing:
        raise InputError(f"{where}: missing {', '.join(missing)}")
    return dict(record)


def check_record(record: object, rules: Mapping[str, Rule], where: str) -> dict[str, Any]:
    """The values of an object that has exactly the keys of `rules`, each as its rule returns it.

    Raises:
        InputError: not an object, an unknown or missing key, or a value that breaks its rule (the key is named).
    """
    values = check_keys(record, rules, where)
    return {name: rule(values[name], f"{where}: {name}") for name, rule in rules.items()}


def check_fields(instance: object, rules: Mapping[str, Rule], where: str) -> None:
    """Apply a rule to every field of a frozen dataclass and store the rule's result in the field.

    Args:
        instance: the instance under construction, in `__post_init__`.
        rules: name of the field -> its rule.
        where: name of the instance in messages.

    Raises:
        InputError: a value breaks its rule (the field is named).
    """
    for name, rule in rules.items():
        object.__setattr__(instance, name, rule(getattr(instance, name), f"{where}: {name}"))


def build(kind: type[_Kind], values: object, where: str) -> _Kind:
    """Build a dataclass that checks its own values from an object that was read.

    Args:
        kind: the dataclass; it names itself in its messages about values.
        values: fields by name; fields with a default may be left out.
        where: name of the object in messages about keys.

    Raises:
        InputError: not an object, an unknown or missing field, or a value that the dataclass refuses.
    """
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    return kind(**check_keys(values, [f.name for f in fields], where, required))


def check_bytes(number: int, what: str, where: str) -> None:
    """Refuse sizes that imply more memory than a machine should give.

    Args:
        number: bytes.
        what: what takes the memory, such as "weights".
        where: owner of the sizes, for the message.

    Raises:
        InputError: more than `MAX_BYTES`; the message says how much.
    """
    if number > MAX_BYTES:
        raise InputError(f"{where}: these sizes imply {in_bytes(number)} of {what}; at most {in_bytes(MAX_BYTES)}")
