"""The time of `import maskkit` and of `maskkit --help`, which must not load torch.

python benchmarks/start_up.py
"""

import statistics
import subprocess
import sys
import time

from common_timing import describe

COMMANDS = {
    "import maskkit": [sys.executable, "-c", "import maskkit, sys; assert 'torch' not in sys.modules"],
    "maskkit --help": [sys.executable, "-m", "maskkit", "--help"],
    "python alone": [sys.executable, "-c", "pass"],
}

if __name__ == "__main__":
    for name, command in COMMANDS.items():
        times = []
        for _ in range(12):
            begin = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times.append(time.perf_counter() - begin)
        print(f"{name:16} median {statistics.median(times[2:]):.3f} s")
    print(describe())
