"""The engine: load a model, ground sentences in videos, or call the three seams one by one."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmn_fast.arrays import Float32
from mmn_fast.backends import registry
from mmn_fast.backends.base import Backend, Settings
from mmn_fast.checkpoint import IN_THE_BOX, LoadedModel, is_export, load_model
from mmn_fast.embeddings import TextEmbeddings, VideoEmbeddings
from mmn_fast.engine_tubes import TubeGrounding
from mmn_fast.errors import InputError
from mmn_fast.features import pre_clips
from mmn_fast.features.contract import FeatureContract
from mmn_fast.features.extractors.base import Extractor
from mmn_fast.geometry import cells_to_moments, plan_for
from mmn_fast.kernels import host
from mmn_fast.origin import Origin, absolute
from mmn_fast.postprocess import fuse_scores, to_moments
from mmn_fast.presets import PUBLISHED_FEATURES, Preset
from mmn_fast.process.environment import requested_threads
from mmn_fast.request import (
    Request,
    VideoInput,
    check_sentences,
    check_sizes,
    check_top_k,
    check_videos,
    distinct_videos,
    make_request,
)
from mmn_fast.types import Moment, Query, ScoreMaps, Video
from mmn_fast.version import __version__
from mmn_fast.windows.calls import WindowGrounding
from mmn_fast.windows.cuts import checked_windows


def load(
    model: str | Path,
    preset: str | Path | Preset | None = None,
    tokenizer: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    backend: str = "auto",
    threads: int | None = None,
    progress: bool = False,
    backend_options: Mapping[str, Any] | None = None,
) -> Engine:
    """Load a model into an engine.

    Args:
        model: a converted directory (`mmn-fast convert`, `mmn-fast train`), a hub id of one, an official `.pth` file,
            "demo" or "shapes-tubes", the small trained models that come with the package, or an export
            (`mmn-fast export`).
        preset: for a `.pth` file: a preset's name, an official YAML file's path, or a `Preset`.
        tokenizer: for a `.pth` file: a directory, tokenizer.json, vocab.txt or hub id.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto", "fp64" (backend "torch"), "fp32", "bf16", "fp16", "fp8" or "int8"; a backend refuses
            precisions that it does not have.
        backend: "auto" or a name of `available_backends()`.
        threads: CPU threads; None takes `MMN_FAST_NUM_THREADS`, else one per core of the process's affinity mask, at
            most OMP_NUM_THREADS and the CPU quota of its control group.
        progress: show a progress bar during long calls.
        backend_options: settings of the chosen backend alone, see its `OPTIONS`.

    Raises:
        InputError: an argument or file cannot be used (a ValueError; the message says what was expected).
        BackendUnavailable: the backend, device or precision cannot run here.
    """
    threads = requested_threads(threads)
    backend_options = {} if backend_options is None else backend_options
    if not isinstance(backend_options, Mapping):
        raise InputError(f"backend_options: expected a mapping, got {type(backend_options).__name__}")
    host.cpu_isa()  # refuses a wrong MMN_FAST_CPU_ISA before any work: every backend on the CPU chooses moments with it
    choice = registry.choose(backend, device, precision, exported=is_export(model))
    chosen, loaded = choice.backend, load_model(model, preset, tokenizer)
    if chosen.takes_exports and loaded.exported is None:
        raise InputError(
            f"model: backend {chosen.name!r} runs exports only, {loaded.source} is not one; make one with mmn-fast"
            f" export {model} -o DIR"
        )
    if loaded.exported is not None and not chosen.takes_exports:
        raise InputError(
            f"model: {loaded.source} is an export, which backend {chosen.name!r} cannot run; load it with"
            " backend='onnx', or load the model that it was made from"
        )
    settings = Settings(device, precision, threads, dict(backend_options))
    chosen.check_options(settings.options)
    running = chosen(loaded, settings)
    origin = Origin(
        model=str(model) if model in IN_THE_BOX else absolute(model),
        preset=None if preset is None else loaded.preset,
        tokenizer=None if tokenizer is None else absolute(tokenizer),
        device=device,
        precision=precision,
        backend=chosen.name,
        threads=threads,
        progress=progress,
        options=tuple(settings.options.items()),
        source=loaded.source,
        fingerprint=loaded.fingerprint,
        manifest_sha256=loaded.manifest_sha256,
        runs_on=str(running.info()["device"]).partition(":")[0],
        passed_over=tuple(choice.passed_over.items()),
    )
    return Engine(loaded, running, passed_over=choice.passed_over, progress=progress, origin=origin)


class Engine(TubeGrounding, WindowGrounding):
    """A loaded model, safe to call from several threads. It is immutable: `copy.copy` and `copy.deepcopy` return it.

    A pickle takes a few hundred bytes: the model's absolute path (or "demo", or a hub id), its fingerprint, the chosen
    backend and its options. Unpickling loads the model again, once per process while one of its engines is in use. It
    raises InputError if the path now holds another model, BackendUnavailable if the backend or its kind of device is
    missing. Results have the same bits on the same kind of processor. An engine made from a `LoadedModel` pickles the
    weights.

    A result does not depend on the rest of the call: a video or sentence gives the same numbers alone and in any batch
    (with backend "native" on CUDA in fp16 and bf16: the same within the precision's error bound).

    Args:
        model: the model's values.
        backend: runs the model.
        passed_over: why "auto" skipped the backends that it tried earlier.
        progress: show a progress bar during long calls.
        origin: where `load` found the model; with None the engine pickles the model's values.
    """

    def __init__(
        self,
        model: LoadedModel,
        backend: Backend,
        *,
        passed_over: dict[str, str] | None = None,
        progress: bool = False,
        origin: Origin | None = None,
    ) -> None:
        self.preset = model.preset
        self._model = model
        self._backend = backend
        self._passed_over = passed_over or {}
        self._progress = progress
        self._plan = plan_for(model.preset)
        self._origin = origin

    def __reduce__(self) -> tuple[Any, ...]:
        if self._origin is None:
            return _engine_of, (self._model, self._backend, self._passed_over, self._progress)
        _unpickled.setdefault(repr(self._origin), self)
        return _loaded_again, (self._origin,)

    def __copy__(self) -> Engine:
        return self

    def __deepcopy__(self, memo: object) -> Engine:
        return self

    def ground(
        self,
        batch: Iterable[Query],
        top_k: int = 5,
        *,
        window_s: float | None = None,
        overlap: float | None = None,
    ) -> list[list[list[Moment]]]:
        """Find the moments that sentences describe.

        Args:
            batch: any number of queries; a repeated video is encoded once.
            top_k: moments per sentence, >= 1.
            window_s: cut videos that are longer than this many seconds into windows of this length, at boundaries of
                feature rows, and merge their moments by the preset's suppression; no moment is longer than a window.
                None cuts no video.
            overlap: share of a window that the next one repeats, 0 <= overlap < 1; None takes 0.5.

        Returns:
            `result[v][s]`: moments of sentence s of query v, best first, after non-maximum suppression; it can leave
            fewer than top_k.

        Raises:
            InputError: a query cannot be used; the message names the query and what is wrong with it.
        """
        windows = checked_windows(window_s, overlap, self.preset)
        if windows is not None:
            return self._ground_windows(batch, windows, check_top_k(top_k), self._ground)
        return self._ground(batch, self._moments_wanted(top_k))

    def _ground(self, batch: Iterable[Query], top_k: int) -> list[list[list[Moment]]]:
        request = self._request(batch, self._backend.video_input)
        chosen, scores = self._backend.ground(request, top_k)
        cells, clips, durations = self._plan.cells, self.preset.num_clips, request.pairs.durations
        return [
            to_moments(chosen[span], scores[span], cells_to_moments(cells, durations[span.start], clips))
            if span.start < span.stop
            else []
            for span in request.spans
        ]

    def score_maps(self, batch: Iterable[Query]) -> list[ScoreMaps]:
        """Score every proposal of every query, without selection.

        There are no maps of a whole long video: a map belongs to one window. `windows.cut_video` gives the windows of
        a video as videos, which this call takes.

        Args:
            batch: any number of queries.

        Returns:
            One `ScoreMaps` per query.

        Raises:
            InputError: a query cannot be used.
        """
        request = self._request(batch, self._pre_clips)
        nothing = np.empty((0, self._plan.num_proposals), np.float32)
        scores = [(nothing, nothing.copy(), nothing.copy()) for _ in request.spans]
        for number, video, text in self._backend.embed(request):
            contrastive, iou = self._backend.score(video, text)
            scores[number] = contrastive, iou, fuse_scores(contrastive, iou, self.preset)
        return [ScoreMaps(*maps, cells=self._plan.cells.copy()) for maps in scores]

    def encode_video(
        self, videos: Iterable[Video], *, window_s: float | None = None, overlap: float | None = None
    ) -> VideoEmbeddings:
        """Embed every proposal of some videos; the embeddings serve any number of sentences later.

        Args:
            videos: any number of videos.
            window_s: cut longer videos into windows, as for `ground`; the embeddings keep where each window lies.
            overlap: as for `ground`.

        Returns:
            Embeddings in the order given.

        Raises:
            InputError: a video cannot be used.
        """
        windows, items = checked_windows(window_s, overlap, self.preset), check_videos(videos)
        in_windows = None if windows is None else self._encode_windows(items, windows)
        if in_windows is not None:
            return in_windows
        named = [(f"videos[{n}]", video) for n, video in enumerate(items)]
        distinct, rows = distinct_videos(named, self._pre_clips, self.contract)
        shape = (-1, self.preset.num_pre_clips, self.preset.input_size)
        inputs = np.concatenate(distinct) if items else np.empty(0, np.float32)
        contrastive, iou = self._backend.encode_video(inputs.reshape(shape))
        if len(distinct) < len(items):
            contrastive, iou = contrastive[rows], iou[rows]
        return VideoEmbeddings(
            contrastive=contrastive,
            iou=iou,
            fingerprint=self._model.fingerprint,
            durations_s=tuple(float(video.duration_s) for video in items),
            video_ids=tuple(video.video_id for video in items),
        )

    def encode_text(self, sentences: Sequence[str]) -> TextEmbeddings:
        """Embed sentences.

        Args:
            sentences: any number of sentences; a sentence beyond the encoder's limit is cut, with a warning.

        Returns:
            Embeddings in the order given.

        Raises:
            InputError: not a sequence of str.
        """
        checked = check_sentences(sentences)
        row_of = {sentence: row for row, sentence in enumerate(dict.fromkeys(checked))}
        rows = [row_of[sentence] for sentence in checked]
        contrastive, iou = self._backend.encode_text(self._model.tokenizer.encode(list(row_of)))
        return TextEmbeddings(
            contrastive=contrastive[rows],
            iou=iou[rows],
            fingerprint=self._model.fingerprint,
            sentences=tuple(checked),
        )

    def warmup(
        self,
        videos: Sequence[int] = (1,),
        sentences: Sequence[int] = (1, 8),
        tokens: Sequence[int] = (16, 32),
        top_k: int = 5,
        rows: Sequence[int] = (64, 256),
    ) -> None:
        """Prepare for requests of every combination of these sizes; a backend with nothing to prepare does nothing.

        Args:
            videos: distinct videos in a call of `ground`, each >= 1.
            sentences: distinct sentences in the call, each >= 1.
            tokens: word pieces of the call's longest sentence, [CLS] and [SEP] included, each >= 1.
            top_k: moments per sentence.
            rows: clip features (n_src) of each video, each >= 1.

        Raises:
            InputError: a size is no whole number >= 1.
            MemoryError: the device has too little memory for one of the sizes.
        """
        check_sizes(videos=videos, sentences=sentences, tokens=tokens, rows=rows)
        self._backend.warmup(videos, sentences, tokens, rows, self._moments_wanted(top_k))

    @property
    def contract(self) -> FeatureContract | None:
        """How the features of the model's training are made; None if the model does not say."""
        return self._model.contract

    @property
    def fingerprint(self) -> str:
        """Identifies the model's values; embeddings carry it."""
        return self._model.fingerprint

    def extractor(self, spec: str | None = None, **options: Any) -> Extractor:
        """Make the extractor of the model's features, for `Video.open`.

        Args:
            spec: the extractor, such as "onnx:net.onnx", if its weights have moved since training; None takes the
                contract's.
            options: `device`, `precision`, `batch_size` and `threads`, as for `make_extractor`.

        Raises:
            InputError: the model does not say how its features are made, or their weights are not found or others.
        """
        from mmn_fast.features.extractors.registry import extractor_for

        if self.contract is None:
            raise InputError(
                f"extractor: the model {self._model.source} does not say how its features are made; name the extractor,"
                " or add its contract to the model (mmn-fast convert --contract)"
            )
        return extractor_for(self.contract, spec, **options)

    def with_threads(self, threads: int) -> Engine | None:
        """Make an engine of 1 to 4096 CPU threads that shares this one's memory; None if their number is fixed.

        Raises:
            InputError: `threads` is another number.
        """
        made = self._backend.with_threads(host.num_threads(threads))
        return None if made is None else Engine(self._model, made, passed_over=self._passed_over)

    @property
    def max_tokens(self) -> int:
        """Most word pieces of a sentence that the text encoder takes, [CLS] and [SEP] included."""
        return self._model.text.max_tokens

    def cut_sentences(self, sentences: Sequence[str]) -> dict[str, int]:
        """Find the sentences that are longer than `max_tokens`; other methods cut them and warn with their count.

        Returns:
            Sentence -> its number of word pieces; each sentence once, in the given order.

        Raises:
            InputError: not a sequence of str.
        """
        return self._model.tokenizer.cut_sentences(check_sentences(sentences))

    def info(self) -> dict[str, Any]:
        """The engine's backend, device, ISA, precision and threads, and why other backends were skipped."""
        text, p, proposals = self._model.text, self.preset, self._plan.num_proposals
        return {
            "model": self._model.source,
            "fingerprint": self._model.fingerprint,
            "preset": self.preset.name,
            "proposals": proposals,
            "sizes": {"D": p.input_size, "T": p.num_pre_clips, "N": p.num_clips, "J": p.joint_size, "P": proposals},
            "features": {
                "expects": f"{self._expected()}, rows in temporal order, not normalised",
                "streams": list(self.preset.feature_streams),
                "normalisation": "each stream of each row to unit length, by the engine",
                "key": self.preset.feature_key or "the video itself",
                "extractor": PUBLISHED_FEATURES.get(self.preset.name, "not known; that of the training features"),
                "contract": None if self.contract is None else self.contract.to_dict(),
            },
            "text_encoder": {"layers": text.num_layers, "width": text.width, "max_tokens": text.max_tokens},
            "backend": self._backend.name,
            **self._backend.info(),
            "cpu_isa": host.cpu_isa(),
            "passed_over": dict(self._passed_over),
            "mmn_fast": __version__,
        }

    def _expected(self) -> str:
        if self.preset.of_tubes:
            return "per tube " + " and ".join(f"float [n_s, {width}]" for width in self.preset.feature_streams)
        return f"float [n_src, {self.preset.input_size}]"

    def _moments_wanted(self, top_k: int) -> int:
        """Check `top_k` and limit it to the number of proposals, because each moment takes memory."""
        return min(check_top_k(top_k), self._plan.num_proposals)

    def _request(self, batch: Iterable[Query], video_input: VideoInput) -> Request:
        return make_request(batch, video_input, self._model.tokenizer.encode, self._progress, self.contract)

    def _pre_clips(self, features: Any, name: str) -> Float32:
        return pre_clips(features, self.preset, name)


_unpickled: weakref.WeakValueDictionary[str, Engine] = weakref.WeakValueDictionary()
"""Origin -> engine of this process that has been pickled or unpickled: each task of a worker finds its own."""


def _loaded_again(origin: Origin) -> Engine:
    """Return this process's engine of an origin; load it if there is none."""
    engine = _unpickled.get(repr(origin))
    if engine is None:
        found = load(**origin.arguments())
        assert found._origin is not None
        origin.check(found._origin)
        model, passed_over = found._model.called(origin.source), dict(origin.passed_over)
        engine = Engine(model, found._backend, passed_over=passed_over, progress=origin.progress, origin=origin)
    return _unpickled.setdefault(repr(origin), engine)


def _engine_of(model: LoadedModel, backend: Backend, passed_over: dict[str, str], progress: bool) -> Engine:
    return Engine(model, backend, passed_over=passed_over, progress=progress)
