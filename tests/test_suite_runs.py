"""Files that a run of the GPU suite keeps, however it ends: runs from the command line, on a copy of the tree.

The copy has no .git. A shell script stands in for the steps' interpreter, so that no step needs a device or takes time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks import commit
from benchmarks.gpu_suite import PLANS, START_S

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
COMMIT = "0123456789"
EARLIER = '{"of": "an earlier run"}\n'


def _heeding_signals() -> None:
    """Tests in the background (`nohup make test &`) ignore these signals, and so would the suite."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Tree:
    """A copy of the tree, the steps' interpreter, and the folder for a run's output."""

    def __init__(self, root: Path) -> None:
        self.root, self.output = root / "tree", root / "out"
        self.local = self.root / "benchmarks" / "results" / "local"
        self.lines = self.output / "gpu.jsonl"
        shutil.copytree(ROOT / "mmn_fast", self.root / "mmn_fast", ignore=_only(".py", "gather_choices.json"))
        shutil.copytree(ROOT / "benchmarks", self.root / "benchmarks", ignore=_only(".py", ".sh"))
        self.local.mkdir(parents=True, exist_ok=True)
        (self.local / "gpu.jsonl").write_text(EARLIER)
        self.python, self.programs = root / "python", root / "programs"
        self.programs.mkdir()
        self.steps("true")

    def steps(self, body: str) -> None:
        """Set the shell code of every step: `$@` are its arguments, `line TEXT` measures, `$name` is the module."""
        self.python.write_text(
            f"""#!/bin/sh
[ "$2" = benchmarks.gpu_suite ] && exec {sys.executable} "$@"
name=${{2#benchmarks.}}
echo "$@" >> {self.root}/commands
line() {{ echo "$1" >> {self.local}/gpu.jsonl; }}
{body}
"""
        )
        self.python.chmod(0o755)

    def start(self, *arguments: str, sh: bool = False, plan: str = "", **variables: str) -> subprocess.Popen[str]:
        script = ["sh", str(self.root / "benchmarks" / "gpu_suite.sh")]
        code = f"import sys\nfrom benchmarks import gpu_suite, suite_step\n{plan}\nsys.exit(gpu_suite.main())"
        env = os.environ | {"PYTHON": str(self.python), "BENCH_COMMIT": COMMIT, "BUILD": "0"} | variables
        return subprocess.Popen(
            [*(script if sh else [sys.executable, "-c", code]), *arguments],
            cwd=self.root.parent if sh else self.root,
            env=env | {"PATH": f"{self.programs}:{env['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_heeding_signals,
        )

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the suite to its end, with --output."""
        process = self.start("--output", str(self.output), *arguments, **options)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def commands(self) -> list[str]:
        return (self.root / "commands").read_text().splitlines()


def _only(*endings: str) -> Any:
    def ignored(folder: str, names: list[str]) -> list[str]:
        return [n for n in names if not n.endswith(endings) and not (Path(folder, n).is_dir() and n != "__pycache__")]

    return ignored


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def _living(group: int) -> list[int]:
    """List the processes of a group, without zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, group_of = path.read_text().rpartition(")")[2].split()[:3]
            found += [int(path.parent.name)] if state != "Z" and int(group_of) == group else []
    return found


def _wait_for(path: Path, text: str) -> None:
    end = time.monotonic() + 60
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < end, f"{path} never held {text}"
        time.sleep(0.05)


def test_after_every_step_the_folder_holds_all_measurements(tree: Tree) -> None:
    """Each step here checks the folder that the step before it left. One of the steps fails."""
    tree.steps(
        f"""n=$(wc -l < {tree.root}/commands)
mkdir {tree.root}/seen-$n && cp {tree.output}/* {tree.root}/seen-$n
echo "step $n speaks"; line "{{\\"step\\": $n}}"
[ $n = 2 ] && echo "{{\\"found\\": 1}}" > {tree.root}/mmn_fast/kernels/gpu/conv/gather_choices.json
[ $n != 3 ]"""
    )
    done = tree.run()
    steps = len(PLANS[10]) - 1  # without the build
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.endswith("gpu_suite.sh: failed: conv activitynet\n")
    assert len(tree.commands()) == steps
    for number in range(1, steps + 1):
        seen = tree.root / f"seen-{number}"
        lines = [json.loads(line) for line in (seen / "gpu.jsonl").read_text().splitlines()] if number > 1 else []
        assert lines == [{"step": earlier} for earlier in range(1, number)]
        assert (seen / "gather_choices.json").exists() == (number > 2)
        assert f"step {number - 1} speaks" in (seen / "log.txt").read_text() or number == 1
    assert [json.loads(line)["step"] for line in tree.lines.read_text().splitlines()] == list(range(1, steps + 1))
    assert json.loads((tree.output / "gather_choices.json").read_text()) == {"found": 1}
    assert (tree.output / "log.txt").read_text() == done.stdout
    assert sorted(path.name for path in tree.output.iterdir()) == ["gather_choices.json", "gpu.jsonl", "log.txt"]


def test_choices_that_were_there_before_are_not_copied_as_found(tree: Tree) -> None:
    assert tree.run().returncode == 0
    assert [path.name for path in tree.output.iterdir()] == ["log.txt"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_killed_run_leaves_its_measurements(tree: Tree, number: signal.Signals) -> None:
    """The lines of the running step are kept too, because a line is copied as soon as it is written."""
    tree.steps(
        f"""line '{{"step": "'$name'"}}'
[ "$name" = bench_gather ] && echo $$ > {tree.root}/pid && printf '{{"half": ' >> {tree.local}/gpu.jsonl && sleep 100"""
    )
    process = tree.start("--output", str(tree.output))
    _wait_for(tree.lines, "bench_gather")
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert [json.loads(line)["step"] for line in tree.lines.read_text().splitlines()] == ["pytest", "bench_gather"]
    log = (tree.output / "log.txt").read_text()
    child = int((tree.root / "pid").read_text())
    if number == signal.SIGKILL:
        assert process.returncode == -number
        os.killpg(child, number)
        return
    assert process.returncode == 128 + number
    assert log == out
    assert log.endswith(f"gpu_suite.sh: stopped by {number.name}\n")
    assert _living(child) == []


@pytest.mark.slow
def test_a_step_that_never_ends_is_ended_at_its_limit(tree: Tree) -> None:
    """The first step leaves almost all of its 4 seconds to the second, which has 2; the third has its own 4."""
    tree.steps('[ "$3" = hang ] && { trap "" TERM; line "{}"; while true; do sleep 1; done; }; true')
    steps = [
        f"gpu_suite.Step('{name}', 1, {limit}, '?', '-m x {name}')" for name, limit in (("a", 4), ("hang", 2), ("b", 4))
    ]
    plan = f"gpu_suite.PLANS[10] = ({', '.join(steps)})\nsuite_step.GRACE_S = 1.5"
    done = tree.run(plan=plan)
    assert done.stderr == ""
    assert done.stdout.endswith("gpu_suite.sh: failed: hang\n")
    assert done.returncode == 1
    times = [int(t) for t in re.findall(r"\((\d+) s\)$", done.stdout, re.MULTILINE)]
    assert times[0] == 4
    assert 2 < times[1] <= 6
    assert 3 <= times[2] <= 6
    assert "hang: stopped after" in done.stdout
    assert tree.lines.read_text() == "{}\n"
    assert [command.split()[2] for command in tree.commands()] == ["a", "hang", "b"]


@pytest.mark.parametrize("minutes", PLANS)
def test_the_commands_are_those_of_the_table_and_benchmarks_know_their_seconds(tree: Tree, minutes: int) -> None:
    tree.steps(f'[ -z "$PYTORCH_NO_CUDA_MEMORY_CACHING" ] || echo "$@" >> {tree.root}/uncached')
    sanitizer = tree.programs / "compute-sanitizer"
    sanitizer.write_text(
        '#!/bin/sh\necho "sanitizer: $*"\nwhile [ "$1" != -m ]; do p=$1; shift; done\nexec "$p" "$@"\n'
    )
    sanitizer.chmod(0o755)
    done = tree.run("--minutes", str(minutes), BUILD="1")
    assert (done.returncode, done.stderr) == (0, "")
    build, *commands = tree.commands()
    assert build.startswith("-m pip install")
    steps = PLANS[minutes][1:]
    assert len(commands) == len(steps)
    left = PLANS[minutes][0].limit_s
    for step, command in zip(steps, commands, strict=True):
        left += step.limit_s
        plain = step.command.replace('"', "")
        assert command.startswith(plain.split(" tests/test_*")[0])
        if step.is_benchmark:
            seconds = int(command.split(" --seconds ")[1])
            assert left - START_S - 60 < seconds <= left - START_S
    tools = [step.tool for step in steps if step.tool]
    assert [re.findall(r"sanitizer: --tool (.*) --error-exitcode 99", done.stdout)] == [tools]
    uncached = tree.root / "uncached"
    assert len(uncached.read_text().splitlines() if uncached.exists() else []) == len(tools)


@pytest.mark.parametrize("minutes", PLANS)
def test_a_rehearsal_gives_the_benchmarks_the_plans_arguments(tree: Tree, minutes: int) -> None:
    done = tree.run("--rehearse", "--minutes", str(minutes))
    assert (done.returncode, done.stderr) == (0, "")
    for step, command in zip(PLANS[minutes][1:], tree.commands(), strict=True):
        if step.is_benchmark:
            assert command == f"{step.command} --seconds {step.limit_s - START_S} --rehearse"
        else:  # tests are collected but not run; a step without tests would fail
            assert command.startswith(step.command.replace('"', "").split(" tests/")[0])
            assert command.endswith("-q --collect-only -m (gpu or interpreter) and not long")


def test_without_compute_sanitizer_its_steps_say_so(tree: Tree) -> None:
    done = tree.run("--minutes", "25", PATH="/nowhere")
    assert done.returncode == 0
    assert done.stdout.count("compute-sanitizer is not installed: not checked") == 3


def test_a_build_that_fails_ends_the_run(tree: Tree) -> None:
    tree.steps('[ "$name" != pip ]')
    done = tree.run(BUILD="1")
    assert done.returncode == 1
    assert "the build failed, so nothing was measured of this tree: the rest was not run" in done.stdout
    assert done.stdout.endswith("failed: build\n")
    assert len(tree.commands()) == 1


def test_a_folder_that_goes_away_stops_nothing_and_is_said_once(tree: Tree) -> None:
    tree.steps(f'[ "$name" = pytest ] && rm -r {tree.output}; line "{{}}"; line "{{}}"')
    done = tree.run()
    assert done.returncode == 1
    assert len(tree.commands()) == len(PLANS[10]) - 1
    assert done.stdout.count(f"--output: cannot write {tree.lines}: ") == 1
    assert done.stderr.startswith(f"gpu_suite.sh: not kept: --output: cannot write {tree.lines}: ")
    assert len((tree.local / "gpu.jsonl").read_text().splitlines()) == 1 + 2 * len(tree.commands())


def test_a_full_disk_stops_nothing_and_leaves_no_half_file(tree: Tree) -> None:
    """Files of the suite are limited to 2 KiB; files of its steps are not limited."""
    line = json.dumps({"a line": "x" * 900})
    tree.steps(f"ulimit -S -f unlimited; line '{line}'; echo '{line}'")
    plan = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))"
    done = tree.run(plan=plan)
    assert done.returncode == 1
    assert len(tree.commands()) == len(PLANS[10]) - 1
    assert tree.lines.read_text() == 2 * f"{line}\n"
    assert (tree.output / "log.txt").stat().st_size == 2048
    for name in ("gpu.jsonl", "log.txt"):
        assert done.stderr.count(f"gpu_suite.sh: not kept: --output: cannot write {tree.output / name}: ") == 1
    assert sorted(path.name for path in tree.output.iterdir()) == ["gpu.jsonl", "log.txt"]


