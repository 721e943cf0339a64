"""README, CONTRIBUTING and docs/: links lead somewhere, pictures and tables are up to date, examples run.

An example runs in a temporary folder, with small stand-ins for the official files that it names. A comment above a
block that cannot run here says why, `<!-- parsed only: REASON -->`; the block's commands are checked against the real
options.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner

import mmn_fast
from benchmarks import report, speed
from benchmarks.golden import cases
from benchmarks.pictures import SCREENSHOT, TUBES_SCREENSHOT
from mmn_fast.backends.registry import BACKENDS, backend_class
from mmn_fast.cli import app
from mmn_fast.cli.names import Command
from mmn_fast.engine import Engine
from mmn_fast.features.tubes import TubesWriter
from mmn_fast.geometry import plan_for
from mmn_fast.presets import PRESETS, PUBLISHED_FEATURES
from mmn_fast.process import environment
from mmn_fast.serving.ray_app import Layout
from tests.gpu_engines import Models, gpu_engine
from tests.served import made_app, serving
from tests.test_import_rules import LADDER
from tests.videos import write_video

ROOT = Path(__file__).parents[1]
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, *sorted((ROOT / "docs").glob("*.md"))]
REASONS = (
    *("builds the project", "installs packages", "writes into the repository", "takes half a minute", "takes minutes"),
    "serves until it is stopped",
    "needs a Ray cluster",
    *("needs a GPU", "needs an official checkpoint", "needs data sets", "needs a converted official model"),
)
SLOW = {
    "evaluation.md",
    "training.md",
    "export.md",
    "backends.md",
    "demo.md",
    "features.md",
    "tubes.md",
    "presets.md",
    "index.md",
    "serving.md",
    "long_videos.md",
    "video.md",
}  # over a second of processor time
_BLOCK = re.compile(r"(?:^<!-- parsed only: ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_SERVICE = "http://127.0.0.1:8000"  # its requests go to a service that the test starts
_ASSIGNMENT = re.compile(r"(\w+)=\S*")


class Block(NamedTuple):
    reason: str  # why the block does not run; "" if it runs
    language: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in _BLOCK.findall(page.read_text(encoding="utf-8"))]


def anchors(page: Path) -> set[str]:
    """List the anchors that GitHub gives to a page's headings."""
    headings = _HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    return _LINK.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        target = page if not path else (page.parent / path).resolve()
        assert target.exists(), f"{page.name}: {link}: no such file"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}: no such heading"


