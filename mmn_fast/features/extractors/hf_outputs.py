"""Names of what a network of `transformers` gives for a batch, and rows by name.

* `get_image_features`, `get_video_features`: the embedding that a model of images (videos) and text compares with text;
* `pooler_output` and other outputs [N, D], by their own names;
* `last_hidden_state:mean` and `:first`: the mean over all tokens or positions, and the first token;
  the same for other outputs of tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mmn_fast.errors import InputError
from mmn_fast.features.messages import close_to, first_line, listed

_METHODS = {True: "get_video_features", False: "get_image_features"}
_PREFERRED = ("get_video_features", "get_image_features", "pooler_output", "last_hidden_state:mean")


class Outputs:
    """A network and the names of its outputs.

    Args:
        model: the network.
        of_clips: it takes clips of frames, [N, T, 3, h, w]; otherwise frames, [N, 3, h, w].
        missing: names of weights that its files lack; they are random numbers.
        place: its place, for messages.
    """

    def __init__(self, model: Any, of_clips: bool, missing: Collection[str], place: str) -> None:
        method = _METHODS[of_clips]
        self._method = method if hasattr(model, method) else None
        # A model of images (or clips) and text cannot run without text. Its image tower can run on images.
        self._tower = model
        if self._method:
            self._tower = None if of_clips else getattr(model, "vision_model", None)
        self._model, self._missing, self._place = model, missing, place

    def choose(self, batch: Any, wanted: str | None) -> tuple[str, int]:
        """Choose an output and find its width.

        Args:
            batch: an input of the network.
            wanted: a name; None for the first there is of `get_video_features`, `get_image_features`, `pooler_output`
                and `last_hidden_state:mean`.

        Returns:
            The name, and D.

        Raises:
            InputError: no such output, the files lack weights that it needs, or the network fails.
        """
        names = self._names(batch)
        if wanted is None:
            wanted = next((name for name in _PREFERRED if name in names), next(iter(names), None))
        if wanted is None or wanted not in names:
            close = close_to(wanted, names) if wanted else ""
            raise InputError(f"output: {self._place} has no output {wanted!r}{close}; it has {listed(names, 'output')}")
        return wanted, self.take(wanted, batch).shape[-1]

    def _names(self, batch: Any) -> list[str]:
        names = [self._method] if self._method else []
        if self._tower is not None:
            for name, value in self._forward(batch).items():
                if getattr(value, "ndim", 0) == 2 or (getattr(value, "ndim", 0) == 4 and value.shape[2:].numel() == 1):
                    names.append(name)
                elif getattr(value, "ndim", 0) in (3, 4):
                    names += [f"{name}:mean", f"{name}:first"][: 5 - value.ndim]
        pooler = [name for name in self._missing if "pooler" in name.split(".") or "head" in name.split(".")]
        if set(self._missing) - set(pooler):
            first = min(set(self._missing) - set(pooler))
            raise InputError(f"extractor: {self._place}: its files lack {len(self._missing)} weights, such as {first}")
        return [name for name in names if not (pooler and name in ("pooler_output", self._method))]

    def take(self, name: str, batch: Any) -> Any:
        """Rows [N, D] of a batch, by the output's name."""
        if name == self._method:
            found = self._call(getattr(self._model, name), batch)
            pooled = getattr(found, "pooler_output", found)  # a tensor before transformers 5
            return pooled.reshape(len(batch), -1)
        output, _, pool = name.partition(":")
        value = self._forward(batch)[output]
        if pool == "first":
            return value[:, 0]
        if pool == "mean":
            return value.mean(dim=1) if value.ndim == 3 else value.mean(dim=(2, 3))
        return value.reshape(len(value), -1)

    def _forward(self, batch: Any) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._call(self._tower, batch)
        return found

    def _call(self, function: Any, batch: Any) -> Any:
        name = getattr(self._model, "main_input_name", "pixel_values")
        name = name if name.startswith("pixel_values") else "pixel_values"
        try:
            return function(**{name: batch})
        except Exception as error:  # a network may refuse a size in its own way
            raise InputError(
                f"extractor: {self._place}: fails for an input of {list(batch.shape)} ({first_line(error)})"
            ) from error