def test_room_that_comes_back_is_used(tree: Tree) -> None:
    away = tree.root / "away"
    tree.steps(f'[ "$name" = pytest ] && mv {tree.output} {away} || mv {away} {tree.output}; line "{{}}"')
    done = tree.run()
    assert tree.lines.read_text() == "{}\n" * len(tree.commands())
    assert done.returncode == 0  # no line is lost in the end


def test_the_screen_may_go_away(tree: Tree) -> None:
    tree.steps("echo spoken; sleep 0.1")
    process = tree.start("--output", str(tree.output))
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(60) == 0
    assert (tree.output / "log.txt").read_text().count("spoken\n") == len(PLANS[10]) - 1


@pytest.mark.parametrize("name", ["log.txt", "gather_choices.json", "some-gpu.jsonl"])
def test_a_folder_with_results_is_refused_and_left_as_it_is(tree: Tree, name: str) -> None:
    tree.output.mkdir()
    (tree.output / name).write_text("earlier")
    done = tree.run()
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"gpu_suite.sh: --output: expected a folder without results, got {tree.output}, which holds {name}\n"
    )
    assert [path.read_text() for path in tree.output.iterdir()] == ["earlier"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("file", "File exists"), ("file/below", "Not a directory"), ("/proc/below", "No such file or directory")],
)
def test_a_folder_that_cannot_be_is_refused(tree: Tree, name: str, reason: str) -> None:
    (tree.root / "file").write_text("")
    process = tree.start("--output", name)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err == f"gpu_suite.sh: --output: cannot write to {name}: {reason}\n"


