"""The text graph: `text_encoder.TextEncoder` with its lengths as a mask, and unit norm."""

from __future__ import annotations

import numpy as np
import onnx

from mmn_fast.artifact.manifest import signature
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.export.graphs import OPSET
from mmn_fast.export.graphs.builder import FLOAT, TYPES, Graph, Value, unit
from mmn_fast.presets import TextEncoderConfig
from mmn_fast.weights.state import State

_LAST_NORM_EPS = 1e-5  # of the LayerNorm after the mean, PyTorch's default
_MASKED = float(np.finfo(np.float32).min)  # finite, so that a sentence of padding alone gives numbers, not NaN


def text_graph(model: LoadedModel, precision: str = "fp32", opset: int = OPSET) -> onnx.ModelProto:
    """Map token ids [S, L] and mask [S, L] (1 for a word piece, 0 for padding) to two [S, J] of unit norm.

    Weights and products have the precision's type; norms, softmax, gelu, means, inputs and outputs are float32.

    Args:
        model: the model's values.
        precision: "fp32", "fp16" or "bf16".
        opset: version of the operator set.
    """
    g = Graph(signature("text", model.preset), opset)
    token_ids, attention_mask = g.inputs
    encoder = _Encoder(g, model.text, model.state, TYPES[precision])
    real = g.Greater(attention_mask, 0)
    x = encoder.tokens(token_ids, g.Unsqueeze(real, [1, 2]))
    weight = g.cast(g.Unsqueeze(real, [2]), FLOAT)  # [S, L, 1]
    total = g.ReduceSum(g.Mul(g.cast(x, FLOAT), weight), [1], keepdims=0)
    # A sentence of no word pieces has a mean of zeros.
    mean = g.Div(total, g.Max(g.ReduceSum(weight, [1], keepdims=0), 1.0))
    sentence = encoder.norm("layernorm", mean, _LAST_NORM_EPS)
    # fc_out1 is the iou branch, see TextEncoder.
    return g.model(*(unit(g, encoder.head(name, sentence)) for name in ("fc_out2", "fc_out1")))


class _Encoder:
    """Adds the encoder's layers to a graph; weights have their official names."""

    def __init__(self, g: Graph, config: TextEncoderConfig, state: State, dtype: int) -> None:
        self.g, self.config, self.state, self.dtype = g, config, state, dtype

    def tokens(self, token_ids: Value, real: Value) -> Value:
        """Embed tokens [S, L], of which [S, 1, 1, L] are real: [S, L, H]."""
        g, embeddings = self.g, "bert.embeddings"
        words = g.Gather(self._weight(f"{embeddings}.word_embeddings.weight"), token_ids, axis=0)
        length = g.Shape(token_ids, start=1, end=2)
        places = g.Slice(self._weight(f"{embeddings}.position_embeddings.weight"), [0], length, [0])
        placed = g.Add(g.cast(words, FLOAT), g.cast(places, FLOAT))
        x = self.norm(f"{embeddings}.LayerNorm", g.shaped(placed, ["S", "L", self.config.width]))
        for number in range(self.config.num_layers):
            layer = f"bert.transformer.layer.{number}"
            x = self._add_and_norm(f"{layer}.sa_layer_norm", x, self._attention(f"{layer}.attention", x, real))
            inner = g.Gelu(g.cast(self._linear(f"{layer}.ffn.lin1", x), FLOAT))
            outer = self._linear(f"{layer}.ffn.lin2", g.cast(inner, self.dtype))
            x = self._add_and_norm(f"{layer}.output_layer_norm", x, outer)
        return x

    def _attention(self, name: str, x: Value, real: Value) -> Value:
        g, heads = self.g, self.config.num_heads
        width = self.config.width // heads
        q, k, v = (
            # A 0 in a shape keeps the axis' size.
            g.Transpose(g.Reshape(self._linear(f"{name}.{part}", x), [0, 0, heads, width]), perm=perm)
            for part, perm in (("q_lin", [0, 2, 1, 3]), ("k_lin", [0, 2, 3, 1]), ("v_lin", [0, 2, 1, 3]))
        )
        scores = g.Mul(g.cast(g.MatMul(q, k), FLOAT), width**-0.5)  # [S, heads, L, L]
        weights = g.cast(g.Softmax(g.Where(real, scores, _MASKED), axis=-1), self.dtype)
        mixed = g.Transpose(g.MatMul(weights, v), perm=[0, 2, 1, 3])
        return self._linear(f"{name}.out_lin", g.Reshape(mixed, [0, 0, self.config.width]))

    def _add_and_norm(self, name: str, x: Value, change: Value) -> Value:
        return self.norm(name, self.g.Add(self.g.cast(x, FLOAT), self.g.cast(change, FLOAT)))

    def norm(self, name: str, x: Value, epsilon: float | None = None) -> Value:
        """LayerNorm in float32, rounded to the precision's type."""
        weight, bias = (self._weight(f"{name}.{part}", FLOAT) for part in ("weight", "bias"))
        epsilon = self.config.NORM_EPS if epsilon is None else epsilon
        return self.g.cast(self.g.LayerNormalization(x, weight, bias, epsilon=epsilon), self.dtype)

    def _linear(self, name: str, x: Value) -> Value:
        weight = self.g.weight(f"{name}.weight", self.state[f"text_encoder.{name}.weight"].T, self.dtype)
        return self.g.Add(self.g.MatMul(x, weight), self._weight(f"{name}.bias"))

    def head(self, name: str, x: Value) -> Value:
        """A linear layer of sentences [S, H]. It is a Gemm, because int8 quantises every MatMul with weights."""
        return self.g.Gemm(x, self._weight(f"{name}.weight"), self._weight(f"{name}.bias"), transB=1)

    def _weight(self, name: str, dtype: int | None = None) -> Value:
        return self.g.weight(name, self.state[f"text_encoder.{name}"], self.dtype if dtype is None else dtype)
