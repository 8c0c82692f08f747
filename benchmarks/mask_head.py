"""The cost of masks on top of boxes: CondInst against FCOS, with the same backbone, pyramid and towers, in turn.

    python benchmarks/mask_head.py --size 800 1088

Weights are random; `select` works on a fixed number of objects (100), so the time does not depend on them.
"""

import argparse
import statistics
import time

import torch

from common_timing import describe
from maskkit import create_model
from maskkit.nn.backbones.backbone import fold_batch_norm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1088), help="height and width of the input")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    images = torch.randn(1, 3, *given.size).contiguous(memory_format=torch.channels_last)
    names = ("fcos-resnet50-1x", "condinst-resnet50-1x")
    models = {name: create_model(name).eval().to(memory_format=torch.channels_last) for name in names}
    for model in models.values():
        fold_batch_norm(model, torch.zeros(1, 3, 256, 256))
    times: dict[str, dict[str, list[float]]] = {name: {"network": [], "select": []} for name in names}
    with torch.inference_mode():
        for run in range(given.runs + 1):
            for name, model in models.items():
                begin = time.perf_counter()
                raw = model(images)
                middle = time.perf_counter()
                model.select(raw)
                if run:  # the first one warms up
                    times[name]["network"].append((middle - begin) * 1000)
                    times[name]["select"].append((time.perf_counter() - middle) * 1000)
    print(describe(given.threads))
    whole = {}
    for name, parts in times.items():
        network, select = (statistics.median(parts[part]) for part in ("network", "select"))
        whole[name] = network + select
        print(f"{name}: network {network:.0f} ms, select {select:.0f} ms")
    fcos, condinst = whole.values()
    print(f"masks of 100 objects: {condinst - fcos:.0f} ms, {100 * (condinst / fcos - 1):.1f} % of the detector")


if __name__ == "__main__":
    main()