def test_every_page_is_one_click_from_the_readme() -> None:
    linked = {link.partition("#")[0] for link in links(README)}
    assert {f"docs/{page.name}" for page in PAGES if page.parent == ROOT / "docs"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_of_a_kind_that_is_checked(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(blocks(page)), f"{page.name}: a block in a form that this test does not read"
    assert len(re.findall("^<!-- parsed only", text, re.MULTILINE)) == sum(bool(block.reason) for block in blocks(page))
    for block in blocks(page):
        assert block.language in ("python", "bash", "text"), block
        assert block.reason in ("", *REASONS), block
        assert not block.reason or block.language == "bash", f"{page.name}: Python blocks run, all of them"


def test_the_pages_show_the_recorded_results() -> None:
    """`python -m benchmarks.report --write` makes tables and chart, `python -m benchmarks.pictures` the pictures."""
    lines = report.read_lines()
    for path, page in report.pages(lines).items():
        assert path.read_text(encoding="utf-8") == page, path.name
    assert speed.CHART.read_text(encoding="utf-8") == str(speed.speed_chart(lines))
    for screenshot in (SCREENSHOT, TUBES_SCREENSHOT):
        picture = screenshot.read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) < 200_000


def test_contributing_has_the_rungs_of_the_ladder_in_their_order() -> None:
    """The file to read first must also stand on its rung."""
    rows = re.findall(r"^\| \*\*(\w+)\*\* \| .+ \| `(.+)` \|$", CONTRIBUTING.read_text(encoding="utf-8"), re.MULTILINE)
    assert [rung for rung, _ in rows] == list(LADDER)
    for rung, file in rows:
        assert (ROOT / file).is_file() or (ROOT / "mmn_fast" / file).is_file(), file
        assert file.removesuffix(".py").split("/")[0] in LADDER[rung].split(), f"{file} is not of rung {rung}"


def test_the_tables_name_everything_that_there_is() -> None:
    """The tables list extras, variables, every backend's options, and the published presets with their sizes."""
    install, backends, gpu, models = (
        (ROOT / "docs" / f"{name}.md").read_text() for name in ("install", "backends", "gpu", "models")
    )
    assert set(re.findall(r"^\| `([\w-]+)` \|", install, re.MULTILINE)) == set(_extras())
    variables = re.findall(r"^\| `(MMN_FAST_\w+)` \|", backends, re.MULTILINE)
    assert variables == re.findall(r"^(MMN_FAST_\w+)", str(environment.__doc__), re.MULTILINE)
    for name, row in BACKENDS.items():
        for device in [None] if isinstance(row, str) else row:
            for option in backend_class(name, device or "auto").OPTIONS:
                assert f"`{option}`" in backends, f"{name} on {device}: {option}"
                assert device != "cuda" or f"| `{option}` |" in gpu, option
    for name in PUBLISHED_FEATURES.keys() - {"shapes", "shapes-tubes"}:
        p = PRESETS[name]
        streams, P = " + ".join(map(str, p.feature_streams)), plan_for(p).num_proposals
        conv = f"{p.conv_layers} layers, {p.conv_kernel}×{p.conv_kernel}"
        wanted = f"| `{name}` | {p.num_pre_clips} | {p.num_clips} | {streams} | {P} | {conv} | "
        (line,) = (line for line in models.splitlines() if line.startswith(wanted))
        assert line.endswith(f"| {p.nms_iou} |")


def _extras() -> list[str]:
    extras = (ROOT / "setup.py").read_text().partition("extras_require")[2]
    return re.findall(r'^        "([\w-]+)": \[', extras, re.MULTILINE)


def test_every_command_has_an_example() -> None:
    commands = [
        words for page in PAGES for block in blocks(page) if block.language == "bash" for words in block.commands
    ]
    shown = {tuple(words[1:3]) for words in commands if words[0] == "mmn-fast"}
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        for wanted in [(name, sub) for sub in getattr(command, "commands", {})] or [(name,)]:
            assert any(one[: len(wanted)] == wanted for one in shown), f"no page shows mmn-fast {' '.join(wanted)}"


class _ParsedError(Exception):
    """Raised at the point where a program would begin its work."""


@pytest.fixture
def parsed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make commands and programs stop after they have read their arguments."""
    parse = argparse.ArgumentParser.parse_known_args

    def parse_and_stop(parser: argparse.ArgumentParser, *given: Any) -> None:
        _, unknown = parse(parser, *given)
        assert not unknown, unknown
        raise _ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(Command, "invoke", lambda command, context: None)


def _run_module(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit if "--help" in arguments else _ParsedError) as end:
        import_module(module).main()
    assert getattr(end.value, "code", 0) == 0


def _mmn_fast(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, f"mmn-fast {shlex.join(arguments)}: {done.output}{done.exception}"


def _parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check one command line against the options of its program."""
    while assigned := _ASSIGNMENT.fullmatch(words[0]):
        known = (ROOT / "setup.py").read_text() + str(environment.__doc__)
        assert re.search(rf"\b{assigned[1]}\b", known), f"{assigned[1]}: not a variable of this project"
        words = words[1:]
    program, *arguments = words
    if program == "mmn-fast":
        _mmn_fast(arguments)
    elif program == "torchrun":
        assert arguments[:4] == ["--nproc-per-node", arguments[1], "-m", "mmn_fast"]
        _mmn_fast(arguments[4:])
    elif program == "python":
        assert arguments[0] == "-m"
        _run_module(arguments[1], arguments[2:], monkeypatch)
    elif program == "benchmarks/gpu_suite.sh":
        assert '-m benchmarks.gpu_suite "$@"' in (ROOT / program).read_text()
        _run_module("benchmarks.gpu_suite", arguments, monkeypatch)
    elif program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert arguments, words
        assert set(arguments) <= set(targets), words
    elif program == "curl":
        assert arguments[-1].startswith(_SERVICE), words
    elif program == "ray":
        assert arguments[0] == "start", words
        assert all(re.fullmatch(r"--(head|port=\d+|address=\S+)", word) for word in arguments[1:]), words
    elif program == "serve":
        assert arguments[:2] == ["run", "mmn_fast.serving.ray_app:app"], words
        Layout.of(dict(word.split("=", 1) for word in arguments[2:]))
    elif program == "pip":
        assert arguments[0] == "install"
        assert set(re.findall(r"\[([\w-]+)\]", arguments[-1])) <= set(_extras()), words
        files = [file for option, file in pairwise(arguments) if option == "-c"]
        assert all((ROOT / file).is_file() for file in files), words
    else:
        assert program == "tritonserver", f"{program}: teach this test what its options are"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_cannot_run_here_are_parsed(
    page: Path, parsed_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in [words for block in blocks(page) if block.reason for words in block.commands]:
        _parse(words, monkeypatch)


def _write_stand_ins(model: Path) -> None:
    """Write a small model and random features under the names of official files in the pages."""
    shutil.copytree(model, "mmn-charades")
    width, rng = mmn_fast.load("mmn-charades").preset.input_size, np.random.default_rng(0)
    videos = {
        name: {"duration": 30.96, "timestamps": [[1.0, 7.5]], "sentences": ["person turn a light on."]}
        for name in ("3MSZA", "4MSZB")
    }
    Path("charades_test.json").write_text(json.dumps(videos))
    with h5py.File("vgg_rgb_features.hdf5", "w") as file:
        for name in videos:
            file[name] = rng.standard_normal((20, width)).astype(np.float32)


def _write_tubes(model: Path) -> None:
    """Write a small model of tubes, and a file of one video's tubes, under the names of the pages."""
    shutil.copytree(model, "mmn-hcstvg")
    with TubesWriter("tubes.h5") as writer:
        writer.write("video1", cases.load("hcstvg_small").tube_queries[0].tubes)


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service of the demo's model."""
    folder = tmp_path_factory.mktemp("served")
    with made_app(folder):
        pass
    with serving(folder / "index", "--temporary", str(folder / "uploads")) as (_, address):
        yield address.rstrip("/")


def _page(page: Path) -> Any:
    return pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in SLOW else [])


@pytest.mark.parametrize("page", [_page(page) for page in PAGES if any(not block.reason for block in blocks(page))])
def test_examples_run(
    page: Path,
    tmp_path: Path,
    golden_model: Models,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A page's examples run in order, in one folder; its Python blocks share their variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # `data shapes` starts a process per core
    monkeypatch.setattr(mmn_fast, "load", partial(_load_on_twins, mmn_fast.load))
    examples = [block for block in blocks(page) if not block.reason]
    if any("mmn-charades" in block.text for block in examples):
        _write_stand_ins(golden_model("charades_small"))
    if any(re.search(r"\bclip\.mp4\b", block.text) for block in examples):
        write_video(Path("clip.mp4"))
    if any("mmn-hcstvg" in block.text for block in examples):
        _write_tubes(golden_model("hcstvg_small"))
    if any("mmn-fast export" in block.text for block in examples):
        exports = request.getfixturevalue("exports")  # made once per run, in a quarter of a minute
        copy_export = lambda model, output, **_: shutil.copytree(exports(model), output)  # noqa: E731
        monkeypatch.setattr("mmn_fast.export.to_onnx.export", copy_export)
    names: dict[str, Any] = {}
    service = request.getfixturevalue("served") if any(_SERVICE in block.text for block in examples) else _SERVICE
    for block in examples:
        if block.language == "python":
            exec(compile(block.text.replace(_SERVICE, service), str(page), "exec"), names)
        for words in block.commands if block.language == "bash" else []:
            assert words[0] == "mmn-fast", f"{words}: does not run here; say so with <!-- parsed only: REASON -->"
            _mmn_fast(words[1:])


def _load_on_twins(load: Callable[..., Engine], model: str, **options: Any) -> Engine:
    """Load a model; for "cuda" load the GPU's engine on the twins of its kernels, which run on the CPU."""
    if options.get("device") != "cuda":
        return load(model, **options)
    assert options == {"backend": "native", "device": "cuda"}
    return gpu_engine(Path(load(model).info()["model"]), "cpu", "fp16")
