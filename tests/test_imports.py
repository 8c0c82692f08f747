"""`import maskkit` and `maskkit --help` stay light."""

import json
import subprocess
import sys

import pytest

import maskkit

HEAVY = {"torch", "torchvision", "timm", "numpy", "scipy", "PIL", "matplotlib", "supervision", "cv2", "accelerate"}
_LOADED = """
import json, sys, time
print(json.dumps([time.process_time(), sorted({m.split('.')[0] for m in sys.modules})]), file=sys.stderr)
"""


def run(code: str) -> tuple[set[str], float, str]:
    """Modules loaded by ``code``, its processor seconds, its output."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{_LOADED}"], capture_output=True, text=True, check=True)
    seconds, modules = json.loads(done.stderr.splitlines()[-1])
    return set(modules), seconds, done.stdout


def call(*args: str) -> str:
    """Code that runs the command line and goes on after its exit."""
    return f"from maskkit.cli import main\ntry: main({list(args)!r})\nexcept SystemExit: pass"


@pytest.mark.parametrize(
    "code",
    ["import maskkit", call("--help"), call(), call("--version"), call("predict", "--help"), call("eval", "--help")],
    ids=["import", "--help", "no verb", "--version", "predict --help", "eval --help"],
)
def test_light(code):
    loaded, seconds, _ = run(code)
    assert not loaded & HEAVY
    assert seconds < 3, "half a second on an idle machine; this bound only catches a heavy import"


@pytest.mark.parametrize("module", ["maskkit.prediction", "maskkit.decode"])
def test_predictions_are_made_without_torch(module):
    loaded, _, _ = run(f"import {module}")
    assert "numpy" in loaded
    assert not loaded & {"torch", "torchvision", "timm"}


def test_help_names_every_verb():
    _, _, said = run(call("--help"))
    for verb in ("models", "predict", "train", "eval", "check", "convert", "import", "demo"):
        assert f"    {verb} " in said
    assert "Example: maskkit" in said


def test_public_names_are_there_and_no_others():
    assert {"create_model", "load", "Segmenter", "list_models", "Prediction"} <= set(maskkit.__all__)
    for name in maskkit.__all__:
        assert getattr(maskkit, name).__name__ == name
    assert set(maskkit.__all__) <= set(dir(maskkit))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = maskkit.nonsense
