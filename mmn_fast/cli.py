"""The command line: `mmn-fast convert | ground | eval | train | export | verify | data | demo | bench | info`.

Results go to stdout, progress and messages to stderr. Exit status 2 means bad input: one sentence says which
argument, what was expected and what came.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmn_fast.export.manifest import MAX_RECALL_LOSS
from mmn_fast.types import BackendUnavailable, InputError

if TYPE_CHECKING:
    from mmn_fast.viz import Page

app = typer.Typer(
    name="mmn-fast",
    help="Temporal grounding with the Mutual Matching Network: find the moments that sentences describe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

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
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str, typer.Option("--precision", help="auto, fp32, bf16, fp16, fp8 or int8.")]
BackendOption = Annotated[str, typer.Option("--backend", help="auto, or a name that `mmn-fast info` lists.")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads; default $MMN_FAST_NUM_THREADS.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--backend-option", help="NAME=VALUE, a setting of the backend; give the option again for more."),
]
Html = Annotated[Path | None, typer.Option("--html", help="Write a self-contained page here; must not exist.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_OF_THE_GRAPHS = (  # options of export that plans and repositories of an export do not take
    *("precision", "what", "raw_features", "top_k", "max_recall_loss"),
    *("annotations", "features", "durations", "preset", "tokenizer"),
)


@contextmanager
def _removing_what_is_half_written() -> Iterator[None]:
    """SIGTERM ends the process as Ctrl-C does, through every `finally`.

    Where Python runs on behalf of C (a callback, a destructor) an exception gets no further, or becomes another one, so
    it is raised again until one is on its way.
    """
    status, told = 128 + signal.SIGTERM, False

    def stop(number: int, frame: object) -> None:
        nonlocal told
        if not told or sys.exc_info()[1] is None:  # else one is on its way, through what removes
            told = True
            signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
            sys.exit(status)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGALRM)}
    try:
        yield
    except Exception:
        if not told:
            raise
        sys.exit(status)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@app.command()
@_removing_what_is_half_written()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Official checkpoint, a .pth file.")],
    preset: Annotated[str, typer.Option("--preset", help="Preset, or path of an official YAML file.")],
    tokenizer: Annotated[str, typer.Option("--tokenizer", help="tokenizer.json, vocab.txt, a directory or hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to create; must not exist.")],
) -> None:
    """Turn an official checkpoint into a directory that every command and mmn_fast.load() take."""
    from mmn_fast.checkpoint import convert as convert_checkpoint

    convert_checkpoint(checkpoint, preset, tokenizer, output)
    typer.echo(f"{output}: preset {preset}, {_size(output)}")


@app.command()
def ground(
    features: Annotated[str, typer.Option("--features", help="FILE or FILE::KEY: .h5, .npy, .npz, .pt, .safetensors.")],
    duration: Annotated[float, typer.Option("--duration", help="Length of the video in seconds.")],
    query: Annotated[list[str], typer.Option("--query", "-q", help="A sentence; give the option again for more.")],
    model: Model = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Moments per sentence.")] = 5,
    preset: PresetOption = None,
    tokenizer: TokenizerOption = None,
    device: Device = "auto",
    precision: Precision = "auto",
    backend: BackendOption = "auto",
    threads: Threads = None,
    backend_option: Options = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Find the moments of one video that sentences describe."""
    from mmn_fast.features import load_features
    from mmn_fast.types import Query, Video

    _check_html(html)
    video = Video(load_features(features), duration, video_id=features)
    engine = _load(model, preset, tokenizer, device, precision, backend, threads, backend_option)
    batch = [Query(video, query)]
    (result,) = engine.ground(batch, top_k=top_k)
    if html is not None:
        from mmn_fast.viz import grounded, report

        queries = grounded(query, result, maps=engine.score_maps(batch)[0], num_clips=engine.preset.num_clips)
        notes = [f"preset {engine.preset.name}"]
        _save_html(report(queries, duration, video_id=features, notes=notes, max_moments=top_k), html)
    if as_json:
        items = [
            {"query": sentence, "moments": [moment.to_dict() for moment in moments]}
            for sentence, moments in zip(query, result, strict=True)
        ]
        typer.echo(json.dumps({"features": features, "duration_s": duration, "results": items}, indent=2))
        return
    for sentence, moments in zip(query, result, strict=True):
        typer.echo(sentence)
        for rank, moment in enumerate(moments, start=1):
            typer.echo(f"  {rank:>3}  {moment.start_s:8.2f} s - {moment.end_s:8.2f} s   score {moment.score:.4f}")


