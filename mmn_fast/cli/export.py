"""Commands that write a model in another form: convert, export, verify."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmn_fast.artifact.manifest import GRAPHS, MAX_RECALL_LOSS, is_export, read_manifest
from mmn_fast.cli.app import app
from mmn_fast.cli.options import AsJson, FeatureKey, PresetOption, TokenizerOption, size_of
from mmn_fast.cli.output import Output, show
from mmn_fast.cli.output import output as output_of_command
from mmn_fast.errors import InputError

if TYPE_CHECKING:
    from mmn_fast.export.deploy import Deployment
    from mmn_fast.export.to_int8 import Labelled


@app.command()
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="Official checkpoint, a .pth file; or a converted directory of an older format.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to create; must not exist.")],
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="Preset or its YAML file; a file of train --official-pth needs none."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="tokenizer.json, vocab.txt, a directory or hub id; needed if --preset is."),
    ] = None,
    text_heads: Annotated[
        int | None,
        typer.Option("--text-heads", help="Attention heads of the text encoder, if its width is not a published one."),
    ] = None,
    contract: Annotated[
        Path | None,
        typer.Option("--contract", help="How the model's features are made: a JSON file, or features.h5 with one."),
    ] = None,
) -> None:
    """Turn an official checkpoint into a directory that every command and mmn_fast.load() take."""
    from mmn_fast.checkpoint import convert as convert_checkpoint
    from mmn_fast.features.matching import read_contract
    from mmn_fast.weights.directory import CONFIG, read_config

    wanted = None if contract is None else read_contract(contract)
    convert_checkpoint(checkpoint, preset, tokenizer, output, text_heads, wanted)
    written = read_config(output / CONFIG)
    made = "" if written.contract is None else f", features of {written.contract.extractor}"
    show(f"{output}: preset {preset or written.preset.name}{made}, {size_of(output)}")


@dataclass(frozen=True)
class GraphOptions:
    """Options of the graphs that an export makes."""

    precision: Annotated[str, typer.Option("--precision", help="fp32, fp16, bf16 (for GPUs) or int8 (for CPUs).")] = (
        "fp32"
    )
    what: Annotated[str, typer.Option("--what", help="all, or some of video,text,score.")] = "all"
    raw_features: Annotated[
        bool, typer.Option("--raw-features", help="video.onnx takes source rows and lengths, not pre-clips.")
    ] = False
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", help="score.onnx also gives the K best moments, after NMS.")
    ] = None
    max_recall_loss: Annotated[float, typer.Option("--max-recall-loss", help="Points of R@1 that int8 may cost.")] = (
        MAX_RECALL_LOSS
    )

    @property
    def names(self) -> list[str]:
        """The names of the graphs to make."""
        return list(GRAPHS) if self.what == "all" else [name.strip() for name in self.what.split(",")]


@dataclass(frozen=True)
class Int8Options:
    """The data that an int8 export is measured on."""

    annotations: Annotated[
        Path | None,
        typer.Option("--annotations", help="Annotations to measure int8 on, as for eval; default: the demo's."),
    ] = None
    features: Annotated[Path | None, typer.Option("--features", help="Features of those videos, as for eval.")] = None
    feature_key: FeatureKey = None
    durations: Annotated[Path | None, typer.Option("--durations", help="As for eval.")] = None

    def labelled(self) -> Labelled | None:
        """The given data; None means the demo's."""
        from mmn_fast.export.to_int8 import Labelled

        beside = (self.durations, self.feature_key)
        if (self.annotations is None) != (self.features is None) or (
            beside != (None, None) and self.annotations is None
        ):
            raise InputError(
                "--annotations, --features: expected both or neither; --durations, --feature-key: only with them"
            )
        if self.annotations is None or self.features is None:
            return None
        return Labelled(self.annotations, self.features, *beside)


@dataclass(frozen=True)
class DeployOptions:
    """Products made from the graphs: TensorRT plans and a Triton repository."""

    tensorrt: Annotated[bool, typer.Option("--tensorrt", help="Also build plans, for this machine's GPU.")] = False
    hardware: Annotated[
        str, typer.Option("--hardware", help="GPUs of the plans: same-gpu, same-compute-capability or ampere-plus.")
    ] = "same-gpu"
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Plans that newer TensorRT versions run too.")
    ] = False
    tf32: Annotated[bool, typer.Option("--tf32", help="Let the plans' fp32 products use TF32.")] = False
    triton_repository: Annotated[
        Path | None,
        typer.Option("--triton-repository", help="Also write a Triton model repository here; must not exist."),
    ] = None