def test_an_empty_name_is_refused(tree: Tree) -> None:
    process = tree.start("--output", "")
    assert process.communicate(timeout=60) == ("", "gpu_suite.sh: --output: expected a name or a path, got ''\n")
    assert process.returncode == 2


def test_other_files_in_the_folder_stay_and_its_name_is_relative_to_the_caller(tree: Tree) -> None:
    folder = tree.root.parent / "mounted" / "disk"
    folder.mkdir(parents=True)
    (folder / "notes").write_text("mine")
    process = tree.start("--output", "mounted/disk", sh=True)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert (folder / "log.txt").read_text() == out
    assert (folder / "notes").read_text() == "mine"


def _line(tree: Tree) -> subprocess.CompletedProcess[str]:
    """Print what a figure's line says about the commit."""
    code = "import json; from benchmarks import timing; timing.machine = dict; print(json.dumps(timing.environment()))"
    env = {name: value for name, value in os.environ.items() if name != commit.VARIABLE}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=tree.root, env=env, capture_output=True, text=True, check=True, timeout=60)


@pytest.mark.parametrize(
    ("stated", "found", "dirty"),
    [("", "", True), ("0123456", "0123456", False), (f"{COMMIT}abc", COMMIT, False), (f"{COMMIT}-dirty", COMMIT, True)],
)
def test_where_there_is_no_git_the_environment_names_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: str, found: str, dirty: bool
) -> None:
    monkeypatch.setenv(commit.VARIABLE, stated)
    assert commit.commit_of(tmp_path) == (found, dirty)


