"""EVA-giant in pieces: weights, gradients and optimizer divided between processes (FSDP of PyTorch).

    torchrun --nproc-per-node 2 examples/fsdp.py --depth 2 --size 224

`eva-giant-1280` has a billion parameters, 16 GB with gradients and the moments of AdamW. `maskkit train` gives each
process all of it; here each process keeps its part, and gets the rest of a layer when it needs it. ``--depth`` makes
the network shallower than its 40 blocks, for machines without GPUs. The loss is the model's own: it counts the objects
of all processes (`maskkit.nn.losses.normaliser`), so the step is that of one process with all images.
"""

import argparse
import os
import time
from typing import Any

import torch
import torch.distributed as dist
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.eva import Eva
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from maskkit.api import create_model
from maskkit.models.base import Model
from maskkit.prediction import ImageMeta
from maskkit.targets import Batch, Target, full_sizes

SHALLOW = "eva_giant_shallow_patch14_224"
default_cfgs = generate_default_cfgs(
    {SHALLOW: {"num_classes": 0, "first_conv": "patch_embed.proj", "classifier": "head"}}
)


@register_model
def eva_giant_shallow_patch14_224(pretrained: bool = False, **options: Any) -> Eva:
    """timm's eva_giant_patch14_224 with as many blocks as the environment says."""
    form = {"patch_size": 14, "embed_dim": 1408, "num_heads": 16, "mlp_ratio": 6144 / 1408}
    return build_model_with_cfg(Eva, SHALLOW, pretrained, depth=int(os.environ["DEPTH"]), **(form | options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=2, help="blocks; 40 are published")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=1)
    given = parser.parse_args()
    os.environ["DEPTH"] = str(given.depth)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    dist.init_process_group("gloo" if device.type == "cpu" else None)
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # the same weights everywhere, of which each process keeps its part
    model = create_model("eva-giant-1280", 3, backbone={"name": SHALLOW, "vit": {"relative": given.size}})
    whole = sum(p.numel() for p in model.parameters())
    divide(model.train(), device, world)
    mine = sum(p.to_local().numel() for p in model.parameters())  # type: ignore[attr-defined]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2.5e-5, weight_decay=0.1)
    batch = drawn(given.size, seed=rank).to(device)
    for step in range(given.steps):
        begin = time.perf_counter()
        torch.manual_seed(step * world + rank)
        losses = model.loss(model(batch.images, batch.sizes, batch.targets), batch)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).full_tensor()  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad()
        took = time.perf_counter() - begin
        print(
            f"process {rank} of {world}: {mine / 1e6:.1f} of {whole / 1e6:.1f} million parameters, step {step + 1}, "
            f"loss {total.item():.3f}, norm of gradients {norm.item():.2f}, {took:.1f} s",
            flush=True,
        )
    dist.destroy_process_group()


def divide(model: Model, device: torch.device, world: int) -> None:
    """Divide the weights: the MLP of each block, two thirds of it, is a unit of its own; all the rest is one.

    The attention is not: its queries are read outside of it too, for relative positions.
    """
    mesh = init_device_mesh(device.type, (world,))
    for block in model.backbone.body.net.blocks:  # type: ignore[attr-defined]
        fully_shard(block.mlp, mesh=mesh)
    fully_shard(model, mesh=mesh)


def drawn(size: int, seed: int) -> Batch:
    """One image with two rectangles."""
    masks = torch.zeros(2, size, size, dtype=torch.bool)
    masks[0, size // 8 : size // 2, size // 8 : size // 3] = True
    masks[1, size // 2 :, size // 2 + seed : -size // 8] = True
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed)) + 2.0 * masks.any(0)
    boxes = [
        [m.nonzero()[:, 1].min(), m.nonzero()[:, 0].min(), m.nonzero()[:, 1].max() + 1, m.nonzero()[:, 0].max() + 1]
        for m in masks
    ]
    target = Target.of(torch.tensor(boxes), [0, 2], masks)
    return Batch(images, full_sizes(images), [target], [ImageMeta(1, "", (size, size), (size, size))])


if __name__ == "__main__":
    main()
