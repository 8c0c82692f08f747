"""A user's first hour: `maskkit train --data SET` for some processor time, beside torchvision's Mask R-CNN.

    python benchmarks/first_hour.py --data DATA/nuclei_dsb2018 --minutes 10 --out RUNS \\
        --model maskrcnn-mobilenetv2-320 --torchvision mobilenetv2_100.safetensors

The first row is the preset that the command chooses for the data; ``--model`` names others. Each is trained by the
command line, with the preset's own recipe and initial weights. The budget is processor time, 60 seconds per minute of
``--minutes``, so that other work on the machine favours nobody: trainings of 4 and of 24 steps give the time of a step,
and ``--train.steps`` fills the budget with steps. Start of the program and evaluation are not counted; evaluations
before the last one are off. ``--torchvision`` adds ``against_torchvision.py --side torchvision`` with the same budget
and these backbone weights. All are measured on the same validation images.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import spent
from common_timing import describe
from maskkit import load
from maskkit.config import DataConfig
from maskkit.data import open_splits
from maskkit.data.dataset import Dataset
from maskkit.engine.choose import choose
from maskkit.eval.numbers import shown

SHORT, LONGER = 4, 24
"""Steps of the trainings that give the time of a step."""


def train(given: argparse.Namespace, preset: str, steps: int, out: Path) -> float:
    """Processor seconds of a training from the command line."""
    command = [sys.executable, "-m", "maskkit", "train", "--data", str(given.data), "--model", preset]
    command += ["--train.steps", str(steps), "--train.eval-every", "0", "--out", str(out)]
    begin = spent()
    subprocess.run(command, check=True, env=environment(given), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return spent() - begin


def environment(given: argparse.Namespace) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(given.threads)}


def of_preset(given: argparse.Namespace, preset: str, val_set: Dataset) -> dict[str, Any]:
    """Train a preset for the budget; its figures."""
    with tempfile.TemporaryDirectory() as folder:
        short, longer = (train(given, preset, n, Path(folder, str(n))) for n in (SHORT, LONGER))
    per_step = max(longer - short, 0.1) / (LONGER - SHORT)
    steps = max(1, round(60 * given.minutes / per_step))
    out = given.out / preset
    seconds = train(given, preset, steps, out)
    metrics = load(out / "best.safetensors").evaluate(val_set, batch=4).metrics
    facts = {"model": preset, "steps": steps, "seconds per step": round(per_step, 2), "seconds in all": round(seconds)}
    return facts | {name: shown(value) for name, value in metrics.items()}


def of_torchvision(given: argparse.Namespace) -> dict[str, Any]:
    """Train torchvision's model for the budget; its figures."""
    script, out = Path(__file__).with_name("against_torchvision.py"), given.out / "torchvision.json"
    command = [sys.executable, str(script), "--side", "torchvision", "--data", str(given.data)]
    command += ["--weights", str(given.torchvision), "--minutes", str(given.minutes / 2), "--out", str(out)]
    command += ["--threads", str(given.threads), "--size", str(given.size)]
    subprocess.run(command, check=True, env=environment(given), stdout=subprocess.DEVNULL)
    return json.loads(out.read_text())["facts"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10, help="processor minutes of each training")
    parser.add_argument("--model", action="append", default=[], help="a preset beside the one for the data")
    parser.add_argument("--torchvision", type=Path, help="mobilenetv2_100.safetensors, to try torchvision's model too")
    parser.add_argument("--size", type=int, default=320, help="shorter side of torchvision's input")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    chosen, reason = choose(DataConfig(str(given.data)), "cpu")
    print(describe(given.threads))
    print(reason, flush=True)
    val_set = open_splits(str(given.data), None, 0.2, 0)[1]
    for preset in dict.fromkeys([chosen, *given.model]):
        print(json.dumps(of_preset(given, preset, val_set)), flush=True)
    if given.torchvision:
        print(json.dumps(of_torchvision(given)), flush=True)


if __name__ == "__main__":
    main()
