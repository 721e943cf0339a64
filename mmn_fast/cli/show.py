"""Commands that show: demo, bench, info."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmn_fast.cli.app import app
from mmn_fast.cli.options import (
    AsJson,
    BackendOption,
    BackendSettings,
    Device,
    EngineOptions,
    Model,
    Precision,
    PresetOption,
    Threads,
    TokenizerOption,
    lines_of,
)
from mmn_fast.cli.output import output, show
from mmn_fast.errors import InputError, WriteError

if TYPE_CHECKING:
    from mmn_fast.demo.show import Demonstration
    from mmn_fast.demo.show_tubes import TubesDemonstration


@app.command()
def demo(
    seed: Annotated[
        int | None, typer.Option("--seed", help="Number of the video; default: another one each time.")
    ] = None,
    html: Annotated[
        Path, typer.Option("--html", help="Page to write; replaced if there, and so is the video beside it, .mp4.")
    ] = Path("mmn-fast-demo.html"),
    tubes: Annotated[
        bool, typer.Option("--tubes", help="Ground sentences about one shape in tubes, and show their boxes.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A model trained on this world; default demo, with --tubes shapes-tubes."),
    ] = None,
    backend: BackendOption = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    backend_option: BackendSettings = None,
    as_json: AsJson = False,
) -> None:
    """Draw a new video, ground its sentences with the model in the box, and write a page that shows both."""
    import secrets

    if not html.parent.is_dir():
        raise InputError(f"--html: cannot write {html}: no such folder {html.parent}")
    if not html.name:
        raise InputError(f"--html: expected the name of a page, got {str(html)!r}")
    seed = secrets.randbelow(10**6) if seed is None else seed
    loading = EngineOptions(precision=precision, backend=backend, threads=threads, backend_option=backend_option)
    engine = loading.load(model or ("shapes-tubes" if tubes else "demo"))
    shown: Demonstration | TubesDemonstration
    file, unwritten = None if tubes else _file_beside(html), None
    if tubes:
        from mmn_fast.demo.show_tubes import demonstrate_tubes

        shown = demonstrate_tubes(engine, seed)
    else:
        from mmn_fast.demo.show import demonstrate

        try:
            shown = demonstrate(engine, seed, file=file)
        except WriteError as error:
            shown, file, unwritten = demonstrate(engine, seed), None, error
    with output() as out:
        if as_json:
            facts = {"seed": seed, "html": str(html), "video": file and str(file), "results": shown.to_list()}
            out.show(json.dumps(facts, indent=2))
        else:
            place = "" if file is None else f"{file}: "
            out.show(f"{place}video {shown.video.video_id}, {shown.video.duration_s:.1f} s (--seed {seed})")
            out.show(shown.table())
        if unwritten is not None:
            out.fail("--html", unwritten)
        if out.beside("--html", lambda: shown.page().save(html, overwrite=True)) and not as_json:
            out.show(str(html))


def _file_beside(html: Path) -> Path | None:
    """The video file of the demo's page; None, and a line that says why, if no video can be written here."""
    from mmn_fast.media.writing import encoder

    file = html.with_suffix(".mp4")
    if file == html:
        raise InputError(f"--html: expected the name of a page, got {html}, the name of its video")
    try:
        encoder()
    except InputError as error:
        typer.echo(f"mmn-fast: the video stays in memory: {error}", err=True)
        return None
    return file


@app.command()
def bench(
    model: Model = None,
    preset: PresetOption = None,
    tokenizer: TokenizerOption = None,
    device: Device = "auto",
    backend: Annotated[
        list[str] | None, typer.Option("--backend", help="A backend; give the option again for more; default: all.")
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option("--precision", help="fp32, bf16, ...; default: fp32 and bf16, or an export's own."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", help="Videos per call of encode_video; default: 1 and 16.")
    ] = None,
    sentences: Annotated[int, typer.Option("--sentences", help="Sentences per call of encode_text and of score.")] = 32,
    repeats: Annotated[int, typer.Option("--repeats", help="Timed calls of each backend and precision.")] = 9,
    quick: Annotated[bool, typer.Option("--quick", help="Batch 1, three calls, some seconds per stage.")] = False,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast this machine runs a model (default: the model in the box), by stage, backend and precision."""
    from rich.console import Console

    from mmn_fast.benchmarking.stages import BenchOptions, bench_model, table
    from mmn_fast.process.environment import default_model

    arguments = {
        "model": model or default_model() or "demo",
        "preset": preset,
        "tokenizer": tokenizer,
        "device": device,
        "threads": threads,
    }
    options = BenchOptions(
        arguments,
        backend or (),
        precision or (),
        batch or ((1,) if quick else (1, 16)),
        sentences,
        min(repeats, 3) if quick else repeats,
        limit_s=5.0 if quick else 60.0,
    )
    report = bench_model(options, on_event=lambda event: typer.echo(event, err=True))
    if as_json:
        show(json.dumps(report, indent=2))
        return
    terminal = sys.stdout is not None and sys.stdout.isatty()
    console = Console(width=None if terminal else 160)
    with console.capture() as printed:
        console.print(table(report))
    show(printed.get().rstrip("\n"))


@app.command()
def info(
    *,
    model: Model = None,
    loading: EngineOptions,
    as_json: AsJson = False,
) -> None:
    """Show what this installation can run; with --model, also how it would run that model."""
    import platform

    from mmn_fast.backends.registry import available_backends
    from mmn_fast.kernels import host
    from mmn_fast.presets import PRESETS
    from mmn_fast.process.environment import default_model
    from mmn_fast.version import __version__

    facts: dict[str, Any] = {
        "mmn_fast": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_isa": host.cpu_isa(),
        "build": host.build_info(),
        "presets": list(PRESETS),
        "backends": {
            name: reason or "available"
            for name, reason in available_backends(loading.device, loading.precision).items()
        },
    }
    if model is not None or default_model() is not None:
        facts["engine"] = loading.load(model).info()
    show(json.dumps(facts, indent=2) if as_json else lines_of(facts))
