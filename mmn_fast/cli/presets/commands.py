"""Commands about presets: list those of the package, show one, write one's own to a file."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmn_fast.cli.app import app
from mmn_fast.cli.names import Commands
from mmn_fast.cli.options import AsJson
from mmn_fast.cli.output import show as show_text
from mmn_fast.cli.presets.values import FullRecipeOptions, LossOptions, SizeOptions, changed
from mmn_fast.errors import InputError, named_as

if TYPE_CHECKING:
    from mmn_fast.cli.presets.facts import PresetFacts
    from mmn_fast.presets import Preset

_SUFFIXES = (".yaml", ".yml")

presets = Commands(help="List, show and write presets: the sizes, losses and recipe of a model.", no_args_is_help=True)
app.add_typer(presets, name="preset")


@presets.command("list")
def list_presets(as_json: AsJson = False) -> None:
    """List the package's presets with their sizes."""
    from mmn_fast.cli.presets.facts import PresetFacts
    from mmn_fast.evaluation.evaluate import framed_table
    from mmn_fast.presets import PRESETS

    facts = {name: PresetFacts.of(one) for name, one in PRESETS.items()}
    if as_json:
        show_text(json.dumps({name: PRESETS[name].to_dict() | facts[name].to_dict() for name in PRESETS}, indent=2))
        return
    rows = [["preset", "T", "N", "D", "P", "convolution", "GFLOP", "MiB"]]
    for name, one in PRESETS.items():
        found = facts[name]
        streams = "+".join(map(str, one.feature_streams))
        conv = f"{one.conv_layers} x {one.conv_kernel}x{one.conv_kernel}"
        sizes = [one.num_pre_clips, one.num_clips, streams, found.num_proposals, conv]
        rows.append([name, *map(str, sizes), _gflop(found.gflop), f"{found.weights_mib:.1f}"])
    show_text(framed_table(rows) + "\n`mmn-fast preset show NAME` says what the columns mean.")


@presets.command()
def show(
    preset: Annotated[str, typer.Argument(help="A preset's name, or a YAML file.")],
    duration: Annotated[
        float | None, typer.Option("--duration", help="Length of a video: say its moments in seconds.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a preset's map of moments; say its proposals, its work per video, and its shortest and longest moment."""
    from mmn_fast.cli.presets.facts import PresetFacts
    from mmn_fast.features import check_duration
    from mmn_fast.presets import get_preset

    chosen = get_preset(preset)
    with named_as("duration_s", "duration"):
        seconds = None if duration is None else check_duration(duration)
    facts = PresetFacts.of(chosen)
    if as_json:
        moments = {} if seconds is None else {"moments": facts.moments(chosen, seconds)}
        show_text(json.dumps({"preset": chosen.to_dict(), **facts.to_dict(), **moments}, indent=2))
        return
    show_text("\n".join([*_lines(chosen, facts, seconds), "", *_map(chosen)]))


@presets.command()
def new(
    *,
    base: Annotated[str, typer.Option("--from", help="The preset to change: a name, or a YAML file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="YAML file to write; must not exist.")],
    name: Annotated[str | None, typer.Option("--name", help="The new preset's name; default: the file's.")] = None,
    sizes: SizeOptions,
    losses: LossOptions,
    recipe: FullRecipeOptions,
) -> None:
    """Write a preset of your own: every option that is given replaces a value of --from."""
    from mmn_fast.cli.presets.facts import PresetFacts
    from mmn_fast.preset_files.own import check_own_name, own_text
    from mmn_fast.presets import PRESETS, get_preset
    from mmn_fast.storage.files import refuse_existing, write_whole

    if output.suffix.lower() not in _SUFFIXES:
        raise InputError(f"--output: expected a file that ends in .yaml, got {str(output)!r}")
    with named_as("preset", "base"):
        chosen = get_preset(base)
    name = output.stem if name is None else name
    check_own_name(name, PRESETS, "--name")
    made = changed(chosen, name, sizes, losses, recipe)
    refuse_existing(output, "output")
    write_whole(
        output, own_text(made, shlex.join(["mmn-fast", *sys.argv[1:]])).encode(), overwrite=False, argument="output"
    )
    facts = PresetFacts.of(made)
    show_text(f"{output}: preset {made.name}, {facts.num_proposals} proposals, {_gflop(facts.gflop)} GFLOP per video")


def _lines(chosen: Preset, facts: PresetFacts, duration_s: float | None) -> list[str]:
    T, N = chosen.num_pre_clips, chosen.num_clips
    streams = " + ".join(map(str, chosen.feature_streams))
    kernel, shape = chosen.conv_kernel, "learned" if chosen.pooling == "conv" else "max"
    rank = "c u, between tubes" if chosen.of_tubes else f"(0.5 c + 0.5)^{chosen.score_power:g} u"
    rows = {
        "features": f"{streams} wide, averaged to T = {T} pre-clips, pooled to N = {N} clips",
        "proposals": f"P = {facts.num_proposals} of {facts.num_spans} spans of clips ({shape} pooling,"
        f" {', '.join(map(str, chosen.pooling_counts)) or 'no'} diagonals at stride 1, 2, 4, ...)",
        "convolution": f"{chosen.conv_layers} layers, {kernel}x{kernel}, {chosen.conv_hidden_size} wide; a proposal"
        f" sees {facts.reach} cells around it",
        "work": f"{_gflop(facts.gflop)} GFLOP per video ({_gflop(facts.gflop_dense)} if convolved over whole maps)",
        "weights": f"{facts.weights_mib:.1f} MiB in fp32, without the text encoder",
        "embeddings": f"{facts.embeddings_mib:.2f} MiB per video",
        "ranked by": f"{rank}, NMS at IoU {chosen.nms_iou:g}",
        "moments": _moments(chosen, facts, duration_s),
    }
    if facts.longest_clips < N:
        rows["beware"] = f"no proposal covers more than {facts.longest_clips} of the {N} clips"
    width = max(map(len, rows))
    return [f"preset {chosen.name}", *(f"  {name:<{width}}  {text}" for name, text in rows.items())]


def _gflop(work: float) -> str:
    return f"{work:.0f}" if work >= 100 else f"{work:.3g}"


def _moments(chosen: Preset, facts: PresetFacts, duration_s: float | None) -> str:
    N = chosen.num_clips
    if duration_s is None:
        shortest, longest = f"{facts.shortest_clips}/{N}", f"{facts.longest_clips}/{N}"
        return f"shortest {shortest}, longest {longest} of a video (in seconds: --duration)"
    moments = facts.moments(chosen, duration_s)
    return (
        f"shortest {moments['shortest_s']:.4g} s, longest {moments['longest_s']:.4g} s in a video of {duration_s:g} s;"
        f" give it a feature every {moments['row_s']:.3g} s or more often"
    )


def _map(chosen: Preset) -> list[str]:
    from mmn_fast.cli.presets.drawing import draw_map
    from mmn_fast.geometry import plan_for

    width = min(shutil.get_terminal_size((80, 24)).columns, 120) - 4
    encoding: Any = getattr(sys.stdout, "encoding", None) or "ascii"
    ascii_only = not encoding.lower().replace("-", "").startswith("utf")
    lines = draw_map(plan_for(chosen).mask, max(width, 8), ascii_only)
    return ["moments: a row per start (downwards), a column per end (to the right)", *(f"  {line}" for line in lines)]
