"""Checks of values that come from files or callers: a rule per value, one sentence per refusal.

A rule is called with a value and with the name that messages give it, and returns the value in its final type. Integers
are never bools, numbers are finite, and nothing is converted from text.
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
"""The largest size of anything: kernels count cells in 32 bits."""
MAX_BYTES = 16 * 2**30
"""What a model's weights, or one video's features, map or embeddings, may take; the published ones take 0.1 GiB."""

Rule = Callable[[object, str], Any]
_Kind = TypeVar("_Kind")


class _Short(reprlib.Repr):
    """repr in bounded time and space, whatever the value: repr() itself refuses integers of 4,300 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60
        self.maxlevel = 3

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 128 else f"an integer of {x.bit_length()} bits"


def shown(value: object) -> str:
    """A value for a message: on one line and short."""
    return " ".join(_Short().repr(value).split())


def nearest(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that looks most like it, else all of them."""
    names = list(known)
    lower = {other.lower(): other for other in names}
    close = difflib.get_close_matches(str(name)[:80].lower(), lower, 1)
    if close:
        return f"did you mean {lower[close[0]]!r}?"
    return f"expected one of {', '.join(names)}" if names else "expected none"


def in_bytes(number: int) -> str:
    """A number of bytes in the unit that suits it, such as "3.1 TB"."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
    power = min(int(math.log10(max(number, 1)) / 3), len(units) - 1)
    return f"{number / 1000**power:.3g} {units[power]}"


def fail(where: str, expected: str, value: object) -> InputError:
    """The refusal of a value, to raise."""
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
    """A finite number from `low` to `high`; `above` leaves out `low` itself."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __call__(self, value: object, where: str) -> float:
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise fail(where, str(self), value)
        try:
            number = float(value)
        except OverflowError:  # an integer beyond float64
            number = math.inf
        inside = self.low < number if self.above else self.low <= number
        if not (math.isfinite(number) and inside and number <= self.high):
            raise fail(where, str(self), value)
        return number

    def __str__(self) -> str:
        sign = ">" if self.above else ">="
        if math.isinf(self.high):
            return "a finite number" + ("" if math.isinf(self.low) else f" {sign} {self.low:g}")
        return f"a number {sign} {self.low:g} and <= {self.high:g}"


@dataclass(frozen=True)
class Text:
    """Text of `least` to `most` characters that UTF-8 can hold."""

    least: int = 1
    most: int = 10_000

    def __call__(self, value: object, where: str) -> str:
        if not isinstance(value, str) or not self.least <= len(value) <= self.most:
            raise fail(where, f"text of {self.least} to {self.most} characters", value)
        if not is_unicode(value):
            raise fail(where, "text without halves of surrogate pairs", value)
        return value


def is_unicode(text: str) -> bool:
    """Whether text can be encoded: JSON may hold half of a surrogate pair, which tokenizers and files refuse."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def flag(value: object, where: str) -> bool:
    """The rule of a bool."""
    if not isinstance(value, bool):
        raise fail(where, "true or false", value)
    return value


def anything(value: object, where: str) -> Any:
    """The rule of a value that nothing but people reads, or that is checked later."""
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
    """A list of `least` to `most` values of one rule; becomes a tuple."""

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
    """None, or a value of a rule."""

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
    """Refuse what is no object, lacks a key or has an unknown one.

    Args:
        record: what was read.
        known: its keys.
        where: what is read, for the message.
        required: keys that must be there; None: all of `known`.

    Returns:
        The record.

    Raises:
        InputError: as above; an unknown key is named with the known one that looks most like it.
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
        InputError: no object, an unknown or missing key, or a value that breaks its rule (named).
    """
    values = check_keys(record, rules, where)
    return {name: rule(values[name], f"{where}: {name}") for name, rule in rules.items()}


def check_fields(instance: object, rules: Mapping[str, Rule], where: str) -> None:
    """Put every field of a frozen dataclass to its rule and keep what the rule returns.

    Args:
        instance: being made, in `__post_init__`.
        rules: by name of the field.
        where: what it is, for the message.

    Raises:
        InputError: a value breaks its rule (named).
    """
    for name, rule in rules.items():
        object.__setattr__(instance, name, rule(getattr(instance, name), f"{where}: {name}"))


def build(kind: type[_Kind], values: object, where: str) -> _Kind:
    """A dataclass that checks its own values, from an object that was read.

    Args:
        kind: the dataclass; its own messages say what it is.
        values: its fields by name; those with a default may be left out.
        where: what is read, for messages about keys.

    Raises:
        InputError: no object, an unknown or missing field, or a value that the dataclass refuses.
    """
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    return kind(**check_keys(values, [f.name for f in fields], where, required))


def check_bytes(number: int, what: str, where: str) -> None:
    """Refuse sizes that imply more memory than any machine should give.

    Args:
        number: bytes.
        what: what takes them, such as "weights".
        where: whose sizes these are.

    Raises:
        InputError: more than `MAX_BYTES`; says how much.
    """
    if number > MAX_BYTES:
        raise InputError(f"{where}: these sizes imply {in_bytes(number)} of {what}; at most {in_bytes(MAX_BYTES)}")
