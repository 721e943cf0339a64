"""JSON and YAML from other sources, and values of the command line that are parsed in the same way."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmn_fast.checks import in_bytes, nearest, shown
from mmn_fast.cli import app
from mmn_fast.errors import InputError
from mmn_fast.storage.documents import MAX_DEPTH, parse_json, parse_yaml, read_json, read_text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, f"file: expected at most {MAX_DEPTH} levels of nesting, got more"),
        ('{"a":' * 100_000, f"file: expected at most {MAX_DEPTH} levels of nesting, got more"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"at most {MAX_DEPTH} levels of nesting"),
        ("1" * 100_000, "file: expected integers of 64 bits, got one of 100000 digits"),
        ('{"a": 1, "b": 2, "a": 3}', "file: key 'a' stands twice in one object"),
        ('[{"x": {"a": 1, "a": 1}}]', "file: key 'a' stands twice in one object"),
        ("{", r"file: not JSON \(.* at line 1, column 2\)"),
        ("", r"file: not JSON \("),
    ],
)
def test_bad_json_is_one_sentence(text: str, message: str) -> None:
    start = time.perf_counter()
    with pytest.raises(InputError, match=message) as refusal:
        parse_json(text, "file")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 200
    assert time.perf_counter() - start < 2


def test_json_as_deep_as_allowed_is_read() -> None:
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH, "file") is not None
    assert parse_json(f"[{2**63}, {-(2**63)}, 1e400]", "file") == [2**63, -(2**63), float("inf")]


def test_files_without_end_and_unreadable_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"file: expected at most 67.1 MB, got more"):
        read_json("/dev/zero", "file")
    with pytest.raises(InputError, match=r"file cannot be read \(Is a directory\)"):
        read_text(tmp_path, "file")
    (tmp_path / "latin").write_bytes(b'"\xe9"')
    with pytest.raises(InputError, match="file: expected UTF-8 text, got other bytes"):
        read_json(tmp_path / "latin", "file")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "marked", "file") == [1]


def test_yaml_reads_what_the_safe_loader_reads_but_exponents() -> None:
    text = "{a: 1, b: 1e-3, c: 2E4, d: .5e1, e: e5, f: 1.5, g: [x, true, null], h: -1e+2}"
    expected = {
        "a": 1,
        "b": 1e-3,
        "c": 2e4,
        "d": 5.0,
        "e": "e5",
        "f": 1.5,
        "g": ["x", True, None],
        "h": -100.0,
    }
    assert parse_yaml(text, "file") == expected
    assert type(parse_yaml("2E4", "file")) is float


@pytest.mark.parametrize(
    ("value", "shows"),
    [
        (10**5000, "an integer of 16610 bits"),
        ("x" * 1000, "xxx...xxx"),
        ("a\nb", r"'a\nb'"),
        ([[[[[1]]]]], "[[[[...]]]]"),
        ({"a": float("nan")}, "{'a': nan}"),
    ],
    ids=["integer", "text", "lines", "nested", "nan"],
)
def test_values_are_shown_in_short(value: object, shows: str) -> None:
    assert shows in shown(value)
    assert len(shown(value)) < 100
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert len(shown(deep)) < 100


def test_names_and_sizes_in_messages() -> None:
    assert nearest("MARGIM", ["MARGIN", "TAU"]) == "did you mean 'MARGIN'?"
    assert nearest("x", ["MARGIN", "TAU"]) == "expected one of MARGIN, TAU"
    assert [in_bytes(n) for n in (0, 999, 3_100_000_000_000, 10**30)] == ["0 bytes", "999 bytes", "3.1 TB", "1e+06 YB"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["exact=[" + "[" * 5000], "--backend-option: exact: expected at most 12 levels of nesting"),
        (["exact=[1]"], "--backend-option: exact: expected a number, true, false or text, got '[1]'"),
        (["exact=true", "exact=false"], "--backend-option: exact is given twice"),
        (["exact={a: 1"], "--backend-option: exact: expected a number, true, false or text, got"),
        (["max_packed_mib=" + "9" * 5000], "--backend-option: max_packed_mib: expected integers of 64 bits"),
    ],
)
def test_backend_options_are_checked(options: list[str], message: str) -> None:
    words = [word for option in options for word in ("--backend-option", option)]
    ran = CliRunner().invoke(app, ["info", "--model", "demo", *words])
    assert isinstance(ran.exception, InputError)  # main() prints the message and exits with 2
    assert message in str(ran.exception)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("width=64,width=128", "text_encoder: width stands twice"),
        ("widht=64", "unknown key 'widht'; did you mean 'width'"),
        ("width=0", "width: expected an integer >= 1, got 0"),
        ("width=1e2", "expected sizes .*, got 'width=1e2'"),
        ("width=" + "9" * 5000, "expected sizes"),
        ("width=100,num_heads=3", "width: expected a multiple of num_heads, 3, got 100"),
        ("vocab_size=1000000000", "imply 3.07 TB of weights of the text encoder"),
        ('{"width": true}', "width: expected an integer >= 1, got True"),
        ('{"width": 64, "width": 64}', "key 'width' stands twice"),
        ('{"width": ' + "[" * 100_000, "at most 32 levels of nesting"),
        ("{" + '"a": 1, ' * 5000, "text_encoder: not JSON"),
    ],
)
def test_sizes_of_a_text_encoder_are_checked(value: str, message: str) -> None:
    from mmn_fast.training.initial import parse_text_encoder

    with pytest.raises(InputError, match=message):
        parse_text_encoder(value, 100)


def test_sizes_of_a_text_encoder_come_from_a_file(tmp_path: Path) -> None:
    from mmn_fast.training.initial import parse_text_encoder

    (tmp_path / "sizes.json").write_text(json.dumps({"width": 64, "num_heads": 4}))
    read = parse_text_encoder(str(tmp_path / "sizes.json"), 100)
    assert (read.width, read.num_heads, read.vocab_size) == (64, 4, 100)