# Options of new graphs; refused if MODEL is an export that exists already.
_OF_THE_GRAPHS = (
    *(field.name for group in (GraphOptions, Int8Options) for field in fields(group)),
    "preset",
    "tokenizer",
)


@app.command()
def export(
    *,
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Converted directory, hub id, official .pth or demo.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory to create; not needed if MODEL is an export.")
    ] = None,
    graphs: GraphOptions,
    int8: Int8Options,
    beside: DeployOptions,
    preset: PresetOption = None,
    tokenizer: TokenizerOption = None,
    as_json: AsJson = False,
) -> None:
    """Export a model to ONNX graphs with a manifest; they appear once they are verified against the reference."""
    from mmn_fast.export.deploy import Deployment
    from mmn_fast.export.to_onnx import export as run
    from mmn_fast.export.verify import summary

    if beside.tensorrt and graphs.precision == "int8":
        raise InputError("--tensorrt: int8 is for CPUs, expected --precision fp16, bf16 or fp32")
    int8_data = int8.labelled()
    deployment = Deployment(**vars(beside))
    if output is None:
        _check_no_graphs_wanted(context, model, deployment)
        _deploy_only(deployment, Path(model), as_json)
        return
    deployment.check(output, graphs.names, graphs.raw_features)
    settings = {**vars(graphs), "what": graphs.names, "preset": preset, "tokenizer": tokenizer}
    run(model, output, int8_data=int8_data, **settings)
    found = read_manifest(output).verification
    with output_of_command() as out:
        if not as_json:
            out.show(f"{summary(output, found)}, {size_of(output)}")
        written = _deploy(deployment, output, out, as_json)
        if as_json:  # JSON is one document, so it comes last; failures before that are sentences
            more = {"written": written} if written else {}
            out.show(json.dumps({**found, **more, **({"failed": out.failures} if out.failures else {})}, indent=2))


def _check_no_graphs_wanted(context: typer.Context, model: str, deployment: Deployment) -> None:
    """Refuse a call without --output that asks for graphs."""
    if not (deployment.wanted and is_export(Path(model))):
        raise InputError(
            "--output: name a directory to create; it may be left out only if MODEL is an export, with --tensorrt or"
            " --triton-repository"
        )
    for name in _OF_THE_GRAPHS:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InputError(
                f"--{name.replace('_', '-')}: this option is for making graphs, but {model} is an export and has its"
                " own; name the model that it was made from, and --output"
            )


def _deploy_only(deployment: Deployment, directory: Path, as_json: bool) -> None:
    """Make plans or a repository from an existing export."""
    steps = deployment.steps(directory)
    if len(steps) == 1:  # no other step: its failure is the command's failure
        written = [str(path) for path in steps[0][1]()]
        show(json.dumps(written, indent=2) if as_json else "\n".join(written))
        return
    with output_of_command() as out:
        written = _deploy(deployment, directory, out, as_json)
        if as_json:
            out.show(json.dumps(written, indent=2))


def _deploy(deployment: Deployment, directory: Path, out: Output, as_json: bool) -> list[str]:
    """Make plans and repository one after another; list the written files, and print them unless `as_json`."""
    written: list[str] = []
    for name, step in deployment.steps(directory):
        made: list[Path] = []
        out.beside(name, lambda step=step, made=made: made.extend(step()))  # type: ignore[misc]
        written += map(str, made)
        if made and not as_json:
            out.show("\n".join(map(str, made)))
    return written


@app.command()
def verify(
    directory: Annotated[Path, typer.Argument(help="An export: a directory that `mmn-fast export` made.")],
    as_json: AsJson = False,
) -> None:
    """Check an export against its manifest and against the recorded outputs of the reference."""
    from mmn_fast.export.verify import summary
    from mmn_fast.export.verify import verify as run

    found = run(directory)
    show(json.dumps(found, indent=2) if as_json else summary(directory, found))
