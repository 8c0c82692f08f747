"""The description of a checkpoint, read without torch."""

import json
import subprocess
import sys
from pathlib import Path

import maskkit
from maskkit.checkpoints.header import read_header, read_metadata

BUILT_IN = Path(maskkit.__file__).parent / "weights" / "builtin.safetensors"


def test_the_description_is_read_where_torch_cannot_be_imported() -> None:
    code = f"""
import json, sys
sys.modules["torch"] = None
from pathlib import Path
from maskkit.checkpoints.header import categories_of, decoder_of, read_header
path = Path({str(BUILT_IN)!r})
header = read_header(path)
print(json.dumps([categories_of(header).names[:2], type(decoder_of(header, path)).__name__]))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(said) == [["person", "bicycle"], "OverInput"]


def test_texts_are_those_that_safetensors_reads() -> None:
    from safetensors import safe_open

    with safe_open(BUILT_IN, framework="np") as file:
        assert read_metadata(BUILT_IN) == file.metadata()
    assert read_header(BUILT_IN)["version"]
