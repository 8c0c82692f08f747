"""Plain transformers as backbones: windows, positions, the pyramid, and timm's own forward as the oracle."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from scipy.interpolate import interp1d
from timm.models.eva import Eva, EvaAttention, EvaBlock

from maskkit import zoo
from maskkit.config import BackboneConfig, PlainVit, change
from maskkit.errors import MaskkitError
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.backbones.vit import RelativePositions, VitPyramid, fit, stretched, whole, windows
from tests.models.conformance import Conformance

TINY = "eva_tiny_patch16_224"
SHORT: dict[str, Any] = {"depth": 2, "embed_dim": 48}


def tiny(vit: PlainVit, strides: tuple[int, ...] = (16,), name: str = TINY, **options: Any) -> VitPyramid:
    torch.manual_seed(0)
    return VitPyramid(name, strides, vit, **options).eval()


def test_strides_and_channels() -> None:
    backbone = Backbone(TINY, (4, 8, 16, 32), vit=PlainVit(window=3, width=24))
    features = backbone(torch.randn(2, 3, 64, 96))
    assert {s: tuple(f.shape) for s, f in features.items()} == {s: (2, 24, 64 // s, 96 // s) for s in (4, 8, 16, 32)}
    assert backbone.channels == dict.fromkeys((4, 8, 16, 32), 24)


def test_detection_grid_of_the_paper() -> None:
    """1024 pixels are 64 patches of 16, whatever patches the weights were learnt with."""
    with torch.device("meta"):
        body = VitPyramid("eva_giant_patch14_224", (16,), PlainVit(), depth=1)
        assert body.map(torch.empty(1, 3, 1024, 1024)).shape == (1, 1408, 64, 64)
    assert body.net.pos_embed is not None
    assert body.net.pos_embed.shape[1] == 16 * 16, "as many places as in the weights"


@pytest.mark.parametrize("name", [TINY, "eva02_tiny_patch14_224"])
def test_without_windows_it_is_timm_without_class_token(name: str) -> None:
    """timm's own forward on the same weights: positions, blocks and rotary embedding are used as there."""
    body = tiny(PlainVit(window=0), name=name)
    side = body.net.patch_embed.img_size[0]
    form: dict[str, Any] = {
        "patch_size": 16,
        "img_size": side,
        "num_classes": 0,
        "class_token": False,
        "global_pool": "avg",
    }
    oracle = timm.create_model(name, use_post_transformer_norm=False, use_fc_norm=False, **form).eval()
    assert isinstance(oracle, Eva)
    oracle.load_state_dict(body.net.state_dict())
    images = torch.randn(1, 3, side, side)
    with torch.no_grad():
        theirs = oracle.forward_features(images)  # (B, N, C)
        ours = body.map(images).flatten(2).transpose(1, 2)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_windows_come_back_whole() -> None:
    cells = torch.randn(2, 7, 10, 3)
    parts = windows(cells, 4)
    assert parts.shape == (2 * 2 * 3, 4, 4, 3)
    assert torch.equal(parts[1], cells[0, :4, 4:8])
    assert parts[2, :, 2:].abs().max() == 0, "filled up"
    assert torch.equal(whole(parts, (7, 10)), cells)


def test_what_is_seen_beyond_a_window() -> None:
    """A change in one corner reaches another window through blocks that see everything, and through no others."""
    images = torch.randn(1, 3, 128, 128)
    changed = images.clone()
    changed[:, :, :16, :16] += 1

    def reach(vit: PlainVit) -> torch.Tensor:
        body = tiny(vit, **SHORT, num_heads=2)
        with torch.no_grad():
            return (body.map(changed) - body.map(images)).abs().amax((0, 1)) > 1e-6

    within = reach(PlainVit(window=4, global_blocks=(1,)))
    assert within.all()
    body = tiny(PlainVit(window=4), **SHORT, num_heads=2)
    body.global_blocks.clear()
    with torch.no_grad():
        local = (body.map(changed) - body.map(images)).abs().amax((0, 1)) > 1e-6
    assert local[:4, :4].all()
    assert not local[4:].any()
    assert not local[:, 4:].any()


def test_the_last_block_of_each_quarter_sees_everything() -> None:
    with torch.device("meta"):
        body = VitPyramid("eva_giant_patch14_224", (16,), PlainVit())
    assert body.global_blocks == {9, 19, 29, 39}
    assert tiny(PlainVit(window=0)).global_blocks == set(range(6))
    with pytest.raises(MaskkitError, match="blocks 0 to 5, not \\[7\\]"):
        tiny(PlainVit(global_blocks=(3, 7)))


def test_relative_positions_by_hand() -> None:
    """On a line of three: a query of ones reads the sum of the row of the distance."""
    bias = RelativePositions(3, 2)
    with torch.no_grad():
        bias.columns.copy_(torch.arange(5.0)[:, None].expand(-1, 2) / 2)  # distance d has d + 2
        bias.rows.fill_(5.0)
    got = bias(torch.ones(1, 1, 1, 3, 2))[0, 0]
    assert torch.equal(got - 10, torch.tensor([[2.0, 1, 0], [3, 2, 1], [4, 3, 2]]))
    wider = bias(torch.ones(1, 1, 1, 5, 2))[0, 0] - 10
    assert wider[4, 0] > wider[0, 0] > wider[0, 4], "stretched, in the same order"


