"""The time of NMS of many masks: Matrix NMS, its formula as written, and greedy mask NMS, in one run.

    python benchmarks/matrix_nms.py
    python benchmarks/matrix_nms.py --device cuda

The masks are drawn ellipses with near duplicates, ranked, of few classes, at a quarter of the input resolution. The
formula as written (SOLOv2, section 3.3) fills n x n matrices after the same matrix product and takes the minimum of
n x n quotients of exponentials. ``pairwise IoU`` is greedy NMS that computes each IoU when it is needed; ``greedy`` is
ours, with all IoUs from one product. All three decays and both greedy results are compared before anything is timed.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from common_timing import describe
from maskkit.geometry.nms import mask_iou, mask_nms, matrix_nms

INPUTS = {"448 x 448": (112, 112), "800 x 1216": (200, 304)}


def drawn(count: int, size: tuple[int, int], classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """``count`` ellipses with at most four copies each, ranked by falling scores."""
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[0:height, 0:width]
    masks, labels = [], []
    while len(masks) < count:
        cy, cx, ry, rx = rng.uniform((0, 0, 0.03, 0.03), (1, 1, 0.2, 0.2)) * (height, width, height, width)
        label = int(rng.integers(classes))
        for _ in range(min(5, count - len(masks))):
            dy, dx = rng.normal(0, 0.1, 2) * (ry, rx)
            masks.append(((y - cy - dy) / ry) ** 2 + ((x - cx - dx) / rx) ** 2 < 1)
            labels.append(label)
    order = rng.permutation(count)
    scores = np.sort(rng.uniform(0.1, 1, count))[::-1].astype(np.float32)
    return torch.from_numpy(np.stack(masks)[order]), torch.tensor(labels)[order], torch.from_numpy(scores.copy())


def as_written(masks: Tensor, labels: Tensor, scores: Tensor, sigma: float = 2.0) -> Tensor:
    """Matrix NMS, Gaussian, in the n x n matrices of the paper."""
    n = len(masks)
    flat = masks.reshape(n, -1).float()
    inter = flat @ flat.T
    areas = flat.sum(1).expand(n, n)
    iou = (inter / (areas + areas.T - inter)).triu(1)
    same = (labels.expand(n, n) == labels.expand(n, n).T).float().triu(1)
    overlap = iou * same
    covered = overlap.max(0).values.expand(n, n).T
    decay = torch.exp(-sigma * overlap**2) / torch.exp(-sigma * covered**2)
    return scores * decay.min(0).values


def greedy_pairwise(masks: Tensor, labels: Tensor, threshold: float = 0.5) -> Tensor:
    """Greedy mask NMS that compares each kept mask with those after it."""
    kept = torch.ones(len(masks), dtype=torch.bool, device=masks.device)
    for i in range(len(masks)):
        if not kept[i]:
            continue
        inter = (masks[i + 1 :] & masks[i]).sum((1, 2))
        union = (masks[i + 1 :] | masks[i]).sum((1, 2))
        kept[i + 1 :] &= ~((inter > threshold * union) & (labels[i + 1 :] == labels[i]))
    return kept


def milliseconds(call: Callable[[], Tensor], runs: int, device: str) -> float:
    """Median over ``runs`` calls after one to warm up."""
    times = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times[1:])


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=500)
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(describe(given.threads))
    if given.device == "cuda":
        print(torch.cuda.get_device_name())
    for name, size in INPUTS.items():
        masks, labels, scores = (t.to(given.device) for t in drawn(given.masks, size, given.classes, 0))
        ours = matrix_nms(masks, labels, scores)
        assert torch.allclose(ours, as_written(masks, labels, scores), atol=1e-5)
        assert torch.equal(mask_nms(masks, labels), greedy_pairwise(masks, labels))
        ways: dict[str, Callable[[], Tensor]] = {
            "Matrix NMS": lambda m=masks, k=labels, s=scores: matrix_nms(m, k, s),
            "at half the size": lambda m=masks, k=labels, s=scores: matrix_nms(m, k, s, stride=2),
            "of which the IoU": lambda m=masks: mask_iou(m),
            "formula as written": lambda m=masks, k=labels, s=scores: as_written(m, k, s),
            "greedy": lambda m=masks, k=labels: mask_nms(m, k),
            "greedy, pairwise IoU": lambda m=masks, k=labels: greedy_pairwise(m, k),
        }
        times = {way: milliseconds(call, given.runs, given.device) for way, call in ways.items()}
        print(f"{given.masks} masks of {size[0]} x {size[1]}, a quarter of an input of {name}, {given.classes} classes")
        off = (matrix_nms(masks, labels, scores, stride=2) - ours).abs().max()
        print(f"scores at half the size differ by {off:.4f} at most")
        for way, ms in times.items():
            print(f"  {way:22}{ms:9.2f} ms   {ms / times['Matrix NMS']:6.2f} x")


if __name__ == "__main__":
    main()