WANTED = "7 to 40 hexadecimal digits of a commit, followed by -dirty if the tree was changed"


@pytest.mark.parametrize("stated", ["main", "012345", "0123456 ", "0123456-clean", "g123456", "0" * 41, "0123456\n"])
def test_a_commit_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: str) -> None:
    monkeypatch.setenv(commit.VARIABLE, stated)
    with pytest.raises(ValueError, match=f"^BENCH_COMMIT: expected {WANTED}, got {re.escape(repr(stated))}$"):
        commit.commit_of(tmp_path)


def test_a_commit_that_is_none_is_refused_before_anything_runs(tree: Tree) -> None:
    done = tree.run(BENCH_COMMIT="main")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"BENCH_COMMIT: expected {WANTED}, got 'main'\n")
    assert not tree.output.exists()


def test_git_names_the_commit_and_files_that_benchmarks_write_make_no_tree_dirty(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, cwd=tree.root, capture_output=True, text=True, check=True).stdout.strip()

    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    unknown = json.loads(_line(tree).stdout)
    assert (unknown["commit"], unknown["dirty"]) == ("", True)
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "all")
    head = git("rev-parse", "HEAD")
    assert json.loads(_line(tree).stdout) == {"commit": head[:10], "dirty": False}
    choices = tree.root / "mmn_fast" / "kernels" / "gpu" / "conv" / "gather_choices.json"
    choices.write_text(choices.read_text() + "\n")
    line = json.loads(_line(tree).stdout)
    assert line == {"commit": head[:10], "dirty": False, "gather_choices": line["gather_choices"]}
    assert re.fullmatch("[0-9a-f]{10}", line["gather_choices"])
    for stated in (head[:7], head):
        monkeypatch.setenv(commit.VARIABLE, stated)
        assert commit.commit_of(tree.root)[0] == head[:10]
    monkeypatch.setenv(commit.VARIABLE, "0123456")
    with pytest.raises(
        ValueError, match=f"^BENCH_COMMIT: expected {head[:10]}, the commit that git names, got '0123456'$"
    ):
        commit.commit_of(tree.root)
    (tree.root / "benchmarks" / "report.py").write_text("")
    assert json.loads(_line(tree).stdout)["dirty"] is True


def test_a_repository_around_the_tree_names_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    monkeypatch.delenv(commit.VARIABLE, raising=False)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / "tree").mkdir()
    assert commit.commit_of(tmp_path / "tree") == ("", True)


def test_a_line_that_does_not_fit_leaves_nothing(tree: Tree) -> None:
    """The next line must not follow half a line."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\nfrom benchmarks.timing import append\n"
    )
    code += "append({'a': 1}, 'gpu')\nappend({'b': 'x' * 100}, 'gpu')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree.root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert (tree.local / "gpu.jsonl").read_text() == EARLIER + '{"a": 1}\n'