@app.command("eval")
def evaluate(
    annotations: Annotated[
        Path, typer.Option("--annotations", help="Official JSON, Charades-STA text or QVHighlights JSONL.")
    ],
    features: Annotated[Path, typer.Option("--features", help="HDF5 file, or a directory with one file per video.")],
    model: Model = None,
    protocol: Annotated[str, typer.Option("--protocol", help="mmn or 2dtan.")] = "mmn",
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Write predictions here, as QVHighlights JSONL.")
    ] = None,
    durations: Annotated[
        Path | None, typer.Option("--durations", help="Durations of the videos, for Charades-STA's text format.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first N videos.")] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out videos without features and say how many.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Videos per call.")] = 8,
    preset: PresetOption = None,
    tokenizer: TokenizerOption = None,
    device: Device = "auto",
    precision: Precision = "auto",
    backend: BackendOption = "auto",
    threads: Threads = None,
    backend_option: Options = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model on annotations: R@n,IoU@m and mIoU."""
    from mmn_fast.evaluation.datasets import read_annotations
    from mmn_fast.evaluation.evaluate import QueryResult
    from mmn_fast.evaluation.evaluate import evaluate as run
    from mmn_fast.features import open_features

    _check_html(html)
    results: list[QueryResult] = []
    engine = _load(model, preset, tokenizer, device, precision, backend, threads, backend_option)
    samples = read_annotations(annotations, engine.preset, durations=durations)
    with open_features(features, engine.preset.feature_key) as store:
        report = run(
            engine,
            samples,
            store,
            protocol=protocol,
            predictions=predictions,
            limit=limit,
            skip_missing=skip_missing,
            batch_size=batch_size,
            progress=True,
            on_result=None if html is None else results.append,
        )
    if html is not None:
        from mmn_fast.viz import evaluation_report

        _save_html(evaluation_report(report, results, title=f"Evaluation on {annotations.name}"), html)
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.table())


data = typer.Typer(help="Make data sets.", no_args_is_help=True)
app.add_typer(data, name="data")


@data.command()
@_removing_what_is_half_written()
def shapes(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to create; must not exist.")],
    seed: Annotated[int, typer.Option("--seed", help="Another seed, other videos.")] = 0,
    train: Annotated[int, typer.Option("--train", help="Videos to train on.")] = 2500,
    val: Annotated[int, typer.Option("--val", help="Videos to validate on.")] = 100,
    test: Annotated[int, typer.Option("--test", help="Videos to test on.")] = 200,
    test_unseen: Annotated[
        int, typer.Option("--test-unseen", help="Videos of combinations that are not in training.")
    ] = 200,
    video: Annotated[bool, typer.Option("--video", help="Also write mp4 files; needs imageio[ffmpeg].")] = False,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes; default one per core.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make the procedural data set: coloured shapes that enter, move, grow, swap, meet, with sentences and times."""
    from mmn_fast.demo.shapes import write_dataset

    counts = {"train": train, "val": val, "test": test, "test_unseen": test_unseen}
    manifest = write_dataset(output, seed, counts, video, workers, progress=True)
    typer.echo(json.dumps(manifest, indent=2) if as_json else f"{output}:\n{_lines(manifest, '  ')}")


