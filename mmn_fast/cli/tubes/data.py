"""data hc-stvg: converts the published files of HC-STVG."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mmn_fast.cli.options import AsJson, Strict
from mmn_fast.cli.output import show
from mmn_fast.cli.train import data


@data.command()
def hc_stvg(
    tubes: Annotated[
        Path, typer.Option("--tubes", help="Folder of <video>_tubes.pkl, or of prepared files <video>.pkl.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to create; must not exist.")],
    features: Annotated[
        list[Path] | None,
        typer.Option(
            "--features", help="A stream: folder of prepared files, or file with rows; again for the next (CSN, flow)."
        ),
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option("--annotations", help="Official JSON or test queries; other videos are left out.")
    ] = None,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Convert the published pickles of HC-STVG (tubes, features) without running what they hold."""
    from mmn_fast.evaluation.tubes.convert import convert_hc_stvg

    report = convert_hc_stvg(tubes, features or (), output, annotations, strict, progress=True)
    facts = f"{report.num_videos} videos, {report.num_tubes} tubes, {report.num_sentences} sentences"
    show(json.dumps(report.to_dict(), indent=2) if as_json else f"{report.output}: {facts}")
