"""Learns a vocabulary of word pieces from annotated sentences, for a text encoder that starts from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mmn_fast.errors import InputError
from mmn_fast.evaluation.datasets import read_annotations
from mmn_fast.storage.files import refuse_existing, write_whole

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # [PAD] is 0, as in BERT's vocabulary
_LEAST = 100  # least number of entries: special tokens, and letters alone and within a word


def build_vocabulary(sentences: Iterable[str], size: int = 8000) -> list[str]:
    """Learn word pieces; the same sentences in any order give the same pieces.

    Args:
        sentences: text, cut into words and lower-cased as BERT's uncased tokenizer does.
        size: most entries, special tokens included.

    Returns:
        The entries by number, special tokens first.

    Raises:
        InputError: `size` is too small, or there is no word.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    if isinstance(size, bool) or not isinstance(size, int) or size < _LEAST:
        raise InputError(f"size: expected an integer >= {_LEAST}, got {size!r}")
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = [inner.normalizer.normalize_str(sentence) for sentence in sentences]
    words = {word for text in texts for word, _ in inner.pre_tokenizer.pre_tokenize_str(text)}
    if not words:
        raise InputError("sentences: expected at least one word, got none")
    # The trainer numbers letters within words in the order of a hash that differs between processes, and it breaks
    # ties by number. Letters that are named beforehand get numbers that depend on the words alone.
    within = sorted({f"##{letter}" for word in words for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=[*_SPECIAL, *within], show_progress=False)
    inner.train_from_iterator(sorted(texts), trainer)
    vocabulary = inner.get_vocab()
    pieces = sorted((piece for piece in vocabulary if piece not in _SPECIAL), key=lambda piece: (len(piece), piece))
    return [*_SPECIAL, *pieces]


def write_vocabulary(
    annotations: Sequence[Path], output: Path, size: int = 8000, durations: Path | None = None
) -> tuple[int, int]:
    """Write a BERT vocab.txt, one entry a line, from the sentences of annotation files.

    Args:
        annotations: files that `read_annotations` takes; only the training split, so that test words stay unknown.
        output: file to write; must not exist.
        size: most entries.
        durations: as for `read_annotations`.

    Returns:
        entries written, sentences read.

    Raises:
        InputError: an argument or a file cannot be used.
    """
    refuse_existing(output, "output")
    sentences = [
        sentence
        for path in annotations
        for sample in read_annotations(path, durations=durations)
        for sentence in sample.sentences
    ]
    entries = build_vocabulary(sentences, size)
    write_whole(output, ("\n".join(entries) + "\n").encode(), overwrite=False)
    return len(entries), len(sentences)
