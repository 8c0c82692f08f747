"""The command line: one file per verb; tyro reads the options from each function's signature.

Exit codes: 0 success, 1 failure (one clear line on stderr), 2 wrong usage, 130 interrupted. Verbs import what they
need when they run, so that `maskkit --help` does not load torch.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import tyro

import maskkit
from maskkit.checkpoints.cache import OFFLINE
from maskkit.cli import import_weights, train, tune
from maskkit.cli.check import check
from maskkit.cli.convert import convert
from maskkit.cli.demo import demo
from maskkit.cli.evaluate import evaluate
from maskkit.cli.export import export
from maskkit.cli.models import models
from maskkit.cli.options import checked
from maskkit.cli.predict import predict
from maskkit.cli.prelabel import prelabel
from maskkit.cli.pretrain import pretrain
from maskkit.cli.pseudo_masks import pseudo_masks
from maskkit.cli.serve import serve
from maskkit.errors import MaskkitError, explain
from maskkit.terminal import complain, prepare_streams

VERBS: dict[str, Callable[..., Any]] = {
    "models": models,
    "predict": predict,
    "train": train.train,
    "eval": evaluate,
    "check": check,
    "convert": convert,
    "prelabel": prelabel,
    "import": import_weights.import_,
    "export": export,
    "serve": serve,
    "tune": tune.tune,
    "pseudo-masks": pseudo_masks,
    "pretrain": pretrain,
    "demo": demo,
}

_PARSERS: dict[str, Callable[[list[str]], Any]] = {
    "train": train.parse,
    "tune": tune.parse,
    "import": import_weights.parse,
}

TRAINING = ("torch", "torchvision", "timm", "safetensors", "accelerate", "huggingface_hub", "filelock")
"""Packages that `maskkit-runtime` does not install."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code. Wrong usage and ``--help`` raise ``SystemExit``, as parsers do."""
    prepare_streams()
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] not in VERBS:
        _show_verbs(args)
    verb, rest = args[0], args[1:]
    environment = {name: os.environ.get(name) for name in OFFLINE}
    try:
        if verb in _PARSERS:  # their options depend on the preset
            return VERBS[verb](_PARSERS[verb](rest))
        return tyro.cli(checked(VERBS[verb]), prog=f"maskkit {verb}", args=rest)
    except MaskkitError as error:
        complain(error)
        return 1
    except OSError as error:
        complain(explain(error))
        return 1
    except ModuleNotFoundError as error:
        if error.name not in TRAINING:
            raise
        complain(f"this takes PyTorch, and {error.name} is not installed; install maskkit in place of maskkit-runtime")
        return 1
    except KeyboardInterrupt as error:
        complain("interrupted" if not str(error) else error)
        return 128 + getattr(error, "number", signal.SIGINT)
    finally:  # --offline is for one command
        for name, value in environment.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def _show_verbs(args: list[str]) -> NoReturn:
    """Print the general help, the version, or an error about the first word, and exit."""
    parser = argparse.ArgumentParser(
        "maskkit",
        description="Segment images, train on your own data, evaluate models.",
        epilog="Example: maskkit predict photo.jpg --out found\n\n`maskkit VERB --help` explains a verb.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"maskkit {maskkit.__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        verbs.add_parser(name, help=str(verb.__doc__).splitlines()[0])
    parser.parse_args(args)
    raise AssertionError("the parser exits when there is no known verb")