@app.command()
def train(
    preset: Annotated[str, typer.Option("--preset", help="Preset or official YAML file.")],
    annotations: Annotated[Path, typer.Option("--annotations", help="As for eval; the training split.")],
    features: Annotated[Path, typer.Option("--features", help="HDF5 file, or a directory with one file per video.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the run; the result is its model/.")],
    val_annotations: Annotated[
        Path | None, typer.Option("--val-annotations", help="Evaluate on these and keep the best model.")
    ] = None,
    val_features: Annotated[Path | None, typer.Option("--val-features", help="Default: --features.")] = None,
    durations: Annotated[
        Path | None, typer.Option("--durations", help="Durations of the videos, for Charades-STA's text format.")
    ] = None,
    init: Annotated[
        str | None, typer.Option("--init", help="Go on from a converted directory, hub id or official .pth.")
    ] = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(
            "--text-encoder",
            help="DistilBERT directory or hub id; or sizes to start from scratch: a JSON file or 'width=128,...'.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Default: that of --text-encoder or --init.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Default here and below: the preset's recipe.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Videos per step, over all processes.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="The text encoder's is lower.")] = None,
    milestones: Annotated[str | None, typer.Option("--milestones", help="Epochs, as in '8,13'.")] = None,
    freeze_text_epochs: Annotated[int | None, typer.Option("--freeze-text-epochs")] = None,
    all_losses_epochs: Annotated[int | None, typer.Option("--all-losses-epochs")] = None,
    contrastive_weight: Annotated[float | None, typer.Option("--contrastive-weight")] = None,
    text_rate: Annotated[
        float, typer.Option("--text-rate", help="Text encoder's learning rate over the rest's.")
    ] = 0.1,
    warmup_steps: Annotated[int, typer.Option("--warmup-steps", help="Steps over which the rate grows.")] = 0,
    dropout: Annotated[float, typer.Option("--dropout", help="Of the text encoder.")] = 0.1,
    losses: Annotated[str, typer.Option("--losses", help="full, no-cross-video or iou-only.")] = "full",
    seed: Annotated[int, typer.Option("--seed", help="Of weights, order and dropout.")] = 0,
    precision: Annotated[str, typer.Option("--precision", help="fp32, or autocast to bf16 or fp16.")] = "fp32",
    device: Device = "auto",
    threads: Threads = None,
    accumulate: Annotated[int, typer.Option("--accumulate", help="Compute a step's batch in N parts.")] = 1,
    share_negatives: Annotated[
        bool, typer.Option("--share-negatives", help="Negatives from all processes' videos (torchrun).")
    ] = False,
    share_statistics: Annotated[
        bool, typer.Option("--share-statistics", help="BatchNorm statistics over all processes (torchrun).")
    ] = False,
    evaluate_every: Annotated[int, typer.Option("--evaluate-every", help="Epochs between evaluations.")] = 1,
    checkpoint_every: Annotated[
        int, typer.Option("--checkpoint-every", help="Steps between checkpoints, beside one per epoch; 0: none.")
    ] = 0,
    cache_gib: Annotated[float, typer.Option("--cache-gib", help="Keep features that fit so much memory.")] = 4.0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse annotations that the official code cuts or drops.")
    ] = False,
    skip_missing: Annotated[bool, typer.Option("--skip-missing", help="Leave out videos without features.")] = False,
    official_pth: Annotated[bool, typer.Option("--official-pth", help="Write model.pth too.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's checkpoint.")] = False,
) -> None:
    """Train a model by the official recipe; under torchrun on several devices."""
    import dataclasses

    from mmn_fast.environment import requested_threads
    from mmn_fast.presets import get_preset
    from mmn_fast.training.trainer import InterruptedRunError, TrainOptions
    from mmn_fast.training.trainer import train as run

    chosen = get_preset(preset)
    overrides = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "milestones": None if milestones is None else _integers("--milestones", milestones),
        "freeze_text_epochs": freeze_text_epochs,
        "all_losses_epochs": all_losses_epochs,
        "contrastive_weight": contrastive_weight,
    }
    given: dict[str, Any] = {name: value for name, value in overrides.items() if value is not None}
    options = TrainOptions(
        preset=chosen,
        annotations=annotations,
        features=features,
        output=output,
        val_annotations=val_annotations,
        val_features=val_features,
        durations=durations,
        init=init,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        recipe=dataclasses.replace(chosen.recipe, **given),
        text_rate=text_rate,
        warmup_steps=warmup_steps,
        dropout=dropout,
        losses=losses,  # type: ignore[arg-type]  # TrainOptions checks it
        seed=seed,
        precision=precision,  # type: ignore[arg-type]
        device=device,
        threads=requested_threads(threads),
        accumulate=accumulate,
        share_negatives=share_negatives,
        share_statistics=share_statistics,
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
        cache_gib=cache_gib,
        strict=strict,
        skip_missing=skip_missing,
        official_pth=official_pth,
        resume=resume,
        progress=True,
    )
    try:
        result = run(options)
    except InterruptedRunError as stopped:
        typer.echo(f"mmn-fast: {stopped} (--resume)", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{result}: preset {chosen.name}, {_size(result)}")


@app.command()
@_removing_what_is_half_written()
def export(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Converted directory, hub id, official .pth or demo.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory to create; not needed if MODEL is an export.")
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", help="fp32, fp16, bf16 (for GPUs) or int8 (for CPUs).")
    ] = "fp32",
    what: Annotated[str, typer.Option("--what", help="all, or some of video,text,score.")] = "all",
    raw_features: Annotated[
        bool, typer.Option("--raw-features", help="video.onnx takes source rows and lengths, not pre-clips.")
    ] = False,
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", help="score.onnx also gives the K best moments, after NMS.")
    ] = None,
    max_recall_loss: Annotated[
        float, typer.Option("--max-recall-loss", help="Points of R@1 that int8 may cost.")
    ] = MAX_RECALL_LOSS,
    annotations: Annotated[
        Path | None, typer.Option("--annotations", help="What int8 is measured on, as of eval; default: the demo's.")
    ] = None,
    features: Annotated[Path | None, typer.Option("--features", help="Features of those videos, as of eval.")] = None,
    durations: Annotated[Path | None, typer.Option("--durations", help="As of eval.")] = None,
    tensorrt: Annotated[bool, typer.Option("--tensorrt", help="Also build plans, for this machine's GPU.")] = False,
    hardware: Annotated[
        str, typer.Option("--hardware", help="GPUs of the plans: same-gpu, same-compute-capability or ampere-plus.")
    ] = "same-gpu",
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Plans that newer TensorRT versions run too.")
    ] = False,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let the plans' fp32 products use TF32.")] = False,
    triton_repository: Annotated[
        Path | None,
        typer.Option("--triton-repository", help="Also write a Triton model repository here; must not exist."),
    ] = None,
    preset: PresetOption = None,
    tokenizer: TokenizerOption = None,
    as_json: AsJson = False,
) -> None:
    """Write a model as ONNX graphs with a manifest, verified against the reference before they appear."""
    from mmn_fast.export.deploy import Deployment
    from mmn_fast.export.manifest import GRAPHS, is_export, read_manifest
    from mmn_fast.export.to_int8 import Labelled
    from mmn_fast.export.to_onnx import export as run
    from mmn_fast.export.verify import summary

    if tensorrt and precision == "int8":
        raise InputError("--tensorrt: int8 is for CPUs, expected --precision fp16, bf16 or fp32")
    if (annotations is None) != (features is None) or (durations is not None and annotations is None):
        raise InputError("--annotations, --features: expected both or neither; --durations: only with them")
    int8_data = None if annotations is None or features is None else Labelled(annotations, features, durations)
    deployment = Deployment(tensorrt, hardware, version_compatible, tf32, triton_repository)
    if output is None:
        if not (deployment.wanted and is_export(Path(model))):
            raise InputError(
                "--output: name a directory to create (only an export as MODEL, with --tensorrt or --triton-repository,"
                " needs none)"
            )
        for name in _OF_THE_GRAPHS:
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                raise InputError(
                    f"--{name.replace('_', '-')}: it is for graphs that are made now, {model} is an export and has its"
                    " own; name the model that it was made from and --output"
                )
        written = deployment.run(Path(model))
        typer.echo(json.dumps(list(map(str, written)), indent=2) if as_json else "\n".join(map(str, written)))
        return
    names = list(GRAPHS) if what == "all" else [name.strip() for name in what.split(",")]
    deployment.check(output, names, raw_features)
    run(
        model,
        output,
        precision=precision,
        what=names,
        raw_features=raw_features,
        top_k=top_k,
        max_recall_loss=max_recall_loss,
        int8_data=int8_data,
        preset=preset,
        tokenizer=tokenizer,
    )
    found = read_manifest(output).verification
    size = _size(output)
    written = deployment.run(output)
    if as_json:
        more = {"written": list(map(str, written))} if written else {}
        typer.echo(json.dumps({**found, **more}, indent=2))
        return
    typer.echo("\n".join([f"{summary(output, found)}, {size}", *map(str, written)]))


