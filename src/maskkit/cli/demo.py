"""`maskkit demo`: predict, train, evaluate, in minutes on two cores and without a download.

It draws a data set, then runs the commands that it prints.
"""

import shlex
import signal
import subprocess
import sys
from pathlib import Path

from maskkit.files import DEMO_IMAGES
from maskkit.ranges import Count
from maskkit.terminal import say

PRESET = "yolact-mobilenetv2-256"


def demo(out: Path = Path("demo"), steps: Count = 300) -> int:
    """Segment photographs with the built-in model, then train a small model on drawn images, in minutes.

    Example: maskkit demo --out demo

    Args:
        out: Folder to write to.
        steps: Optimizer steps of the training.
    """
    from maskkit.data import shapes

    say("0. Drawing a data set of overlapping discs, rings, squares, stars and pairs", flush=True)
    drawn = shapes.write(out / "shapes", train=200, val=40)
    last_images, best = drawn / "images" / "0023?.jpg", out / "run" / "best.safetensors"
    commands = {
        "1. Photographs and the built-in model": f"predict {_q(DEMO_IMAGES)} --out {_q(out / 'photos')}",
        "2. Training on the drawn data set": f"train --model {PRESET} --data {_q(drawn)} --out {_q(out / 'run')} "
        f"--train.steps {steps} --train.eval-every 0 --resume",
        "3. Evaluating the trained model": f"eval --model {_q(best)} --data {_q(drawn)} --out {_q(out / 'eval')}",
        "4. Predicting with it": f"predict {_q(last_images)} --model {_q(best)} --out {_q(out / 'found')} --score 0.5",
    }
    for title, command in commands.items():
        say(f"\n{title}\n$ maskkit {command}", flush=True)
        if code := _run([sys.executable, "-m", "maskkit", *shlex.split(command)]):
            return code
    say(
        f"\nLook at\n"
        f"  {out / 'photos' / 'overlays'}: the photographs with the objects that the built-in model found\n"
        f"  {out / 'found' / 'overlays'}: drawn images with the objects that the trained model found\n"
        f"  {out / 'eval' / 'report.html'}: curves, confused classes, worst images\n"
        f"Your own images: maskkit predict PHOTOS; maskkit train --model {PRESET} --data FOLDER"
    )
    return 0


def _run(command: list[str]) -> int:
    """The exit code of a command. Ctrl-C goes to it, and it says so, not this process."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)


def _q(path: Path) -> str:
    return shlex.quote(str(path))