def test_far_distances_share_embeddings_in_evaluation() -> None:
    """As EVA's detectors are evaluated beyond the size of their training: rows at 0, 1, 1 + r, 1 + r + r^2, ... on
    both sides, and scipy's cubic interpolation between them."""
    torch.manual_seed(0)
    bias, linear = RelativePositions(8, 2, "geometric"), RelativePositions(8, 2)
    with torch.no_grad():
        bias.columns.normal_()
    linear.load_state_dict(bias.state_dict())
    right = np.cumsum([0.0, *(1.0903078**i for i in range(7))])
    spline = interp1d(np.concatenate([-right[:0:-1], right]), bias.columns.detach().numpy().sum(1), kind="cubic")
    line, native = torch.ones(1, 1, 1, 10, 2), torch.ones(1, 1, 1, 8, 2)
    seen = bias.eval()(line)[0, 0]
    for i, j in ((0, 9), (9, 0), (4, 4), (2, 5)):
        assert abs(seen[i, j].item() - spline(i - j)) < 1e-5
    assert torch.equal(bias(native), linear(native)), "as it is at the size of the training"
    assert torch.equal(bias.train()(line), linear(line))


def test_positions_are_stretched() -> None:
    embedding = torch.randn(1, 16, 5)
    assert torch.equal(stretched(embedding, (4, 4))[0], embedding.view(4, 4, 5))
    assert torch.allclose(stretched(torch.ones(1, 16, 5), (7, 9)), torch.ones(1, 7, 9, 5), atol=1e-5)


def test_an_input_that_patches_do_not_tile_is_refused() -> None:
    with pytest.raises(MaskkitError, match="100 x 96 pixels is not a multiple of 32"):
        Backbone(TINY, (8, 16, 32))(torch.zeros(1, 3, 100, 96))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(MaskkitError, match="strides \\[4, 8, 16, 32\\], not \\[64\\]"):
        Backbone(TINY, (64,))
    with pytest.raises(MaskkitError, match=r"--model\.backbone\.frozen-stride 0"):
        Backbone(TINY, (16,), frozen_stride=4)
    with pytest.raises(MaskkitError, match="no backbone 'eva_none'"):
        Backbone("eva_none", (16,))
    with pytest.raises(MaskkitError, match="normalises after its layers"):
        Backbone("eva02_enormous_patch14_clip_224", (16,))


def test_weights_of_a_smaller_grid_are_stretched() -> None:
    body = tiny(PlainVit())
    state = {"pos_embed": torch.randn(1, 1 + 7 * 7, 192), "patch_embed.proj.weight": torch.randn(192, 3, 8, 8)}
    got = fit(state, body.net)
    assert got["pos_embed"].shape == body.net.pos_embed.shape
    assert got["patch_embed.proj.weight"].shape == body.net.patch_embed.proj.weight.shape


@pytest.mark.parametrize("preset", ["yolact-mobilenetv2-256", "solov2-mobilenetv2-256", "maskrcnn-mobilenetv2-256"])
def test_other_methods_learn_on_it(preset: str) -> None:
    """A plain transformer is a backbone as any other: its name is all that a method's configuration needs."""
    found = zoo.preset(preset)
    vit = PlainVit(window=4, width=32)
    knobs: dict[str, Any] = {
        "backbone": BackboneConfig(TINY, vit=vit),
        "num_classes": 5,
        "width": 32,
    }
    torch.manual_seed(0)
    model: Model = zoo.model_class(preset)(change(found.model, **knobs))  # type: ignore[call-arg]
    batch = type("Drawn", (Conformance,), {"preset": preset}).batch([3, 4])
    losses = model.loss(model(batch.images, batch.sizes, batch.targets), batch)
    torch.stack(list(losses.values())).sum().backward()
    backbone: Any = model.backbone
    assert backbone.body.net.patch_embed.proj.weight.grad.any()


@pytest.mark.slow
def test_a_billion_parameters() -> None:
    """ViT-g/14 of the paper: counted without memory, then run once in bf16."""
    with torch.device("meta"):
        net = timm.create_model("eva_giant_patch14_224", num_classes=0)
    assert isinstance(net, Eva)
    counted = sum(p.numel() for p in net.parameters())
    assert counted == 1_011_146_112
    net = net.to(torch.bfloat16).to_empty(device="cpu").eval()
    assert sum(p.nbytes for p in net.parameters()) < 2.1e9
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(("norm1.weight", "norm2.weight", "norm.weight")):
                parameter.fill_(1)
            elif parameter.ndim > 1:
                parameter.normal_(std=0.02)
            else:
                parameter.zero_()
        for block in net.blocks:
            assert isinstance(block, EvaBlock)
            assert isinstance(block.attn, EvaAttention)
            block.attn.init_non_persistent_buffers()
        seen = net.forward_features(torch.randn(1, 3, 224, 224, dtype=torch.bfloat16))
    assert seen.shape == (1, 257, 1408)
    assert seen.isfinite().all()
