"""Our Mask2Former against transformers': same random weights and image, in one run, and the time of each part.

    python benchmarks/against_transformers.py --threads 2

Swin-T for COCO instances (`facebook/mask2former-swin-tiny-coco-instance` without its weights), one image of 640 x
640. The networks run in turn and are compared by the median processor time of a round, which other work on the
machine affects less than wall-clock time; both are printed. Class logits, and mask logits at a quarter of the input,
are compared too.

The parts of both networks are also timed one by one, each on the output of the part before.
"""

import argparse
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from common import describe, in_turn, ratios
from maskkit import zoo
from maskkit.checkpoints import convert as published
from maskkit.models.mask2former import Mask2Former

PRESET = "mask2former-swin-t"


def build() -> tuple[Any, Mask2Former]:
    """Transformers' model, with random offsets and attention too, and ours with the same weights."""
    swin = SwinConfig(out_features=[f"stage{i}" for i in range(1, 5)])  # type: ignore[call-arg]
    config = Mask2FormerConfig(backbone_config=swin, num_labels=80)  # type: ignore[call-arg]
    theirs = Mask2FormerForUniversalSegmentation(config).eval()
    for name, parameter in theirs.named_parameters():
        if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    ours = Mask2Former(zoo.preset(PRESET).model).eval()  # type: ignore[arg-type]
    ours.load_state_dict(published.convert(theirs.state_dict(), PRESET))
    return theirs, ours.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    theirs, ours = build()
    images = torch.randn(1, 3, given.size, given.size)

    def whole() -> tuple[torch.Tensor, torch.Tensor]:
        raw = ours(images)
        return raw.logits[:, -1], torch.einsum("bqc,bchw->bqhw", raw.embeddings[:, -1], raw.features)

    # with gradients enabled: otherwise oneDNN's operators are not counted
    with torch.inference_mode(False), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        whole()
    found, took = in_turn({"transformers": lambda: theirs(images), "maskkit": whole}, given.rounds)
    print(describe(given.threads))
    print(f"{PRESET}, {given.size} x {given.size}, batch 1, {counter.get_total_flops() / 1e9:.0f} GFLOP in products")
    for name, (processor, clock) in took.items():
        print(f"  {name:14} {1000 * processor:8.0f} ms of processor time, {1000 * clock:8.0f} ms by the clock")
    print(f"  {ratios(took['transformers'], took['maskkit'])}")
    labels, masks = found["maskkit"]
    off = [(labels - found["transformers"].class_queries_logits), (masks - found["transformers"].masks_queries_logits)]
    print("  largest difference of class logits {:.1g}, of mask logits {:.1g}".format(*(d.abs().max() for d in off)))

    pixel_level, queries = theirs.model.pixel_level_module, theirs.model.transformer_module
    stages = list(ours.backbone(images).values())
    features, levels = ours.pixel_decoder(stages)
    maps = pixel_level.encoder(images).feature_maps
    decoded = pixel_level.decoder(maps)
    parts = {
        "transformers: backbone": lambda: pixel_level.encoder(images),
        "transformers: pixel decoder": lambda: pixel_level.decoder(maps),
        "transformers: decoder": lambda: queries(decoded.multi_scale_features, decoded.mask_features),
        "maskkit: backbone": lambda: ours.backbone(images),
        "maskkit: pixel decoder": lambda: ours.pixel_decoder(stages),
        "maskkit: decoder": lambda: ours.query_decoder(levels, features),
    }
    _, took = in_turn(parts, given.rounds)
    for name, (processor, clock) in took.items():
        print(f"  {name:28} {1000 * processor:8.0f} ms of processor time, {1000 * clock:8.0f} ms by the clock")


if __name__ == "__main__":
    main()
