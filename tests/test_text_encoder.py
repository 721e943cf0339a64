"""The text encoder equals the DistilBERT of transformers, and ignores padding."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from mmn_fast.presets import TextEncoderConfig
from mmn_fast.text_encoder import TextEncoder, build_text_encoder, fuse_attention
from tests.tolerances import check_close

CONFIG = TextEncoderConfig(vocab_size=50, max_tokens=40, width=128, num_layers=2, num_heads=2, ffn_width=96)


def _encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(CONFIG, joint_size=24).eval()


def test_an_encoder_with_given_weights_draws_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device `normal_` imports PyTorch's compiler, which takes 1.5 s of every process."""
    state = {f"text_encoder.{name}": weight.numpy() for name, weight in _encoder().state_dict().items()}
    monkeypatch.setattr(torch.nn.init, "normal_", lambda *_: pytest.fail("values were drawn"))
    build_text_encoder(CONFIG, 24, state)
    with pytest.raises(pytest.fail.Exception, match="values were drawn"):
        _encoder()


@pytest.mark.slow
@torch.no_grad()
def test_encoder_equals_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    ours = _encoder()
    theirs = transformers.DistilBertModel(
        transformers.DistilBertConfig(
            vocab_size=50, max_position_embeddings=40, dim=128, n_layers=2, n_heads=2, hidden_dim=96
        )
    ).eval()
    missing, unexpected = theirs.load_state_dict(ours.bert.state_dict(), strict=False)
    assert not unexpected
    assert all(name.endswith("position_ids") for name in missing)
    ids = torch.randint(1, 50, (3, 17))
    lengths = torch.tensor([17, 2, 9])
    mask = (torch.arange(17) < lengths[:, None]).long()
    tokens = theirs(ids, attention_mask=mask)[0]
    sentence = ours.layernorm((tokens * mask[..., None]).sum(1) / lengths[:, None])
    contrastive, iou = ours(ids, lengths)
    check_close(contrastive, ours.fc_out2(sentence), "text_encoder", what="contrastive")
    check_close(iou, ours.fc_out1(sentence), "text_encoder", what="iou")


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    encoder, ids = _encoder(), torch.randint(1, 50, (1, 9))
    alone = encoder(ids, torch.tensor([9]))
    for filler in (0, 7):
        padded = encoder(torch.cat([ids, torch.full((1, 20), filler)], 1), torch.tensor([9]))
        for one, other in zip(alone, padded, strict=True):
            check_close(other, one, "text_encoder")


@torch.no_grad()
def test_first_projection_is_the_iou_branch() -> None:
    encoder = _encoder()
    encoder.fc_out1.weight.zero_()
    encoder.fc_out1.bias.fill_(3)
    contrastive, iou = encoder(torch.randint(1, 50, (2, 5)), torch.tensor([5, 5]))
    assert (iou == 3).all()
    assert (contrastive != 3).all()


@torch.no_grad()
def test_one_product_for_q_k_and_v_gives_what_three_give() -> None:
    three = _encoder()
    for parameter in three.parameters():
        parameter.copy_(torch.randn_like(parameter) / 8)  # also the biases, which start at 0
    fused = fuse_attention(copy.deepcopy(three))
    assert "bert.transformer.layer.0.attention.q_lin.weight" not in fused.state_dict()
    ids, lengths = torch.randint(1, 50, (3, 17)), torch.tensor([17, 2, 9])
    for ours, theirs in zip(fused(ids, lengths), three(ids, lengths), strict=True):
        check_close(F.normalize(ours, dim=-1), F.normalize(theirs, dim=-1), "text_encoder")
