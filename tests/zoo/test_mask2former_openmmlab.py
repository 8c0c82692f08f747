"""Mask2Former of mmdetection and mmsegmentation: old and new names, and Swin's order of neighbours."""

import pytest
import torch
import torch.nn.functional as F

from maskkit.errors import DataError
from maskkit.zoo.mask2former import rename

_ENCODER, _QUERY = "pixel_decoder.encoder.layers.3.", "transformer_decoder.layers.7."
# ours, the names of 3.x, those of 2.x
NAMES = (
    (
        "pixel_decoder.layers.3.attention.offsets.weight",
        _ENCODER,
        "self_attn.",
        "attentions.0.",
        "sampling_offsets.weight",
    ),
    ("pixel_decoder.layers.3.linear1.bias", _ENCODER, "ffn.", "ffns.0.", "layers.0.0.bias"),
    (
        "query_decoder.layers.7.cross_attention.in_proj.weight",
        _QUERY,
        "cross_attn.",
        "attentions.0.",
        "attn.in_proj_weight",
    ),
    (
        "query_decoder.layers.7.self_attention.out_proj.bias",
        _QUERY,
        "self_attn.",
        "attentions.1.",
        "attn.out_proj.bias",
    ),
    ("query_decoder.layers.7.linear2.weight", _QUERY, "ffn.", "ffns.0.", "layers.1.weight"),
)


@pytest.mark.parametrize("head", ["panoptic_head", "decode_head"])
def test_names_of_both_versions_and_zoos(head: str) -> None:
    for ours, start, new, old, end in NAMES:
        for part in (new, old):
            tensor = torch.zeros(3)
            assert rename({f"{head}.{start}{part}{end}": tensor}) == {ours: tensor}
    assert set(
        rename(
            {"backbone.stages.1.blocks.0.attn.w_msa.qkv.bias": torch.zeros(3), f"{head}.cls_embed.bias": torch.zeros(1)}
        )
    ) == {
        "backbone.body.layers_1.blocks.0.attn.qkv.bias",
        "query_decoder.label.bias",
    }


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(DataError, match="not a tensor in checkpoints of Mask2Former"):
        rename({"panoptic_head.unheard_of": torch.zeros(1)})


def test_swin_reads_its_neighbours_in_another_order() -> None:
    x, weight = torch.randn(1, 5, 6, 8), torch.randn(7, 20)
    official = F.unfold(x, 2, stride=2).transpose(1, 2) @ weight.T  # channel, row, column
    named = {"backbone.stages.0.downsample.reduction.weight": weight, "panoptic_head.cls_embed.bias": torch.zeros(1)}
    ours = rename(named)["backbone.body.layers_1.downsample.reduction.weight"]
    rows = x.permute(0, 2, 3, 1)
    joined = torch.cat([rows[:, r::2, c::2] for c in (0, 1) for r in (0, 1)], -1)  # column, row, channel
    assert torch.allclose((joined @ ours.T).flatten(1, 2), official, atol=1e-5)
