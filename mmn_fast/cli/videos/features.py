"""The command that makes features of video files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmn_fast.cli.app import app, removing_what_is_half_written
from mmn_fast.cli.options import AsJson
from mmn_fast.cli.output import output as output_of_command
from mmn_fast.errors import InputError

if TYPE_CHECKING:
    from mmn_fast.features.contract import FeatureContract


@dataclass(frozen=True)
class SamplingOptions:
    """How an extractor samples frames, and where it runs; the fields are `make_extractor`'s arguments."""

    fps: Annotated[float | None, typer.Option("--fps", help="Sampled frames a second; default the extractor's.")] = None
    clip_frames: Annotated[
        int | None, typer.Option("--clip-frames", help="Sampled frames per row; default the extractor's.")
    ] = None
    stride: Annotated[
        int | None, typer.Option("--stride", help="Sampled frames from one row to the next; default the extractor's.")
    ] = None
    extractor_output: Annotated[
        str | None, typer.Option("--extractor-output", help="The network's output that becomes a row.")
    ] = None
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto"
    precision: Annotated[str, typer.Option("--precision", help="auto (fp32), fp32, bf16 or fp16.")] = "auto"
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Clips that the network takes at once.")] = None
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads of each process.")] = None

    def given(self) -> dict[str, Any]:
        """The options as keyword arguments of `extract_features`."""
        return asdict(self)


@app.command("features")
@removing_what_is_half_written()
def features(
    videos: Annotated[
        list[str],
        typer.Argument(help="Files, folders, lists of files (.txt, one per line), or patterns in quotation marks."),
    ],
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="HDF5 file; an existing one keeps its videos and gets the others.")
    ],
    extractor: Annotated[
        str | None, typer.Option("--extractor", help="pixels, hf:<model id or directory>, or onnx:<file.onnx>.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The model that takes the features; its contract says how to make them."),
    ] = None,
    sampling: SamplingOptions,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes; each has the network once.")] = None,
    max_duration: Annotated[
        float | None, typer.Option("--max-duration", help="Skip videos that are longer, in seconds.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make features of video files; a killed run goes on where it was, and damaged videos are named and skipped."""
    from mmn_fast.features.extraction import extract_features

    running: dict[str, Any] = {"workers": workers, "max_duration_s": max_duration, "progress": True}
    wanted = None if model is None else _contract_of(model)
    report = extract_features(videos, output, extractor, contract=wanted, **running, **sampling.given())
    with output_of_command() as out:
        out.show(json.dumps(report.to_dict(), indent=2) if as_json else str(report))
        if report.skipped:
            out.status = 1


def _contract_of(model: str) -> FeatureContract:
    from mmn_fast.checkpoint import load_model

    contract = load_model(model).contract
    if contract is None:
        raise InputError(
            f"model: {model} does not say how its features are made (mmn-fast convert --contract adds that); give"
            " --extractor in its place"
        )
    return contract
