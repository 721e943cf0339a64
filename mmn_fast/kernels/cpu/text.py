"""text_encoder in C++: DistilBERT, pooling and both projections; weights are packed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Float32, Int64
from mmn_fast.kernels.host import _C, num_threads
from mmn_fast.presets import TextEncoderConfig

_SENTENCE_EPS = 1e-5  # default epsilon of torch.nn.LayerNorm, which the norm before the projections keeps

Pair = tuple[Float32, Float32]
"""Weight and bias."""


class NativeTextEncoder:
    """Maps sentences to the joint space; safe to call from several threads.

    Args:
        state: float32 arrays under official keys without "text_encoder."; the embeddings are read in place, all others
            are copied.
        config: sizes of DistilBERT.
        precision: "fp32", or "bf16" to round the operands of the linear maps, if the instruction set multiplies bf16.
        isa: instruction set; None for the process's choice.

    Raises:
        TypeError: an array is not float32.
        ValueError: a shape differs from `config`, or the instruction set cannot be used or has no bf16.
    """

    def __init__(
        self, state: Mapping[str, npt.NDArray[Any]], config: TextEncoderConfig, precision: str, isa: str | None = None
    ) -> None:
        def pair(name: str) -> Pair:
            return np.ascontiguousarray(state[f"{name}.weight"]), np.ascontiguousarray(state[f"{name}.bias"])

        def stacked(*names: str) -> Pair:
            weights, biases = zip(*(pair(name) for name in names), strict=True)
            return np.concatenate(weights), np.concatenate(biases)

        # In official checkpoints fc_out1 is the iou branch, fc_out2 the contrastive branch.
        heads = stacked("fc_out2", "fc_out1")
        self._joint = len(heads[1]) // 2
        self._native = _C.TextEncoder(
            word_embeddings=np.ascontiguousarray(state["bert.embeddings.word_embeddings.weight"]),
            position_embeddings=np.ascontiguousarray(state["bert.embeddings.position_embeddings.weight"]),
            embedding_norm=pair("bert.embeddings.LayerNorm"),
            sentence_norm=pair("layernorm"),
            heads=heads,
            num_heads=config.num_heads,
            bert_eps=config.NORM_EPS,
            sentence_eps=_SENTENCE_EPS,
            bf16=precision == "bf16",
            isa=isa,
        )
        for number in range(config.num_layers):
            layer = f"bert.transformer.layer.{number}"
            self._native.add_layer(
                qkv=stacked(*(f"{layer}.attention.{name}_lin" for name in "qkv")),
                out=pair(f"{layer}.attention.out_lin"),
                attention_norm=pair(f"{layer}.sa_layer_norm"),
                inner=pair(f"{layer}.ffn.lin1"),
                outer=pair(f"{layer}.ffn.lin2"),
                output_norm=pair(f"{layer}.output_layer_norm"),
            )

    @property
    def packed_mib(self) -> float:
        """MiB of packed weights; the embeddings are not packed."""
        return self._native.packed_bytes() / 2**20

    def __call__(
        self,
        token_ids: Sequence[Int64],
        threads: int | None = None,
        out: tuple[Float32, Float32] | None = None,
    ) -> tuple[Float32, Float32]:
        """Encode sentences.

        Equivalent to:
            contrastive, iou = text_encoder.TextEncoder(...)(padded, lengths)
            F.normalize(contrastive, dim=-1), F.normalize(iou, dim=-1)

        Args:
            token_ids: int64 [L_s] per sentence, 1 <= L_s <= max_tokens.
            threads: see `host.num_threads`; the result does not depend on it.
            out: contrastive and iou, float32 [S, J] each; allocated if None.

        Returns:
            `out`, unit norm over J. A sentence's rows do not depend on the other sentences, bit for bit.

        Raises:
            TypeError: an argument has another dtype.
            ValueError: a shape or value differs from the above; the message names it.
        """
        if out is None:
            contrastive, iou = np.empty((2, len(token_ids), self._joint), np.float32)
            out = contrastive, iou
        starts = np.zeros(len(token_ids) + 1, np.int64)
        np.cumsum([len(ids) for ids in token_ids], out=starts[1:])
        packed = np.concatenate(token_ids) if len(token_ids) else np.empty(0, np.int64)
        self._native.run(token_ids=packed, starts=starts, contrastive=out[0], iou=out[1], threads=num_threads(threads))
        return out
