"""Names of EVA's checkpoints: strict both ways."""

import re
from typing import cast

import pytest
import torch
from torch import Tensor

from maskkit import zoo
from maskkit.checkpoints import convert as published
from maskkit.checkpoints.foreign import write_tensors
from maskkit.engine.initial import load_backbone
from maskkit.errors import DataError
from maskkit.models.eva import Eva, EvaConfig
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.mim import MaskedStudent
from maskkit.zoo.eva import rename_student, rename_vit
from tests.models.test_eva import config

_OFFICIAL = (
    (r"backbone\.body\.relative\.(\d+)\.rows", r"backbone.net.blocks.\1.attn.rel_pos_h"),
    (r"backbone\.body\.relative\.(\d+)\.columns", r"backbone.net.blocks.\1.attn.rel_pos_w"),
    (r"backbone\.body\.net\.(.+)", r"backbone.net.\1"),
    (r"rpn\.conv\.0\.(\w+)", r"proposal_generator.rpn_head.conv.conv0.\1"),
    (r"rpn\.conv\.2\.(\w+)", r"proposal_generator.rpn_head.conv.conv1.\1"),
    (r"rpn\.objectness\.(\w+)", r"proposal_generator.rpn_head.objectness_logits.\1"),
    (r"rpn\.deltas\.(\w+)", r"proposal_generator.rpn_head.anchor_deltas.\1"),
    (r"mask_head\.(deconv|predictor)\.(\w+)", r"roi_heads.mask_head.\1.\2"),
)
_PYRAMID = {
    0: ("0", "1", None, "3", "4", "4.norm", "5", "5.norm"),
    1: ("0", "1", "1.norm", "2", "2.norm"),
    2: ("0", "0.norm", "1", "1.norm"),
    3: (None, "1", "1.norm", "2", "2.norm"),
}


def official(name: str, stages: int) -> str:
    """What detectron2 calls a tensor of ours."""
    if m := re.fullmatch(r"backbone\.body\.levels\.(\d)\.(\d)\.(\w+)", name):
        return f"backbone.simfp_{int(m[1]) + 2}.{_PYRAMID[int(m[1])][int(m[2])]}.{m[3]}"
    if m := re.fullmatch(r"mask_head\.convs\.(\d)\.([01])\.(\w+)", name):
        return f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}.{'norm.' * int(m[2])}{m[3]}"
    if m := re.fullmatch(r"(?:box_head|later_heads\.(\d))\.(convs|fc|label|deltas)\.(.+)", name):
        stage = f".{int(m[1]) + 1 if m[1] else 0}" if stages > 1 else ""
        if m[2] == "convs":
            i, norm, leaf = m[3].split(".")
            return f"roi_heads.box_head{stage}.conv{int(i) + 1}.{'norm.' * int(norm)}{leaf}"
        part, what = {"fc": ("head", "fc1"), "label": ("predictor", "cls_score"), "deltas": ("predictor", "bbox_pred")}[
            m[2]
        ]
        return f"roi_heads.box_{part}{stage}.{what}.{m[3]}"
    for pattern, theirs in _OFFICIAL:
        if m := re.fullmatch(pattern, name):
            return m.expand(theirs)
    raise AssertionError(name)


@pytest.mark.parametrize("stages", [(0.5, 0.6, 0.7), (0.5,)])
def test_every_tensor_of_a_detector_has_its_name(stages: tuple[float, ...]) -> None:
    given = config(stages=stages)
    torch.manual_seed(0)
    wanted = Eva(given).state_dict()
    state = {official(n, len(stages)): t for n, t in wanted.items()}
    assert len(state) == len(wanted)
    position = state["backbone.net.pos_embed"]
    state["backbone.net.pos_embed"] = torch.cat([torch.full_like(position[:, :1], 9.0), position], 1)
    knobs = {n: getattr(given, n) for n in vars(given)}
    got = published.convert(state, "eva-tiny-256", **knobs)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(t, wanted[n]) for n, t in got.items())
    with pytest.raises(DataError, match="not a tensor in checkpoints of EVA"):
        published.convert(state | {"roi_heads.other": torch.zeros(1)}, "eva-tiny-256", **knobs)
    del state["backbone.simfp_3.0.bias"]
    with pytest.raises(DataError, match="1 of the model's get none"):
        published.convert(state, "eva-tiny-256", **knobs)


def test_the_published_detector_fits() -> None:
    """Its ViT is made for 224 pixels in patches of 16; every fourth block sees all 80 x 80 patches of 1280 pixels."""
    with torch.device("meta"):
        state = Eva(cast(EvaConfig, zoo.preset("eva-giant-1280").model)).state_dict()
    assert state["backbone.body.net.pos_embed"].shape == (1, 14 * 14, 1408)
    for block in range(40):
        side = 80 if block % 4 == 3 else 16
        assert state[f"backbone.body.relative.{block}.rows"].shape == (2 * side - 1, 88)


def pretrained(patch: int = 16) -> dict[str, Tensor]:
    """A checkpoint as the official pre-training writes it."""
    torch.manual_seed(1)
    student = MaskedStudent("eva_tiny_patch16_224", 14 * patch, 8, patch_size=patch)
    names = {"mask_token": "mask_token", "head.weight": "lm_head.weight", "head.bias": "lm_head.bias"}
    return {names.get(n, n.removeprefix("net.")): t for n, t in student.state_dict().items()}


def test_a_pretrained_student_goes_on() -> None:
    student = MaskedStudent("eva_tiny_patch16_224", 224, 8)
    student.load_state_dict(rename_student(pretrained()))


def test_an_official_pretraining_is_a_backbone(tmp_path) -> None:
    state = pretrained()
    torch.save({"module": {f"module.{n}": t for n, t in state.items()}}, tmp_path / "eva.pt")
    backbone = Backbone("eva_tiny_patch16_224", (8, 16, 32))
    unused = load_backbone(backbone, tmp_path / "eva.pt")
    assert unused == ["cls_token", "lm_head.bias", "lm_head.weight", "mask_token", "norm.bias", "norm.weight"]
    net = backbone.body.net
    assert torch.equal(net.pos_embed, state["pos_embed"][:, 1:])
    assert torch.equal(net.blocks[5].mlp.fc2.weight, state["blocks.5.mlp.fc2.weight"])


def test_the_vision_tower_of_eva_clip_is_taken_out() -> None:
    state = {f"visual.{n}": t for n, t in pretrained().items()} | {"text.logit_scale": torch.zeros(())}
    assert rename_vit(state).keys() == pretrained().keys()


def test_patches_of_another_size_say_the_same_of_one_colour(tmp_path) -> None:
    """From 14 to 16 pixels, as EVA's detectors are made from its pre-training."""
    state = pretrained(patch=14)
    write_tensors(tmp_path / "eva.safetensors", state, {})
    backbone = Backbone("eva_tiny_patch16_224", (16,))
    load_backbone(backbone, tmp_path / "eva.safetensors")
    ours = backbone.body.net.patch_embed.proj
    assert ours.weight.shape[2:] == (16, 16)
    colour = torch.tensor([0.3, -1.0, 0.7])[:, None, None]
    seen = ours(colour.expand(1, 3, 16, 16))[0, :, 0, 0]
    kernel, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    before = torch.nn.functional.conv2d(colour.expand(1, 3, 14, 14), kernel, bias)[0, :, 0, 0]
    assert torch.allclose(seen, before, atol=1e-4)
