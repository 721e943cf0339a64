"""An index searched in parts gives the answer of the whole, bit for bit; a part that fails is never left out."""

from __future__ import annotations

import pickle
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import mmn_fast
from mmn_fast import MomentIndex
from mmn_fast.errors import InputError
from mmn_fast.index.parts import IndexPart, merged
from mmn_fast.index.search import Wanted
from mmn_fast.index.writing import LockedError, writing
from mmn_fast.serving import ray_app
from mmn_fast.serving.http.problems import Problem, problem_of
from mmn_fast.serving.ray_app import Layout
from mmn_fast.serving.ray_app.spread import SpreadLibrary
from mmn_fast.storage.documents import parse_yaml
from tests.index_task import STORAGES, random_text, random_videos, tiny_engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> mmn_fast.Engine:
    return tiny_engine(tmp_path_factory.mktemp("tiny"))


def _index(path: Path, engine: mmn_fast.Engine, storage: str = "fp16") -> MomentIndex:
    """An index of 30 videos in several files, some removed, some twins with equal scores."""
    index = MomentIndex.create(path, engine, storage)
    for number in range(3):
        names = [f"{number} {n}" for n in range(10)]
        index.add(random_videos(engine, names, number % 2, cut=(1, 4)))  # the first and the last ten are equal
    index.remove(["0 3", "1 0", "2 9"])
    return index


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("parts", [1, 2, 4, 40])
def test_parts_give_the_answer_of_the_whole(engine: mmn_fast.Engine, tmp_path: Path, storage: str, parts: int) -> None:
    text = random_text(engine, 3)
    with _index(tmp_path / "it", engine, storage) as index:
        those = [IndexPart(index.path, part, parts) for part in range(parts)]
        for top_k, per_video, videos, least in [(5, 1, None, None), (40, 3, None, 0.2), (7, 2, ["0 1", "2 1"], None)]:
            wanted = Wanted(top_k, per_video, least)
            found = [part.search(index.state, text, wanted, videos) for part in those]
            sent = pickle.loads(pickle.dumps(found))
            assert merged(sent, top_k) == index.search(text, top_k, per_video, videos, least)


class _Call:
    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def result(self, timeout_s: float) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


class _Handle:
    """A double of Ray Serve's handle; its first answers are given, the later ones are the part's."""

    def __init__(self, part: IndexPart, *first: Any) -> None:
        self._part, self._first = part, list(first)

    @property
    def search(self) -> _Handle:
        return self

    def remote(self, *question: Any) -> _Call:
        return _Call(self._first.pop(0) if self._first else self._part.search(*question))


def _spread(index: MomentIndex, engine: mmn_fast.Engine, *first: Any, deadline_s: float = 5.0) -> SpreadLibrary:
    parts = [_Handle(IndexPart(index.path, part, 2), *(first if part else ())) for part in range(2)]
    return SpreadLibrary(index, engine, {}, parts, deadline_s, (ConnectionError,))


@pytest.mark.parametrize("first", [ConnectionError("died"), TimeoutError(), None])
def test_a_part_that_dies_or_is_behind_is_asked_again(engine: mmn_fast.Engine, tmp_path: Path, first: Any) -> None:
    text = random_text(engine, 2)
    with _index(tmp_path / "it", engine) as index:
        expected = index.search(text, 5)
        assert _spread(index, engine, first).search(text, Wanted(5), None) == expected


def test_a_part_that_stays_away_is_a_refusal(engine: mmn_fast.Engine, tmp_path: Path) -> None:
    with _index(tmp_path / "it", engine) as index:
        library = _spread(index, engine, *[ConnectionError("died")] * 99, deadline_s=0.3)
        with pytest.raises(Problem, match=r"a part of the index has not answered within 0\.3 s") as refused:
            library.search(random_text(engine, 1), Wanted(5), None)
    assert refused.value.status == 503


def test_a_change_is_seen_by_all_parts(engine: mmn_fast.Engine, tmp_path: Path) -> None:
    text = random_text(engine, 2)
    with _index(tmp_path / "it", engine) as index:
        library = _spread(index, engine)
        library.search(text, Wanted(5), None)
        with MomentIndex.open(index.path, engine) as other:
            other.add(random_videos(engine, ["new"], 7))
            library.index.refresh()
            assert library.search(text, Wanted(40), None) == other.search(text, 40)


def test_a_question_that_a_part_refuses_is_bad_input(engine: mmn_fast.Engine, tmp_path: Path) -> None:
    with _index(tmp_path / "it", engine) as index:
        library = _spread(index, engine, "videos: 'x' is not in it")
        with pytest.raises(InputError, match="videos: 'x' is not in it"):
            library.search(random_text(engine, 1), Wanted(5), None)


def test_an_index_that_another_process_writes_is_busy(engine: mmn_fast.Engine, tmp_path: Path) -> None:
    with _index(tmp_path / "it", engine) as index, writing(index.path):
        with pytest.raises(LockedError, match="is being written") as refused:
            index.remove(["0 1"])
        assert problem_of(refused.value).status == 503


def test_arguments_of_the_ray_application() -> None:
    layout = Layout.of({"index": "7", "parts": "4", "num_gpus": "0.5", "max_replicas": 3})
    assert (layout.index, layout.parts, layout.num_gpus, layout.max_replicas) == ("7", 4, 0.5, 3)
    for args, match in [
        ({}, "app: .*index"),
        ({"index": "it", "part": 3}, "app: unknown key 'part'; did you mean 'parts'"),
        ({"index": "it", "parts": "many"}, "app: parts: expected an integer"),
        ({"index": "it", "replicas": 0}, "app: replicas: expected an integer"),
    ]:
        with pytest.raises(InputError, match=match):
            Layout.of(args)


def test_without_ray_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"ray: needs Ray \(pip install mmn_fast\[ray\]\)"):
        ray_app.app({"index": "it"})


def test_the_configuration_of_the_page_is_one() -> None:
    page = (Path(__file__).parents[1] / "docs" / "ray.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (application,) = parse_yaml(text, "page")["applications"]
    module, _, name = application["import_path"].partition(":")
    assert (module, name) == (ray_app.__name__, ray_app.app.__name__)
    assert Layout.of(application["args"]).max_replicas == 8
    assert {one.name for one in fields(Layout)} <= set(re.findall(r"`(\w+)`", page))
