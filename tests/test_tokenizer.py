"""Word pieces: the published vocabulary gives the published ids, from any kind of file."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from benchmarks.golden import cases
from mmn_fast.errors import InputError
from mmn_fast.tokenizer import load_tokenizer, without_warnings_of_cuts

SENTENCES = [
    "person turn a light on.",
    " One man is holding onto a rope attached to a machine,",
    "She took out kiwi",
    "Él abrió la puerta — naïve café!",
    "中文 and emoji 🙂 and tab\there\u0000",
    "unaffable" * 20,
    "[CLS] [SEP] [MASK]",
    "",
    "   ",
]


def test_published_vocabulary_gives_the_published_ids() -> None:
    ids = load_tokenizer(cases.VOCAB).encode(["She took out kiwi", "person flipped the light switch near the door."])
    assert ids[0].tolist() == [101, 2016, 2165, 2041, 11382, 9148, 102]
    assert ids[1].tolist() == [101, 2711, 9357, 1996, 2422, 6942, 2379, 1996, 2341, 1012, 102]


@pytest.mark.slow
def test_ids_equal_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    # transformers 5 takes the vocabulary by position; given by the old keyword, it is silently replaced by five words.
    theirs = transformers.DistilBertTokenizer(str(cases.VOCAB), do_lower_case=True)
    assert len(theirs) == 30522
    for sentence, ids in zip(SENTENCES, load_tokenizer(cases.VOCAB).encode(SENTENCES), strict=True):
        assert ids.tolist() == theirs(sentence)["input_ids"], sentence


def test_saved_json_and_directory_give_the_same_ids(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(cases.VOCAB)
    tokenizer.save(tmp_path / "tokenizer.json")
    expected = [ids.tolist() for ids in tokenizer.encode(SENTENCES)]
    for source in (tmp_path / "tokenizer.json", tmp_path):
        again = load_tokenizer(source)
        assert [ids.tolist() for ids in again.encode(SENTENCES)] == expected
        assert again.vocab_size == 30522


def test_padding_and_truncation_of_the_file_are_ignored(tmp_path: Path) -> None:
    load_tokenizer(cases.VOCAB).save(tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 128},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (ids,) = load_tokenizer(tmp_path).encode(["person flipped the light switch near the door."])
    assert len(ids) == 11


@pytest.mark.parametrize("name", [*cases.SMALL, *cases.FULL])
def test_token_ids_equal_the_golden_ones(name: str) -> None:
    case = cases.load(name)
    tokenizer = load_tokenizer(cases.VOCAB)
    assert tokenizer.vocab_size == case.text.vocab_size
    for video in case.videos:
        for ids, golden in zip(tokenizer.encode(video.sentences), video.token_ids, strict=True):
            np.testing.assert_array_equal(ids, golden[golden != 0])


def test_long_sentence_is_cut_with_a_warning_and_keeps_its_end() -> None:
    tokenizer = load_tokenizer(cases.VOCAB, max_tokens=8)
    with pytest.warns(UserWarning, match="22 word pieces was cut to the encoder's 8"):
        (ids,) = tokenizer.encode(["door " * 20])
    assert ids.tolist() == [101, *[2341] * 6, 102]


def test_several_long_sentences_are_one_warning_that_counts_them() -> None:
    tokenizer = load_tokenizer(cases.VOCAB, max_tokens=8)
    sentences = ["door", "door " * 20, "door " * 30, "door " * 20]
    message = (
        r"^3 of 4 sentences were cut to the encoder's 8 word pieces \(first: 'door door .*'\.\.\., 22 word pieces\)"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        tokenizer.encode(sentences)
    assert len(caught) == 1
    assert list(tokenizer.cut_sentences(sentences).values()) == [22, 32]
    with warnings.catch_warnings(), without_warnings_of_cuts():
        warnings.simplefilter("error")
        tokenizer.encode(sentences)


def test_tokenizer_ignores_crlf_in_a_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(cases.VOCAB.read_bytes().replace(b"\n", b"\r\n"))
    assert load_tokenizer(tmp_path).encode(["kiwi"])[0].tolist() == [101, 11382, 9148, 102]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{ not json", "not a tokenizer.json"),
        ("tokenizer.json", b'{"version": "1.0"}', "not a tokenizer.json"),
        ("vocab.txt", b"a\nb\nc\n", r"expected a BERT vocabulary with \[CLS\]"),
        ("vocab.txt", b"\xff\xfe\x00", "not a vocabulary"),
    ],
)
def test_unusable_files_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as refusal:
        load_tokenizer(tmp_path / name)
    assert "\n" not in str(refusal.value)


def test_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds neither tokenizer.json nor vocab.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="no such file or directory"):
        load_tokenizer(tmp_path / "absent.json")


def test_a_sentence_that_is_no_str_is_refused() -> None:
    with pytest.raises(InputError, match=r"sentences\[1\]: expected str, got int"):
        load_tokenizer(cases.VOCAB).encode(["a", 3])  # type: ignore[list-item]
