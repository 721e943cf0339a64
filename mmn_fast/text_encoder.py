"""The text encoder: DistilBERT, mean over the real tokens, LayerNorm, two projections.

This file implements DistilBERT (Sanh et al., 2019) under its published state-dict keys, so that neither inference nor
export depends on a version of transformers. A test compares it with transformers' output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmn_fast.presets import TextEncoderConfig


class _Embeddings(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.word_embeddings = _embedding(config.vocab_size, config.width, padding_idx=0)
        self.position_embeddings = _embedding(config.max_tokens, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.NORM_EPS)

    def forward(self, token_ids: Tensor) -> Tensor:
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        return self.LayerNorm(self.word_embeddings(token_ids) + self.position_embeddings(positions))


def _embedding(rows: int, width: int, padding_idx: int | None = None) -> nn.Embedding:
    """Make an `nn.Embedding`, on the meta device without a draw: `normal_` there imports PyTorch's compiler, 1.5 s."""
    embedding = nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False, padding_idx=padding_idx)
    if not embedding.weight.is_meta:
        embedding.reset_parameters()
    return embedding


class _Attention(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q_lin = nn.Linear(config.width, config.width)
        self.k_lin = nn.Linear(config.width, config.width)
        self.v_lin = nn.Linear(config.width, config.width)
        self.out_lin = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, mask: Tensor, dropout: float) -> Tensor:
        q, k, v = (
            lin(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for lin in (self.q_lin, self.k_lin, self.v_lin)
        )
        return _attend(q, k, v, mask, dropout, self.out_lin)


class _FusedAttention(nn.Module):
    """Attention that computes Q, K and V in one product: one launch instead of three, and a fuller GPU."""

    def __init__(self, three: _Attention) -> None:
        super().__init__()
        lins = three.q_lin, three.k_lin, three.v_lin
        self.num_heads = three.num_heads
        self.weight = nn.Parameter(torch.cat([lin.weight for lin in lins]), requires_grad=False)
        self.bias = nn.Parameter(torch.cat([lin.bias for lin in lins]), requires_grad=False)
        self.out_lin = three.out_lin

    def forward(self, x: Tensor, mask: Tensor, dropout: float) -> Tensor:
        heads = F.linear(x, self.weight, self.bias).unflatten(-1, (3, self.num_heads, -1))  # [S, L, 3, heads, H/heads]
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind()
        return _attend(q, k, v, mask, dropout, self.out_lin)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float, out_lin: nn.Linear) -> Tensor:
    heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)  # [S, heads, L, H/heads]
    out: Tensor = out_lin(heads.transpose(1, 2).flatten(2))
    return out


class _FeedForward(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.lin1 = nn.Linear(config.width, config.ffn_width)
        self.lin2 = nn.Linear(config.ffn_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.gelu(self.lin1(x)))


class _Layer(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.attention: _Attention | _FusedAttention = _Attention(config)
        self.sa_layer_norm = nn.LayerNorm(config.width, eps=config.NORM_EPS)
        self.ffn = _FeedForward(config)
        self.output_layer_norm = nn.LayerNorm(config.width, eps=config.NORM_EPS)

    def forward(self, x: Tensor, mask: Tensor, dropout: float) -> Tensor:
        x = self.sa_layer_norm(x + self.attention(x, mask, dropout))
        return self.output_layer_norm(x + F.dropout(self.ffn(x), dropout))


class _Transformer(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))


class _DistilBert(nn.Module):
    def __init__(self, config: TextEncoderConfig, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.embeddings = _Embeddings(config)
        self.transformer = _Transformer(config)

    def forward(self, token_ids: Tensor, real: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        x = F.dropout(self.embeddings(token_ids), dropout)
        for layer in self.transformer.layer:
            x = layer(x, real[:, None, None, :], dropout)
        return x


class TextEncoder(nn.Module):
    """Maps sentences to the joint space (paper, section 3.1).

    Args:
        config: sizes of DistilBERT.
        joint_size: J.
        dropout: dropout of DistilBERT while training; the default is the published value.
    """

    def __init__(self, config: TextEncoderConfig, joint_size: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.bert = _DistilBert(config, dropout)
        self.layernorm = nn.LayerNorm(config.width)
        # Names of the official checkpoints: fc_out1 is the iou branch, fc_out2 the contrastive branch.
        self.fc_out1 = nn.Linear(config.width, joint_size)
        self.fc_out2 = nn.Linear(config.width, joint_size)

    def forward(self, token_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode padded token ids.

        Args:
            token_ids: int64 [S, L]; ids past a sentence's length are ignored.
            lengths: int64 [S], word pieces of each sentence, [CLS] and [SEP] included, >= 1.

        Returns:
            contrastive [S, J] and iou [S, J], not normalised.
        """
        real = torch.arange(token_ids.shape[1], device=token_ids.device) < lengths[:, None]  # [S, L]
        tokens = self.bert(token_ids, real)  # [S, L, H]
        sentence = self.layernorm((tokens * real[..., None]).sum(1) / lengths[:, None])  # [S, H]
        return self.fc_out2(sentence), self.fc_out1(sentence)


def build_text_encoder(
    config: TextEncoderConfig, joint_size: int, state: Mapping[str, npt.NDArray[Any]]
) -> TextEncoder:
    """Build the text encoder alone, with the given weights, in evaluation mode, on the CPU.

    Args:
        config: sizes of DistilBERT.
        joint_size: J.
        state: float32 arrays under official keys, taken without a copy; keys of other parts are ignored.
    """
    with torch.device("meta"):
        encoder = TextEncoder(config, joint_size)
    prefix = "text_encoder."
    tensors = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in state.items() if k.startswith(prefix)}
    encoder.load_state_dict(tensors, assign=True)
    return encoder.requires_grad_(False).eval()


def fuse_attention(encoder: TextEncoder) -> TextEncoder:
    """Compute Q, K and V of every layer in one product, for inference.

    Args:
        encoder: changed in place; its parameters lose their published names.

    Returns:
        `encoder`.
    """
    for layer in encoder.bert.transformer.layer:
        assert isinstance(layer, _Layer)
        if isinstance(layer.attention, _Attention):
            layer.attention = _FusedAttention(layer.attention)
    return encoder