@app.command()
def verify(
    directory: Annotated[Path, typer.Argument(help="What `mmn-fast export` made.")], as_json: AsJson = False
) -> None:
    """Hold an export to its manifest and to the reference's recorded outputs."""
    from mmn_fast.export.verify import summary
    from mmn_fast.export.verify import verify as run

    found = run(directory)
    typer.echo(json.dumps(found, indent=2) if as_json else summary(directory, found))


@app.command()
def demo(
    seed: Annotated[int | None, typer.Option("--seed", help="Which video; default another one each time.")] = None,
    html: Annotated[Path, typer.Option("--html", help="Page to write; replaced if there.")] = Path(
        "mmn-fast-demo.html"
    ),
    model: Annotated[str, typer.Option("--model", "-m", help="A model of this world.")] = "demo",
    backend: BackendOption = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    backend_option: Options = None,
    as_json: AsJson = False,
) -> None:
    """Draw a new video, ground its sentences with the model in the box, and write a page that shows both."""
    import secrets

    from mmn_fast.demo.show import demonstrate

    if not html.parent.is_dir():
        raise InputError(f"--html: cannot write {html}: no such folder {html.parent}")
    seed = secrets.randbelow(10**6) if seed is None else seed
    shown = demonstrate(_load(model, None, None, "auto", precision, backend, threads, backend_option), seed)
    shown.page().save(html, overwrite=True)
    if as_json:
        typer.echo(json.dumps({"seed": seed, "html": str(html), "results": shown.to_list()}, indent=2))
        return
    typer.echo(f"video {shown.video.video_id}, {shown.video.duration_s:.1f} s (--seed {seed})\n{shown.table()}\n{html}")


