"""Where the milliseconds of one picture go, from JPEG bytes to run-length masks, batch 1.

    python benchmarks/speed.py --model yolact-resnet50

Random weights of the preset under the official names, taken through `maskkit.published.convert` as a published checkpoint would
be. Network time is set against the convolution peak of the machine, measured in the same run as the best rate of
3x3 convolutions of several sizes. Scores are spread so that a hundred objects come out, which is the costly case.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from machine import describe
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from maskkit import registry
from maskkit.config import InputConfig
from maskkit.data.images import read_image
from maskkit.data.loader import collate
from maskkit.data.shapes import draw
from maskkit.data.transforms import apply, eval_ops
from maskkit.infer.finish import finish
from maskkit.models.yolact import Yolact
from maskkit.nn.backbone import fold_batch_norm
from maskkit.types import Categories, ImageMeta, Target


def milliseconds(call: Callable[[], Any], runs: int) -> float:
    """Median over ``runs`` calls after two to warm up."""
    call(), call()
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


@torch.inference_mode()
def convolution_peak(runs: int) -> tuple[float, str]:
    """Best GFLOP/s of single 3x3 convolutions, and of which."""
    best = (0.0, "")
    for channels, side in ((64, 138), (128, 69), (256, 138), (256, 69), (512, 18)):
        layer = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)
        x = torch.randn(1, channels, side, side).contiguous(memory_format=torch.channels_last)
        flops = 2 * channels * channels * 9 * side * side
        rate = flops / milliseconds(lambda layer=layer, x=x: layer(x), runs) / 1e6
        best = max(best, (rate, f"{channels} channels at {side} x {side}"))
    return best


def spread_scores(model: Yolact) -> None:
    """Make a random network find a hundred objects: class logits that differ from place to place."""
    for module in (model.head.conf,):
        nn.init.normal_(module.weight, std=0.05)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="yolact-resnet50")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    preset = registry.preset(given.model)
    model = registry.model_class(given.model)(preset.model)  # type: ignore[call-arg]
    assert isinstance(model, Yolact)
    spread_scores(model)
    categories = Categories.of(map(str, range(preset.model.num_classes)))
    input: InputConfig = replace(preset.input)

    pixels, _ = draw(0, (427, 640), (6, 10))
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=90)
    file = "/tmp/maskkit-speed.jpg"
    with open(file, "wb") as out:
        out.write(buffer.getvalue())

    def decode() -> Any:
        image = read_image(file)
        size = (image.shape[1], image.shape[2])
        sample = (image, Target.of([], []), ImageMeta(1, file, size, size))
        batch = collate([apply(eval_ops(input), sample, np.random.default_rng(0))], input)
        batch.images = batch.images.contiguous(memory_format=torch.channels_last)
        return batch

    batch = decode()
    with FlopCounterMode(display=False) as counter:
        model.eval()(batch.images)
    flops = counter.get_total_flops()
    model = fold_batch_norm(model, batch.images).to(memory_format=torch.channels_last)
    raw = model(batch.images)
    selected = model.select(raw)

    def to_masks() -> Any:
        arrays = {name: t.numpy() for name, t in selected._asdict().items()}
        return finish(arrays, batch.metas, categories, 0.0)

    found = to_masks()[0]
    peak, where = convolution_peak(given.runs)
    rows = {
        "decode": milliseconds(decode, given.runs),
        "network": milliseconds(lambda: model(batch.images), given.runs),
        "select": milliseconds(lambda: model.select(raw), given.runs),
        "finish": milliseconds(to_masks, given.runs),
    }
    print(describe(given.threads))
    print(f"{given.model}, {input.size[0]} x {input.size[1]}, {len(found)} objects found, {flops / 1e9:.1f} GFLOP")
    for name, ms in rows.items():
        print(f"  {name:8} {ms:8.1f} ms")
    rate = flops / rows["network"] / 1e6
    rest = sum(ms for name, ms in rows.items() if name != "network")
    print(f"  network at {rate:.0f} GFLOP/s, {rate / peak:.0%} of the peak of {peak:.0f} GFLOP/s ({where})")
    print(f"  everything else takes {rest / rows['network']:.1%} of the network's time")


if __name__ == "__main__":
    main()
