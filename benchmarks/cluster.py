"""`predict --cluster`: speed with one worker and with two, processes that are killed, memory, size of the results.

    python benchmarks/cluster.py --images DATA/coco_instances --count 500

The images are copies of at most ``--side`` pixels, some of them damaged. Each process of a model has one thread. The
speed is that from the first part that is written to the last; starting Ray and the model is shown apart. A worker
reads images ahead in threads, and Ray has processes of its own, so one worker on an idle machine uses more than one
core: it is also measured with all its processes on one core, which is what two workers on two cores compare with. Linux
only: processes are found in /proc.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from common_timing import describe
from maskkit.api import load
from maskkit.checkpoints.find import find_weights
from maskkit.cluster.ray_batch import begin
from maskkit.cluster.storage import Storage
from maskkit.cluster.worker import Job, Worker
from maskkit.data.images import find_images
from maskkit.files import digest
from maskkit.infer.selection import Selection

PARTS = "parts"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--model", default="built-in")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--score", default="0.3")
    parser.add_argument("--only", choices=("speed", "kill", "resume"))
    parser.add_argument("--cost", action="store_true", help="only what an image costs: one worker, without Ray")
    given = parser.parse_args()
    print(describe(1))
    if given.cost:
        cost(given.images, given.model, given.count)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        photos = copies(given.images, root / "photos", given.count, given.side)
        command = [sys.executable, "-m", "maskkit", "predict", str(photos), "--model", given.model, "--threads", "1"]
        command += ["--score", given.score]
        begin = time.perf_counter()
        subprocess.run([*command, "--out", str(root / "plain")], check=False, capture_output=True)
        alone = given.count / (time.perf_counter() - begin)
        print(f"one process, no Ray: {alone:.2f} images/s, start and overlays included")
        truth = (root / "plain" / "predictions.json").read_bytes()
        if given.only in (None, "speed"):
            one, two = (speed(command, root / f"workers{n}", n, given.count) for n in (1, 2))
            pinned = speed(command, root / "pinned", 1, given.count, cores={min(os.sched_getaffinity(0))})
            print(f"two workers are {two / one:.2f} times as fast as one, {two / pinned:.2f} times as one on one core")
            same(truth, root / "workers2", "two workers")
            size(root / "workers2", given.count)
        if given.only in (None, "kill"):
            killed(command, root / "killed", truth)
        if given.only in (None, "resume"):
            gone_on(command, root / "again", truth)


def cost(source: Path, model: str, count: int) -> None:
    """Processor time and bytes of an image as it is, in a worker in this process."""
    names = [str(path) for path in find_images(source, recursive=True)][:count]
    segmenter = load(model, "cpu", 1)
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder)
        weights = digest(find_weights(model))
        job = Job(model, weights, lambda: segmenter, Selection(), segmenter.score, 1, folder, os.getcwd())
        todo, work = begin(storage, {}, lambda: names, resume=False), Worker(job)
        work(todo.left[0]._asdict())
        clock = time.process_time()
        for part in todo.left[1:]:
            work(part._asdict())
        took = (time.process_time() - clock) / sum(part.images for part in todo.left[1:])
        print(f"{model}: {1000 * took:.0f} ms of one core per image, from the file to the row in Parquet")
        size(Path(folder), len(names))


def copies(source: Path, target: Path, count: int, side: int) -> Path:
    """A folder of ``count`` small images, every hundredth of them damaged."""
    target.mkdir()
    found = find_images(source, recursive=True)
    for number in range(count):
        path = target / f"{number:05d}.jpg"
        with Image.open(found[number % len(found)]) as image:
            small = image.convert("RGB")
            small.thumbnail((side, side))
            small.rotate(90 * (number // len(found) % 4), expand=True).save(path, quality=90)
        if number % 100 == 50:
            path.write_bytes(path.read_bytes()[:500])
    return target


def speed(command: list[str], out: Path, workers: int, count: int, cores: set[int] | None = None) -> float:
    """Images per second between the first and the last part, and the memory of the workers.

    ``cores`` are those that all processes of the command may use; by default all.
    """
    sizes: list[list[float]] = []

    def watch(process: subprocess.Popen) -> None:
        if len(list((out / PARTS).glob("*.parquet"))) >= 2:
            sizes.append([private(pid) for pid in models_of(process.pid)])

    begin = time.time()
    run(command, out, workers, watch, every=1, cores=cores)
    times = sorted(path.stat().st_mtime for path in (out / PARTS).glob("*.parquet"))
    per_part = count / len(times)
    found = per_part * (len(times) - workers) / (times[-1] - times[workers - 1])
    each = [s for s in sizes if len(s) == workers]
    tenth = max(1, len(each) // 10)
    early, late = (max(map(max, part)) for part in (each[:tenth], each[-tenth:]))
    name = f"{workers} workers" + (" on one core" if cores else "")
    print(
        f"{name}: {found:.2f} images/s; the first part after {times[0] - begin:.0f} s; largest worker "
        f"{early:.0f} MiB in the first tenth, {late:.0f} MiB in the last"
    )
    return found


def killed(command: list[str], out: Path, truth: bytes) -> None:
    """A worker is killed with -9 after some parts."""
    victims: list[int] = []

    def watch(process: subprocess.Popen) -> None:
        if not victims and len(list((out / PARTS).glob("*.parquet"))) >= 4:
            victims.append(models_of(process.pid)[0])
            os.kill(victims[0], signal.SIGKILL)

    run(command, out, 2, watch)
    assert victims, "no worker was killed"
    same(truth, out, "one of two workers killed with -9")


def gone_on(command: list[str], out: Path, truth: bytes) -> None:
    """All processes are killed after some parts, and the command is given again with --resume."""

    def watch(process: subprocess.Popen) -> None:
        if len(list((out / PARTS).glob("*.parquet"))) >= 6:
            for pid in [*descendants(process.pid), process.pid]:
                os.kill(pid, signal.SIGKILL)

    run(command, out, 2, watch)
    before = len(list((out / PARTS).glob("*.parquet")))
    text = run([*command, "--resume"], out, 2, lambda _: None)
    line = next((found for found in text.splitlines() if "done before" in found), text)
    print(f"all killed after {before} parts, then --resume: {re.sub(r': .*', '', line)}")
    same(truth, out, "all killed, and gone on")


def run(
    command: list[str],
    out: Path,
    workers: int,
    watch: Callable[[subprocess.Popen], None],
    every: float = 0.2,
    cores: set[int] | None = None,
) -> str:
    """What the command says; ``watch`` is called after every so many seconds."""
    args = [*command, "--cluster", "--workers", str(workers), "--results", "coco", "--out", str(out)]
    given = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores or given)  # its processes inherit it
    try:
        process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finally:
        os.sched_setaffinity(0, given)
    with process:
        while process.poll() is None:
            watch(process)
            time.sleep(every)
        assert process.stdout is not None
        text = process.stdout.read()
    assert list((out / PARTS).glob("*.parquet")), text
    return text


def same(truth: bytes, out: Path, name: str) -> None:
    found = (out / "predictions.json").read_bytes()
    print(f"{name}: predictions.json {'is byte for byte' if found == truth else 'DIFFERS from'} that of one process")


def size(out: Path, count: int) -> None:
    """Bytes of the results."""
    import pyarrow.parquet as parquet

    paths = list((out / PARTS).glob("*.parquet"))
    stored, objects, text = sum(path.stat().st_size for path in paths), 0, 0
    for path in paths:
        masks = [mask for mask in parquet.read_table(path)["mask"].to_pylist() if mask is not None]
        objects, text = objects + len(masks), text + sum(map(len, masks))
    print(
        f"{objects / count:.1f} objects per image; a mask takes {text / objects:.0f} characters, an object "
        f"{stored / objects:.0f} bytes in Parquet, an image {stored / count:.0f}"
    )


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found, todo = [], [pid]
    while todo:
        children = [child for child, parent in parents.items() if parent == todo[0]]
        found += children
        todo = todo[1:] + children
    return found


def models_of(pid: int) -> list[int]:
    """The processes below one that Ray has named after the worker."""
    return [child for child in descendants(pid) if b"Worker" in read(child) and read(child).startswith(b"ray::")]


def read(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def private(pid: int) -> float:
    """Memory that a process has for itself, in MiB: not its libraries, and not Ray's store, which all workers map."""
    try:
        _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    except OSError:
        return 0.0
    return (resident - shared) * os.sysconf("SC_PAGESIZE") / 2**20


if __name__ == "__main__":
    main()