@app.command()
def bench(
    model: Model = None,
    preset: PresetOption = None,
    tokenizer: TokenizerOption = None,
    device: Device = "auto",
    backend: Annotated[
        list[str] | None, typer.Option("--backend", help="A backend; give the option again for more; default all.")
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option("--precision", help="fp32, bf16, ...; default fp32 and bf16, or an export's own."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", help="Videos per call of encode_video; default 1 and 16.")
    ] = None,
    sentences: Annotated[int, typer.Option("--sentences", help="Per call of encode_text and score.")] = 32,
    repeats: Annotated[int, typer.Option("--repeats", help="Timed calls of each.")] = 9,
    quick: Annotated[bool, typer.Option("--quick", help="Batch 1, three calls, some seconds per stage.")] = False,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast this machine runs a model, by stage, backend and precision; default the model in the box."""
    from rich.console import Console

    from mmn_fast.benchmarking.stages import BenchOptions, bench_model, table
    from mmn_fast.environment import default_model

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
        typer.echo(json.dumps(report, indent=2))
        return
    Console(width=None if sys.stdout.isatty() else 160).print(table(report))


@app.command()
def info(
    model: Model = None,
    preset: PresetOption = None,
    tokenizer: TokenizerOption = None,
    device: Device = "auto",
    precision: Precision = "auto",
    backend: BackendOption = "auto",
    threads: Threads = None,
    backend_option: Options = None,
    as_json: AsJson = False,
) -> None:
    """Say what this installation can run, and with --model what would run it."""
    import platform

    from mmn_fast.backends.registry import available_backends
    from mmn_fast.environment import default_model
    from mmn_fast.kernels import native
    from mmn_fast.presets import PRESETS
    from mmn_fast.version import __version__

    facts: dict[str, Any] = {
        "mmn_fast": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_isa": native.cpu_isa(),
        "build": native.build_info(),
        "presets": list(PRESETS),
        "backends": {name: reason or "available" for name, reason in available_backends(device, precision).items()},
    }
    if model is not None or default_model() is not None:
        facts["engine"] = _load(model, preset, tokenizer, device, precision, backend, threads, backend_option).info()
    typer.echo(json.dumps(facts, indent=2) if as_json else _lines(facts))


def _load(
    model: str | None,
    preset: str | None,
    tokenizer: str | None,
    device: str,
    precision: str,
    backend: str,
    threads: int | None,
    backend_option: list[str] | None,
) -> Any:
    import yaml

    from mmn_fast.engine import load
    from mmn_fast.environment import default_model

    model = model or default_model()
    if model is None:
        raise InputError("--model: give a converted directory, a hub id or a .pth file, or set MMN_FAST_MODEL")
    options = {}
    for item in backend_option or []:
        name, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--backend-option: expected NAME=VALUE, got {item!r}")
        try:
            options[name] = yaml.safe_load(value)  # 512 is a number, true a bool
        except yaml.YAMLError:
            raise InputError(
                f"--backend-option: {name}: expected a number, true, false or text, got {value!r}"
            ) from None
    return load(model, preset, tokenizer, device, precision, backend, threads, progress=True, backend_options=options)


def _integers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise InputError(f"{option}: expected integers separated by commas, got {text!r}") from None


def _check_html(path: Path | None) -> None:
    if path is not None:
        from mmn_fast.viz import refuse_existing

        refuse_existing(path, "--html")


def _save_html(page: Page, path: Path) -> None:
    page.save(path)
    typer.echo(f"{path}: {path.stat().st_size / 2**20:.1f} MiB", err=True)


def _size(directory: Path) -> str:
    return f"{sum(file.stat().st_size for file in directory.iterdir()) / 2**20:.1f} MiB"


def _lines(facts: dict[str, Any], indent: str = "") -> str:
    """Nested facts as indented `name: value` lines."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}:", _lines(value, indent + "  ")]
        else:
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            lines.append(f"{indent}{name}: {'-' if text in ({}, '', None) else text}")
    return "\n".join(lines)


def main() -> None:
    """Run the command line; bad input is one sentence on stderr and exit status 2."""
    try:
        app()
    except (InputError, BackendUnavailable) as error:
        typer.echo(f"mmn-fast: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:  # not about a file that the user named
            raise
        typer.echo(f"mmn-fast: {error.filename}: {error.strerror}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
