"""Options that several commands share, and helpers that turn them into arguments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmn_fast.errors import InputError

if TYPE_CHECKING:
    from mmn_fast.engine import Engine
    from mmn_fast.evaluation.datasets import Annotations
    from mmn_fast.features import FeatureStore
    from mmn_fast.viz import Page

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Converted directory, hub id, or official .pth; default $MMN_FAST_MODEL."),
]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", help="Preset, or a YAML file (official, or of `preset new`); needed for a .pth file."),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option("--tokenizer", help="tokenizer.json, vocab.txt, a directory or hub id; needed for a .pth file."),
]
FeatureKey = Annotated[
    str | None,
    typer.Option("--feature-key", help="The array to take if a video has several; default: the preset's."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str, typer.Option("--precision", help="auto, fp64 (torch), fp32, bf16, fp16, fp8 or int8.")]
BackendOption = Annotated[str, typer.Option("--backend", help="auto, or a name that `mmn-fast info` lists.")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads; default $MMN_FAST_NUM_THREADS.")]
BackendSettings = Annotated[
    list[str] | None,
    typer.Option("--backend-option", help="NAME=VALUE, a setting of the backend; give the option again for more."),
]
Html = Annotated[Path | None, typer.Option("--html", help="Write a self-contained page here; must not exist.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Features = Annotated[Path, typer.Option("--features", help="HDF5 file, or a directory with one file per video.")]
Durations = Annotated[
    Path | None, typer.Option("--durations", help="Durations of the videos, for Charades-STA's text format.")
]
Protocol = Annotated[str, typer.Option("--protocol", help="mmn, 2dtan or qvh; of tubes: mmn or half-open.")]
AnyFeatures = Annotated[
    bool,
    typer.Option("--any-features", help="Take features that are made in another way than the model's, with a warning."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse to leave out, clamp, cut or skip anything.")]


@dataclass(frozen=True)
class EngineOptions:
    """How a command loads its engine."""

    preset: PresetOption = None
    tokenizer: TokenizerOption = None
    device: Device = "auto"
    precision: Precision = "auto"
    backend: BackendOption = "auto"
    threads: Threads = None
    backend_option: BackendSettings = None

    def load(self, model: str | None, progress: bool = True) -> Engine:
        """Load the engine of a model; None means the model that MMN_FAST_MODEL names."""
        from mmn_fast.engine import load
        from mmn_fast.process.environment import default_model

        model = model or default_model()
        if model is None:
            raise InputError("--model: give a converted directory, a hub id or a .pth file, or set MMN_FAST_MODEL")
        given = (self.preset, self.tokenizer, self.device, self.precision, self.backend, self.threads)
        return load(model, *given, progress=progress, backend_options=_settings(self.backend_option or []))


def _settings(items: list[str]) -> dict[str, Any]:
    """Parse NAME=VALUE items into a dict: 512 becomes a number, true a bool."""
    from mmn_fast.checks import fail
    from mmn_fast.storage.documents import NotYamlError, parse_yaml

    options: dict[str, Any] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--backend-option: expected NAME=VALUE, got {item!r}")
        if name in options:
            raise InputError(f"--backend-option: {name} is given twice")
        where, expected = f"--backend-option: {name}", "a number, true, false or text"
        try:
            options[name] = parse_yaml(value, where)
        except NotYamlError:
            raise fail(where, expected, value) from None
        if isinstance(options[name], (list, dict)):
            raise fail(where, expected, value)
    return options


@dataclass(frozen=True)
class SplitOptions:
    """Which videos of a split a command takes, and how."""

    durations: Durations = None
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first N videos.")] = None
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out videos without features and say how many.")
    ] = False
    strict: Strict = False
    any_features: AnyFeatures = False
    batch_size: Annotated[int, typer.Option("--batch-size", help="Videos per call.")] = 8

    def samples(self, annotations: Path, engine: Engine, truth: bool = True) -> Annotations:
        """Read the annotations with `read_annotations`."""
        from mmn_fast.evaluation.datasets import read_annotations

        return read_annotations(annotations, engine.preset, self.durations, self.strict, truth)

    def while_running(self) -> dict[str, Any]:
        """The keyword arguments that `evaluate` and `predict` share."""
        names = ("limit", "skip_missing", "strict", "any_features", "batch_size")
        return {**{name: getattr(self, name) for name in names}, "progress": True}


@dataclass(frozen=True)
class WindowOptions:
    """How videos that are longer than those of the training are cut."""

    window_s: Annotated[
        float | None,
        typer.Option("--window", help="Cut longer videos into windows of this many seconds; merge their moments."),
    ] = None
    overlap: Annotated[
        float | None, typer.Option("--overlap", help="Share of a window that the next one repeats; default 0.5.")
    ] = None

    def facts(self) -> dict[str, float]:
        """What JSON says about the windows; nothing if there are none."""
        from mmn_fast.windows.cuts import DEFAULT_OVERLAP

        if self.window_s is None:
            return {}
        return {"window_s": self.window_s, "overlap": DEFAULT_OVERLAP if self.overlap is None else self.overlap}


def open_split(features: Path, key: str | None, engine: Engine) -> FeatureStore:
    """Open the features of a split; `key` is the value of `--feature-key`."""
    from mmn_fast.errors import named_as
    from mmn_fast.features import open_features

    with named_as("path", "features"):
        return open_features(features, engine.preset.feature_key if key is None else key, engine.preset.input_size)


def integers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise InputError(f"{option}: expected integers separated by commas, got {text!r}") from None


def numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise InputError(f"{option}: expected numbers separated by commas, got {text!r}") from None


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
