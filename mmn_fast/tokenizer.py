"""Cuts sentences into word pieces, with the tokenizers library alone."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np

from mmn_fast.arrays import Int64
from mmn_fast.errors import InputError
from mmn_fast.storage.files import check_name

_warned_of_already: ContextVar[bool] = ContextVar("_warned_of_already", default=False)
_SPECIAL = ("[CLS]", "[SEP]", "[UNK]")
# Tokenizers with the same vocabulary but other settings cut these sentences differently: case, accents, Chinese
# characters, punctuation, control characters, spaces, numbers, special tokens in the text, words without a limit.
_PROBES = (
    *(
        "",
        "person opens the door.",
        "Person OPENS the DOOR",
        "naïve café, Ångström",
        "人が ドアを开く",
        "don't re-open it!",
    ),
    *("a\tb\u00a0c\u200bd\x00e\x7ff\ufffd", "  two   spaces ", "3.14 + 1,000 = x_1", "[CLS] [MASK] [SEP] ##ing [unk]"),
    *("ßẞ İı ﬁ Ⅷ", "😀👍🏽 – “quote” … €", "x" * 99, "y" * 101, "unbelievablywords" * 20),
)


def check_text(sentences: Sequence[str], where: str) -> None:
    """Refuse sentences that are not text.

    Args:
        sentences: any number of str.
        where: the argument's name in messages.

    Raises:
        InputError: an entry is no str, or holds a lone surrogate (Python's form of non-UTF-8 bytes on a command line).
            The message names the entry's index.
    """
    for index, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise InputError(f"{where}[{index}]: expected str, got {type(sentence).__name__}")
        try:
            sentence.encode()
        except UnicodeEncodeError as error:
            lone = sentence[error.start]
            raise InputError(f"{where}[{index}]: expected text, got {lone!r} at character {error.start}") from None


def shortened(sentence: str) -> str:
    """Quote a sentence for messages; a longer sentence is cut to its first 60 characters."""
    return repr(sentence[:60]) + ("..." if len(sentence) > 60 else "")


@contextmanager
def without_warnings_of_cuts() -> Iterator[None]:
    """Let `Tokenizer.encode` cut sentences silently, because the caller has already reported the cuts."""
    before = _warned_of_already.set(True)
    try:
        yield
    finally:
        _warned_of_already.reset(before)


class Tokenizer:
    """BERT word pieces of sentences, [CLS] and [SEP] added.

    Args:
        inner: a `tokenizers.Tokenizer`; its own padding and truncation are switched off.
        max_tokens: longest result. Longer sentences are cut ([SEP] is kept); each call warns once with their count.
    """

    def __init__(self, inner: object, max_tokens: int = 512) -> None:
        self._inner = inner
        self.max_tokens = max_tokens
        inner.no_padding()  # type: ignore[attr-defined]
        inner.no_truncation()  # type: ignore[attr-defined]

    @property
    def vocab_size(self) -> int:
        """Number of word pieces, added tokens included."""
        size: int = self._inner.get_vocab_size(with_added_tokens=True)  # type: ignore[attr-defined]
        return size

    def encode(self, sentences: Sequence[str]) -> list[Int64]:
        """Token ids of each sentence.

        Args:
            sentences: any number of str; an empty sentence becomes [CLS] [SEP].

        Returns:
            One int64 [L_s] per sentence, not padded, 2 <= L_s <= max_tokens.

        Raises:
            InputError: as `check_text`.
        """
        check_text(sentences, "sentences")
        encoded, cut = [], {}
        # encode() takes sentences one by one: encode_batch starts threads, and a forked worker cannot use them.
        for sentence in sentences:
            ids = self._inner.encode(sentence).ids  # type: ignore[attr-defined]
            if len(ids) > self.max_tokens:
                cut[sentence] = len(ids)
                ids = [*ids[: self.max_tokens - 1], ids[-1]]
            encoded.append(np.asarray(ids, dtype=np.int64))
        if cut and not _warned_of_already.get():
            self._warn(cut, sum(sentence in cut for sentence in sentences), len(sentences))
        return encoded

    def cut_sentences(self, sentences: Sequence[str]) -> dict[str, int]:
        """Find the sentences that `encode` cuts: sentence -> number of word pieces, each once, in the given order.

        Args:
            sentences: any number of str.

        Raises:
            InputError: as `check_text`.
        """
        check_text(sentences, "sentences")
        sizes = {s: len(self._inner.encode(s).ids) for s in dict.fromkeys(sentences)}  # type: ignore[attr-defined]
        return {sentence: size for sentence, size in sizes.items() if size > self.max_tokens}

    def _warn(self, cut: dict[str, int], count: int, total: int) -> None:
        first, size = next(iter(cut.items()))
        if count == 1:
            text = f"a sentence of {size} word pieces was cut to the encoder's {self.max_tokens}: {shortened(first)}"
        else:
            text = (
                f"{count} of {total} sentences were cut to the encoder's {self.max_tokens} word pieces (first: "
                f"{shortened(first)}, {size} word pieces)"
            )
        warnings.warn(text, stacklevel=3)

    def digest(self) -> str:
        """SHA-256, hexadecimal, of the vocabulary and of the ids of some probing sentences.

        A vocab.txt and the tokenizer.json made from it have the same digest. The version of the tokenizers library
        changes the text of tokenizer.json, but not the digest.
        """
        vocabulary = self._inner.get_vocab(with_added_tokens=True)  # type: ignore[attr-defined]
        words, ids = list(vocabulary), np.fromiter(vocabulary.values(), np.int64)
        order = np.argsort(ids)
        # Joined text takes 20 ms for the 30,522 words of BERT, JSON takes 70 ms.
        digest = hashlib.sha256("\0".join([words[number] for number in order.tolist()]).encode())
        digest.update(ids[order].astype("<i8").tobytes())
        for probe in _PROBES:
            digest.update(repr(self._inner.encode(probe).ids).encode())  # type: ignore[attr-defined]
        return digest.hexdigest()

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        text: str = self._inner.to_str(pretty=True)  # type: ignore[attr-defined]
        return text

    def save(self, path: Path) -> None:
        """Write tokenizer.json."""
        path.write_text(self.to_json(), encoding="utf-8")


def load_tokenizer(source: str | Path, max_tokens: int = 512) -> Tokenizer:
    """Read a tokenizer.

    Args:
        source: a tokenizer.json, a BERT vocab.txt, a directory that holds either, or a hub id.
        max_tokens: the encoder's limit.

    Raises:
        InputError: the source does not exist, or is not a BERT word-piece tokenizer.
    """
    check_name(source, "tokenizer")
    path = Path(source)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "vocab.txt") if (path / name).is_file()]
        if not found:
            raise InputError(f"tokenizer: {path} holds neither tokenizer.json nor vocab.txt")
        path = found[0]
    elif not path.is_file():
        from mmn_fast.weights.hub import download, is_hub_id

        if not is_hub_id(source):
            raise InputError(f"tokenizer: {path}: no such file or directory")
        path = download(str(source), ["tokenizer.json"]) / "tokenizer.json"
    inner = _read_vocab(path) if path.suffix == ".txt" else _read_json(path)
    return _checked(inner, str(path), max_tokens)


def tokenizer_from_json(text: str, where: str, max_tokens: int) -> Tokenizer:
    """Make a tokenizer from the text of `Tokenizer.to_json`.

    Args:
        text: content of a tokenizer.json.
        where: origin of the text, for messages.
        max_tokens: the encoder's limit.

    Raises:
        InputError: not a BERT word-piece tokenizer.
    """
    import tokenizers

    try:
        inner = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"tokenizer: {where}: not a tokenizer.json ({error})") from None
    return _checked(inner, where, max_tokens)


def _checked(inner: object, where: str, max_tokens: int) -> Tokenizer:
    missing = [token for token in _SPECIAL if inner.token_to_id(token) is None]  # type: ignore[attr-defined]
    if missing:
        raise InputError(f"tokenizer: {where}: expected BERT word pieces, found no {', '.join(missing)}")
    return Tokenizer(inner, max_tokens)


def _read_json(path: Path) -> object:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"tokenizer: {path}: not a tokenizer.json ({error})") from None


def _read_vocab(path: Path) -> object:
    """Make a BERT tokenizer from its vocabulary: lower case, accents stripped, like bert-base-uncased."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    try:
        words = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"tokenizer: {path}: not a vocabulary ({error})") from None
    vocab = {word.rstrip("\r"): number for number, word in enumerate(words) if word or number + 1 < len(words)}
    if not all(token in vocab for token in _SPECIAL):
        raise InputError(f"tokenizer: {path}: expected a BERT vocabulary with {', '.join(_SPECIAL)}")
    inner = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    inner.add_special_tokens(
        [AddedToken(t, special=True) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if t in vocab]
    )
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    return inner
