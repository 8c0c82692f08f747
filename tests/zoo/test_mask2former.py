"""Mask2Former: names of the official files, of Swin and of old ones, and of transformers of two versions."""

import pytest
import torch
from torch import Tensor

from maskkit import zoo
from maskkit.checkpoints import convert as published
from maskkit.errors import DataError

PRESET = "mask2former-swin-t"

# ours to the official ones, in the order in which they are tried
OFFICIAL = {
    "backbone.body.layers_1.downsample.": "backbone.layers.0.downsample.",
    "backbone.body.layers_2.downsample.": "backbone.layers.1.downsample.",
    "backbone.body.layers_3.downsample.": "backbone.layers.2.downsample.",
    **{f"backbone.body.layers_{i}.": f"backbone.layers.{i}." for i in range(4)},
    "backbone.body.": "backbone.",
    **{f"backbone.norms.{i}.": f"backbone.norm{i}." for i in range(4)},
    "pixel_decoder.inputs.": "pixel_decoder.input_proj.",
    "pixel_decoder.level": "pixel_decoder.transformer.level_embed",
    "pixel_decoder.layers.": "pixel_decoder.transformer.encoder.layers.",
    "pixel_decoder.lateral.0.": "pixel_decoder.adapter_1.",
    "pixel_decoder.lateral.1.": "pixel_decoder.adapter_1.norm.",
    "pixel_decoder.output.0.": "pixel_decoder.layer_1.",
    "pixel_decoder.output.1.": "pixel_decoder.layer_1.norm.",
    "pixel_decoder.mask.": "pixel_decoder.mask_features.",
    "query_decoder.queries.": "predictor.query_feat.",
    "query_decoder.positions.": "predictor.query_embed.",
    "query_decoder.level.": "predictor.level_embed.",
    "query_decoder.norm.": "predictor.decoder_norm.",
    "query_decoder.label.": "predictor.class_embed.",
    **{f"query_decoder.embed.{2 * i}.": f"predictor.mask_embed.layers.{i}." for i in range(3)},
}
PARTS = {
    "attention.offsets.": "self_attn.sampling_offsets.",
    "attention.weights.": "self_attn.attention_weights.",
    "attention.value.": "self_attn.value_proj.",
    "attention.output.": "self_attn.output_proj.",
}
LAYERS = {
    "cross_attention.in_proj.": "transformer_cross_attention_layers.{}.multihead_attn.in_proj_",
    "cross_attention.out_proj.": "transformer_cross_attention_layers.{}.multihead_attn.out_proj.",
    "self_attention.in_proj.": "transformer_self_attention_layers.{}.self_attn.in_proj_",
    "self_attention.out_proj.": "transformer_self_attention_layers.{}.self_attn.out_proj.",
    "norm1.": "transformer_cross_attention_layers.{}.norm.",
    "norm2.": "transformer_self_attention_layers.{}.norm.",
    "norm3.": "transformer_ffn_layers.{}.norm.",
    "linear1.": "transformer_ffn_layers.{}.linear1.",
    "linear2.": "transformer_ffn_layers.{}.linear2.",
}


def official_name(ours: str) -> str:
    if ours.startswith("query_decoder.layers."):
        _, _, layer, part = ours.split(".", 3)
        stem = next(s for s in LAYERS if part.startswith(s))
        return f"sem_seg_head.predictor.{LAYERS[stem].format(layer)}{part.removeprefix(stem)}"
    stem = next(s for s in OFFICIAL if ours.startswith(s))
    name = OFFICIAL[stem] + ours.removeprefix(stem)
    for part, official in PARTS.items():
        name = name.replace(part, official)
    return name if name.startswith("backbone.") else f"sem_seg_head.{name}"


def our_state() -> dict[str, Tensor]:
    with torch.device("meta"):
        model = zoo.model_class(PRESET)(zoo.preset(PRESET).model)  # type: ignore[call-arg]
    return model.state_dict()


def test_official_swin_names_new_and_old() -> None:
    ours = our_state()
    official = {official_name(n): t for n, t in ours.items()}
    constants = {
        "criterion.empty_weight": torch.ones(81),
        "backbone.layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49),
    }
    old = {
        n.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.").replace("query_feat", "static_query"): t
        for n, t in official.items()
    }
    for state in (official | constants, old):
        converted = published.convert(state, PRESET)
        assert set(converted) == set(ours)
        assert all(
            converted[official_name_back] is t for official_name_back, t in zip(ours, official.values(), strict=True)
        )


def test_what_does_not_fit_is_refused() -> None:
    official = {official_name(n): t for n, t in our_state().items()}
    with pytest.raises(DataError, match="not a tensor in checkpoints of Mask2Former"):
        published.convert(official | {"sem_seg_head.predictor.unheard_of": torch.zeros(1)}, PRESET)
    first = next(iter(official))
    with pytest.raises(DataError, match="does not fit"):
        published.convert({n: t for n, t in official.items() if n != first}, PRESET)


def version_4(name: str) -> str:
    """A name of transformers 5 as the files that version 4 wrote have it."""
    name = name.replace("encoder.swin.", "encoder.")
    if ".blocks." not in name:
        return name
    for new, old in (
        ("attention.q_proj", "attention.self.query"),
        ("attention.k_proj", "attention.self.key"),
        ("attention.v_proj", "attention.self.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("attention.relative_position_bias.", "attention.self."),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ):
        name = name.replace(new, old)
    return name


def test_transformers_names_new_and_old() -> None:
    transformers = pytest.importorskip("transformers")
    swin = transformers.SwinConfig(out_features=[f"stage{i}" for i in range(1, 5)])
    config = transformers.Mask2FormerConfig(backbone_config=swin, num_labels=80)
    with torch.device("meta"):
        state = transformers.Mask2FormerForUniversalSegmentation(config).state_dict()
    # it makes some parameters in memory of their own, with whatever lay there
    state = {name: tensor.to("meta") for name, tensor in state.items()}
    expected = {n: t.shape for n, t in our_state().items()}
    for names in (state, {version_4(n): t for n, t in state.items()}):
        assert {n: t.shape for n, t in published.convert(names, PRESET).items()} == expected
    query = next(n for n in state if n.endswith("self_attn.q_proj.weight"))
    with pytest.raises(DataError, match="query, key and value"):
        published.convert({n: t for n, t in state.items() if n != query}, PRESET)


def test_transformers_resnets() -> None:
    transformers = pytest.importorskip("transformers")
    resnet = transformers.ResNetConfig(out_features=[f"stage{i}" for i in range(1, 5)])
    config = transformers.Mask2FormerConfig(backbone_config=resnet, num_labels=80)
    with torch.device("meta"):
        state = transformers.Mask2FormerForUniversalSegmentation(config).state_dict()
        ours = zoo.model_class("mask2former-resnet50")(zoo.preset("mask2former-resnet50").model).state_dict()
    converted = published.convert({name: tensor.to("meta") for name, tensor in state.items()}, "mask2former-resnet50")
    assert {n: t.shape for n, t in converted.items()} == {n: t.shape for n, t in ours.items()}
