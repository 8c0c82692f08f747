"""The time of each step of one prediction, from JPEG file to run-length masks, batch 1.

    python benchmarks/speed.py

The model is YOLACT-R50 with random weights whose class logits are spread so that a hundred objects are found, the most
expensive case. The network's time is compared with the convolution peak of the machine, measured in the same run as the
best rate of 3x3 convolutions of several sizes.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common import describe
from maskkit import zoo
from maskkit.data.images import read_image
from maskkit.data.loader import collate
from maskkit.data.shapes import draw
from maskkit.data.transforms import apply, eval_ops
from maskkit.decode import decode
from maskkit.models.base import to_arrays
from maskkit.models.yolact import Yolact, YolactConfig
from maskkit.nn.backbones.backbone import fold_batch_norm
from maskkit.prediction import Categories, ImageMeta
from maskkit.targets import Target

MODEL = "yolact-resnet50"


def milliseconds(call: Callable[[], Any], runs: int) -> float:
    """Median over ``runs`` calls after two to warm up."""
    for _ in range(2):
        call()
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


@torch.inference_mode()
def convolution_peak(runs: int) -> tuple[float, str]:
    """Best GFLOP/s of single 3x3 convolutions, and the one that reached it."""
    best = (0.0, "")
    for channels, side in ((64, 138), (128, 69), (256, 138), (256, 69), (512, 18)):
        layer = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)
        x = torch.randn(1, channels, side, side).contiguous(memory_format=torch.channels_last)
        flops = 2 * channels * channels * 9 * side * side
        rate = flops / milliseconds(lambda layer=layer, x=x: layer(x), runs) / 1e6
        best = max(best, (rate, f"{channels} channels at {side} x {side}"))
    return best


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    preset = zoo.preset(MODEL)
    assert isinstance(preset.model, YolactConfig)
    network = Yolact(preset.model)
    nn.init.normal_(network.head.conf.weight, std=0.5)
    categories = Categories.of(map(str, range(preset.model.num_classes)))
    input = preset.input

    pixels, _ = draw(0, (427, 640), (6, 10))
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=90)
    file = Path(tempfile.mkdtemp()) / "image.jpg"
    file.write_bytes(buffer.getvalue())

    def read() -> Any:
        image = read_image(file)
        size = (image.shape[1], image.shape[2])
        sample = (image, Target.of([], []), ImageMeta(1, str(file), size, size))
        batch = collate([apply(eval_ops(input), sample, np.random.default_rng(0))], input)
        batch.images = batch.images.contiguous(memory_format=torch.channels_last)
        return batch

    batch = read()
    with FlopCounterMode(display=False) as counter:
        network.eval()(batch.images)
    flops = counter.get_total_flops()
    model: Any = fold_batch_norm(network, batch.images).to(memory_format=torch.channels_last)
    raw = model(batch.images)
    selected = model.select(raw)

    def to_masks() -> Any:
        return decode(model.decoder, to_arrays(selected), batch.metas, categories)

    found = to_masks()[0]
    peak, where = convolution_peak(given.runs)
    rows = {
        "read": milliseconds(read, given.runs),
        "network": milliseconds(lambda: model(batch.images), given.runs),
        "select": milliseconds(lambda: model.select(raw), given.runs),
        "decode": milliseconds(to_masks, given.runs),
    }
    print(describe(given.threads))
    print(f"{MODEL}, {input.size[0]} x {input.size[1]}, {len(found)} objects found, {flops / 1e9:.1f} GFLOP")
    for name, ms in rows.items():
        print(f"  {name:8} {ms:8.1f} ms")
    rate = flops / rows["network"] / 1e6
    rest = sum(ms for name, ms in rows.items() if name != "network")
    print(f"  network at {rate:.0f} GFLOP/s, {rate / peak:.0%} of the peak of {peak:.0f} GFLOP/s ({where})")
    print(f"  everything else takes {rest / rows['network']:.1%} of the network's time")


if __name__ == "__main__":
    main()
