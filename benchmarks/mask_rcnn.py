"""Our Mask R-CNN against torchvision's, with the same weights and images in one run: speed and memory.

    python benchmarks/mask_rcnn.py --threads 2

``maskrcnn-resnet50`` with seeded weights that give 100 objects per image; ours are converted from torchvision's by
`maskkit.checkpoints.convert`. Three measurements, each side in turn:

- inference: one image of 800 x 1088 from normalised pixels to 100 boxes and 100 masks of the whole image;
- training: a step with two images of ``--train-size``, forward, backward and SGD, with layers up to stride 4 and batch
  norm frozen on both sides, and masks as tensors in memory;
- memory: the peak of the process after one image of 800 x 1333, each side in a process of its own.
"""

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn

from common import describe, in_turn, ratios
from maskkit import zoo
from maskkit.checkpoints import convert as published
from maskkit.data.shapes import draw
from maskkit.models.mask_rcnn import MaskRcnn
from maskkit.nn.backbones.backbone import fold_batch_norm
from maskkit.prediction import Categories, ImageMeta
from maskkit.targets import Batch, Target, full_sizes

MEAN, STD = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
NAMES = Categories.of([f"class {i}" for i in range(90)])


def build() -> tuple[MaskRCNN, MaskRcnn]:
    """Torchvision's model and ours, with weights that keep activations in range and scores distinct."""
    torch.manual_seed(0)
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if name.endswith("bn3.weight"):
                tensor.fill_(0.2)
            elif name.endswith("cls_logits.weight"):
                tensor.normal_(std=0.05)
            elif name.endswith("cls_score.weight"):
                tensor.normal_()
            elif name.endswith("bbox_pred.weight"):
                tensor.normal_(std=0.0005)
    preset = zoo.preset("maskrcnn-resnet50")
    ours = MaskRcnn(preset.model)  # type: ignore[arg-type]
    ours.load_state_dict(published.convert(theirs.state_dict(), preset.name))
    return theirs, ours.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def drawn_images(count: int, size: tuple[int, int]) -> tuple[list[Tensor], list[Target]]:
    """Drawn images (0..1) and their targets."""
    images, targets = zip(*(draw(seed, size, (6, 10)) for seed in range(count)), strict=True)
    return [image / 255 for image in images], list(targets)


def metas(count: int, size: tuple[int, int]) -> list[ImageMeta]:
    return [ImageMeta(i, "", size, size) for i in range(count)]


def resize(theirs: MaskRCNN, size: tuple[int, int]) -> None:
    """Make torchvision's transform leave images of ``size`` unchanged."""
    transform: Any = theirs.transform
    transform.min_size, transform.max_size = (size[0],), size[1]


def inference(theirs: MaskRCNN, ours: MaskRcnn, size: tuple[int, int]) -> dict[str, Callable[[], int]]:
    """Calls that find the objects of one image and say how many they are."""
    plain = drawn_images(1, size)[0][0]
    resize(theirs, size)

    @torch.inference_mode()
    def of_theirs() -> int:
        return len(theirs([plain])[0]["masks"][:, 0] > 0.5)

    @torch.inference_mode()
    def of_ours() -> int:
        high, wide = (-(-side // 32) * 32 for side in size)
        image = nn.functional.pad((plain - MEAN) / STD, [0, wide - size[1], 0, high - size[0]])
        image = image[None].contiguous(memory_format=torch.channels_last)
        meta = ImageMeta(0, "", size, (high, wide))
        found = ours.decode(ours(image, torch.tensor([size])), [meta], NAMES)[0].instances
        assert found is not None
        assert found.masks is not None
        return len(found.masks.dense())

    theirs.eval()
    fold_batch_norm(ours.eval(), torch.zeros(1, 3, 256, 256))  # as `maskkit.load` does it
    return {"torchvision": of_theirs, "maskkit": of_ours}


def training(theirs: MaskRCNN, ours: MaskRcnn, size: tuple[int, int]) -> dict[str, Callable[[], float]]:
    """Calls that make a step and give its loss."""
    plain, targets = drawn_images(2, size)
    truth = []
    for target in targets:
        assert target.masks is not None
        truth.append({"boxes": target.boxes, "labels": target.labels + 1, "masks": target.masks.dense().byte()})
    images = torch.stack([(image - MEAN) / STD for image in plain]).contiguous(memory_format=torch.channels_last)
    batch = Batch(images, full_sizes(images), targets, metas(2, size))
    resize(theirs, size)
    theirs.train()
    ours.train()
    body: Any = theirs.backbone.body
    body.eval()  # without pretrained weights torchvision does not freeze these
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(
            name.startswith(("layer2", "layer3", "layer4")) and "bn" not in name and "downsample.1" not in name
        )
    learnt = [[p for p in model.parameters() if p.requires_grad] for model in (theirs, ours)]
    backbones = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (body, ours.backbone)]
    assert backbones[0] == backbones[1], f"torchvision learns {backbones[0]} weights of its backbone, we {backbones[1]}"
    optimizers = [torch.optim.SGD(part, lr=1e-5, momentum=0.9) for part in learnt]

    def step(optimizer: torch.optim.Optimizer, losses: Callable[[], dict[str, Tensor]]) -> float:
        total = torch.stack(list(losses().values())).sum()
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(total.detach())

    return {
        "torchvision": lambda: step(optimizers[0], lambda: theirs(plain, truth)),
        "maskkit": lambda: step(optimizers[1], lambda: ours.loss(ours(images, None, targets), batch)),
    }


def show(title: str, calls: dict[str, Callable[[], Any]], rounds: int) -> None:
    """Print what the calls gave and how long they took."""
    found, took = in_turn(calls, rounds)
    print(title)
    for name, times in took.items():
        processor, clock = (1000 * seconds for seconds in times)
        print(f"  {name:12} {processor:7.0f} ms of processor time, {clock:7.0f} by the clock; {found[name]:.5g}")
    print(f"  {ratios(took['torchvision'], took['maskkit'])}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--train-size", type=int, nargs=2, default=(480, 640), help="height and width")
    parser.add_argument("--memory-of", choices=["torchvision", "maskkit"], help="measure the memory of one side alone")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.memory_of:
        theirs, ours = build()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found = inference(theirs, ours, (800, 1333))[given.memory_of]()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        assert found == 100, f"{found} objects, not 100"
        print(f"  {given.memory_of:12} {peak:.0f} MiB with {found} objects, {before:.0f} MiB before")
        return
    print(describe(given.threads))
    # first of all, since a process inherits the peak of the one that started it
    print("memory, 800 x 1333", flush=True)
    for side in ("torchvision", "maskkit"):
        subprocess.run([sys.executable, __file__, "--threads", str(given.threads), "--memory-of", side], check=True)
    size = (given.train_size[0], given.train_size[1])
    theirs, ours = build()
    show(f"training, 2 x {size[0]} x {size[1]}; loss", training(theirs, ours, size), given.rounds)
    show("inference, 800 x 1088, milliseconds; objects", inference(*build(), (800, 1088)), given.rounds)


if __name__ == "__main__":
    main()
