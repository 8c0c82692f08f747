"""The time of FCIS's 600 regions, part by part, next to that of the shared network.

    python benchmarks/fcis_regions.py --size 600 1000

Weights are random; the number of proposals is fixed, so the time does not depend on them.
"""

import argparse
import statistics
import time
from collections import defaultdict

import torch

from common_timing import describe
from maskkit import create_model
from maskkit.models import fcis
from maskkit.nn.backbones.backbone import fold_batch_norm

PARTS = {
    "propose": "proposals: decoding and NMS of the anchors",
    "corner_sums": "sums over the maps, once for all regions",
    "read": "regions: position-sensitive pooling, scores, boxes, masks (two passes of 300)",
    "refine": "refinement of the boxes of the first pass",
    "select": "selection: NMS within classes, weights of the votes",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fcis-resnet101")
    parser.add_argument("--size", type=int, nargs=2, default=(600, 1000), help="height and width of the input")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model = create_model(given.model).eval().to(memory_format=torch.channels_last)
    fold_batch_norm(model, torch.zeros(1, 3, 256, 256))
    images = torch.randn(1, 3, *given.size).contiguous(memory_format=torch.channels_last)
    spent: dict[str, float] = defaultdict(float)

    def timed(owner: object, name: str) -> None:
        call = getattr(owner, name)

        def measured(*inputs: object) -> object:
            begin = time.perf_counter()
            result = call(*inputs)
            spent[name] += (time.perf_counter() - begin) * 1000
            return result

        setattr(owner, name, measured)

    for name in PARTS:
        timed(model if hasattr(model, name) else fcis, name)
    runs: list[dict[str, float]] = []
    with torch.inference_mode():
        for run in range(given.runs + 1):
            spent.clear()
            begin = time.perf_counter()
            model.select(model(images))
            if run:  # the first one warms up
                runs.append({**spent, "all": (time.perf_counter() - begin) * 1000})
    middle = {name: statistics.median(run[name] for run in runs) for name in (*PARTS, "all")}
    print(describe(given.threads))
    print(f"network: {middle['all'] - sum(middle[name] for name in PARTS):.0f} ms of {middle['all']:.0f} ms")
    for name, words in PARTS.items():
        print(f"{words}: {middle[name]:.0f} ms, {100 * middle[name] / middle['all']:.1f} %")


if __name__ == "__main__":
    main()
