"""Options that several commands share, and helpers that turn them into arguments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmn_fast.errors import InputError

if TYPE_CHECKING:
    from mmn_fast.viz import Page

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Converted directory, hub id, or official .pth; default $MMN_FAST_MODEL."),
]
PresetOption = Annotated[
    str | None, typer.Option("--preset", help="Preset or official YAML file; needed for a .pth file.")
]
TokenizerOption = Annotated[
    str | None,
    typer.Option("--tokenizer", help="tokenizer.json, vocab.txt, a directory or hub id; needed for a .pth file."),
]
FeatureKey = Annotated[
    str | None,
    typer.Option("--feature-key", help="The array to take of a video that has several; default: the preset's."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str, typer.Option("--precision", help="auto, fp64 (torch), fp32, bf16, fp16, fp8 or int8.")]
BackendOption = Annotated[str, typer.Option("--backend", help="auto, or a name that `mmn-fast info` lists.")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads; default $MMN_FAST_NUM_THREADS.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--backend-option", help="NAME=VALUE, a setting of the backend; give the option again for more."),
]
Html = Annotated[Path | None, typer.Option("--html", help="Write a self-contained page here; must not exist.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def load_engine(
    model: str | None,
    preset: str | None,
    tokenizer: str | None,
    device: str,
    precision: str,
    backend: str,
    threads: int | None,
    backend_option: list[str] | None,
) -> Any:
    from mmn_fast.checks import fail
    from mmn_fast.engine import load
    from mmn_fast.process.environment import default_model
    from mmn_fast.storage.documents import NotYamlError, parse_yaml

    model = model or default_model()
    if model is None:
        raise InputError("--model: give a converted directory, a hub id or a .pth file, or set MMN_FAST_MODEL")
    options = {}
    for item in backend_option or []:
        name, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--backend-option: expected NAME=VALUE, got {item!r}")
        if name in options:
            raise InputError(f"--backend-option: {name} is given twice")
        where, expected = f"--backend-option: {name}", "a number, true, false or text"
        try:
            options[name] = parse_yaml(value, where)  # 512 is a number, true a bool
        except NotYamlError:
            raise fail(where, expected, value) from None
        if isinstance(options[name], (list, dict)):
            raise fail(where, expected, value)
    return load(model, preset, tokenizer, device, precision, backend, threads, progress=True, backend_options=options)


def integers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise InputError(f"{option}: expected integers separated by commas, got {text!r}") from None


def check_html(path: Path | None) -> None:
    if path is not None:
        from mmn_fast.viz import refuse_existing

        refuse_existing(path, "--html")


def save_html(page: Page, path: Path) -> None:
    page.save(path)
    typer.echo(f"{path}: {path.stat().st_size / 2**20:.1f} MiB", err=True)


def size_of(directory: Path) -> str:
    return f"{sum(file.stat().st_size for file in directory.iterdir()) / 2**20:.1f} MiB"


def lines_of(facts: dict[str, Any], indent: str = "") -> str:
    """Format nested facts as indented `name: value` lines."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}:", lines_of(value, indent + "  ")]
        else:
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            lines.append(f"{indent}{name}: {'-' if text in ({}, '', None) else text}")
    return "\n".join(lines)
