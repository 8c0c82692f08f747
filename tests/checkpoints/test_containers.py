"""Every container in which weights are published, written in its layout and read; hostile ones run nothing."""

import os
import pickle
import random
import struct
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from maskkit.checkpoints.foreign import read_checkpoint
from maskkit.errors import DataError, MaskkitError
from tests.checkpoints.hostile import mutate

RNG = np.random.default_rng(5)
ARRAYS = {
    "backbone.bottom_up.stem.conv1.weight": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32),
    "half": RNG.normal(size=(2, 5)).astype(np.float16),
    "transposed": np.asfortranarray(RNG.normal(size=(3, 2)).astype(np.float32)),
    "big endian": RNG.normal(size=3).astype(">f8"),
    "count": np.array(7, np.int64),
    "flags": np.array([True, False]),
    "none": np.zeros((0, 3), np.float32),
}


def equal(found: dict[str, torch.Tensor], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        tensor = found[name].numpy()
        assert tensor.dtype == array.dtype.newbyteorder("="), name
        assert tensor.shape == array.shape, name
        assert np.array_equal(tensor, array), name


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("core", ["core", "_core"])
def test_the_zoos_of_detectron2_and_mask2former(tmp_path, protocol, core) -> None:
    """``{"model": arrays, "__author__": text}``, by NumPy 1 and 2."""
    path = tmp_path / "model_final_a54504.pkl"
    for extra in ({}, {"matching_heuristics": True}):
        content = pickle.dumps({"model": ARRAYS, "__author__": "Detectron2 Model Zoo", **extra}, protocol)
        if protocol < 4:  # names are lines; later they are texts with their length before them
            content = content.replace(b"cnumpy._core.", b"cnumpy.%s." % core.encode())
            content = content.replace(b"cnumpy.core.", b"cnumpy.%s." % core.encode())
        path.write_bytes(content)
        equal(read_checkpoint(path), ARRAYS)


def test_a_pickle_of_python_2(tmp_path) -> None:
    """Bytes are plain strings there, and modules have other names."""
    values = np.arange(3, dtype="<f4")
    path = tmp_path / "R-50.pkl"
    content = (
        b"\x80\x02}q\x00U\x05modelq\x01}q\x02U\x01wq\x03cnumpy.core.multiarray\n_reconstruct\nq\x04cnumpy\nndarray\n"
    )
    content += (
        b"q\x05K\x00\x85q\x06U\x01bq\x07\x87q\x08Rq\x09(K\x01K\x03\x85q\x0acnumpy\ndtype\nq\x0bU\x02f4q\x0cK\x00K\x01"
    )
    content += b"\x87q\x0dRq\x0e(K\x03U\x01<q\x0fNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x10b\x89U\x0c"
    content += values.tobytes() + b"q\x11tq\x12bss."
    path.write_bytes(content)
    equal(read_checkpoint(path), {"w": values})


@pytest.mark.parametrize("legacy", [False, True])
def test_vainf_has_a_number_of_numpy_beside_the_weights(tmp_path, legacy) -> None:
    state = {"classifier.weight": torch.ones(2, 3)}
    content = {
        "cur_itrs": 30000,
        "model_state": state,
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(9)}}, "param_groups": [{"lr": 0.1}]},
        "scheduler_state": {"base_lrs": [0.1], "last_epoch": 3},
        "best_score": np.float64(0.7721),
    }
    torch.save(content, tmp_path / "best.pth", _use_new_zipfile_serialization=not legacy)
    found = read_checkpoint(tmp_path / "best.pth")
    assert found.keys() == state.keys()
    assert torch.equal(found["classifier.weight"], state["classifier.weight"])


def mmengine_file(path: Path, legacy: bool, **parts: object) -> None:
    """A checkpoint of mmengine's training, with its log: objects that hold arrays and methods of their class."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self.max_length = 1000
            self._log_history = np.arange(3.0)
            self._count_history = np.array([1, 1, 1])
            self._statistics_methods = {"min": HistoryBuffer.min}

        def min(self) -> float:
            return 0.0

    module = types.ModuleType("mmengine.logging.history_buffer")
    HistoryBuffer.__module__ = module.__name__
    HistoryBuffer.__qualname__ = "HistoryBuffer"
    HistoryBuffer.min.__module__, HistoryBuffer.min.__qualname__ = module.__name__, "HistoryBuffer.min"
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    names = ("mmengine", "mmengine.logging", module.__name__)
    sys.modules.update({name: types.ModuleType(name) for name in names[:2]} | {module.__name__: module})
    try:
        hub = {"log_scalars": {"train/loss": HistoryBuffer()}, "runtime_info": {"iter": 3}, "resumed_keys": {}}
        meta = {"dataset_meta": {"classes": ("cat",)}, "cfg": "model = ...", "mmengine_version": "0.10.7", "seed": 1}
        content = {"meta": meta, "message_hub": hub, "param_schedulers": [{"last_step": 3}], **parts}
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    finally:
        for name in names:
            del sys.modules[name]


@pytest.mark.parametrize("legacy", [False, True])
def test_the_log_of_mmengine_is_left_out_and_named(tmp_path, legacy, said) -> None:
    path = tmp_path / "epoch_12.pth"
    mmengine_file(path, legacy, state_dict={"bbox_head.weight": torch.ones(2)}, optimizer={"state": {}})
    assert read_checkpoint(path)["bbox_head.weight"].tolist() == [1, 1]
    assert "left out what is no weight: objects of mmengine.logging.history_buffer.HistoryBuffer" in said.text


def test_mmengine_keeps_the_average_in_the_state_dict(tmp_path) -> None:
    """Its hook swaps: ``ema_state_dict`` holds the raw weights. Elsewhere it is the average."""
    average, raw = {"a.weight": torch.ones(2)}, {"module.a.weight": torch.zeros(2)}
    path = tmp_path / "w.pth"
    mmengine_file(path, False, state_dict=average, ema_state_dict={"steps": torch.tensor(9), **raw})
    assert read_checkpoint(path)["a.weight"].tolist() == [1, 1]
    torch.save({"state_dict": average, "ema_state_dict": {"a.weight": torch.zeros(2)}}, path)
    assert read_checkpoint(path)["a.weight"].tolist() == [0, 0]
    # mmcv's hook of mmdetection 2: the raw weights are buffers beside the average
    torch.save({"meta": {}, "state_dict": {**average, "ema_a_weight": torch.zeros(2)}}, path)
    assert read_checkpoint(path).keys() == {"a.weight"}


def mxnet_file(arrays: dict[str, np.ndarray], version: int) -> bytes:
    """What ``mx.nd.save`` writes; version 0 is that of FCIS's time."""
    types_ = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64")
    content = struct.pack("<QQQ", 0x112, 0, len(arrays))
    for array in arrays.values():
        if version:
            content += struct.pack("<I", 0xF993FAC7 + version)
        if version > 1:
            content += struct.pack("<i", 0)
        content += struct.pack("<I", array.ndim)
        content += struct.pack(f"<{array.ndim}{'q' if version else 'I'}", *array.shape)
        content += struct.pack("<iii", 2, 0, types_.index(array.dtype.name)) + array.tobytes()
    content += struct.pack("<Q", len(arrays))
    for name in arrays:
        content += struct.pack("<Q", len(name)) + name.encode()
    return content


MXNET = {
    "arg:conv1_weight": RNG.normal(size=(2, 3, 1, 1)).astype(np.float32),
    "aux:bn_conv1_moving_mean": np.ones(2, np.float16),
    "arg:numbers": np.array([1, 2], np.int32),
}


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_parameters_of_mxnet(tmp_path, version) -> None:
    (tmp_path / "fcis_coco-0000.params").write_bytes(mxnet_file(MXNET, version))
    equal(read_checkpoint(tmp_path / "fcis_coco-0000.params"), MXNET)


class Runs:
    """Would create a file if it were unpickled."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call[0], self.call[1:]


def test_pickles_that_would_run_code_are_refused_and_run_nothing(tmp_path) -> None:
    made = tmp_path / "made"
    calls = {
        "open": Runs(open, str(made), "w"),
        "os.mkdir": Runs(os.mkdir, str(made)),
        "exec": Runs(exec, f"open({str(made)!r}, 'w')"),
        "within getattr": Runs(getattr, Runs(__import__, "os"), "mkdir"),
        "numpy itself": Runs(np.load, str(made)),
        "numpy's files": Runs(np.memmap, str(made), "uint8", "w+", 0, (8,)),
        "an array of objects": np.array([Runs(os.mkdir, str(made))], dtype=object),
        "a partial": Runs(__import__("functools").partial, os.mkdir, str(made)),
    }
    for name, call in calls.items():
        for protocol in (2, 4, 5):
            path = tmp_path / "w.pkl"
            path.write_bytes(pickle.dumps({"model": {"a": np.zeros(3), "b": call}}, protocol))
            with pytest.raises(DataError, match=r"w\.pkl: not read: it (contains|holds) "):
                read_checkpoint(path)
        for legacy in (False, True):
            torch.save(
                {"state_dict": {"a": torch.zeros(2)}, "b": call}, path, _use_new_zipfile_serialization=not legacy
            )
            with pytest.raises(DataError, match=r"w\.pkl: not read: it "):
                read_checkpoint(path)
        assert not made.exists(), name


def test_objects_of_training_programs_run_nothing(tmp_path) -> None:
    """Names that are left out are not imported, whatever is called with them."""
    made, path = tmp_path / "made", tmp_path / "w.pkl"
    (tmp_path / "mmengine.py").write_text(f"open({str(made)!r}, 'w')")
    sys.path.insert(0, str(tmp_path))
    try:
        content = b"\x80\x02}U\x05model}U\x01wcnumpy\ndtype\nU\x02f4\x85Rs"
        content += b"U\x01xcmmengine\nrun\nU\x02hi\x85R}U\x01aK\x01sbU\x01ycmmengine\nClass\n)\x81U\x01zK\x01su."
        path.write_bytes(content.replace(b"Rs", b"Rs(", 1))
        with pytest.raises(DataError, match="contains no named tensors"):
            read_checkpoint(path)
    finally:
        sys.path.remove(str(tmp_path))
    assert not made.exists()


def test_arrays_that_lie_are_refused(tmp_path) -> None:
    path = tmp_path / "w.pkl"
    good = pickle.dumps({"model": {"a": np.zeros((3, 4), np.float32)}}, 3)
    for was, is_ in ((b"K\x03K\x04\x86", b"K\x03K\x05\x86"), (b"X\x02\x00\x00\x00f4", b"X\x02\x00\x00\x00O8")):
        assert was in good
        path.write_bytes(good.replace(was, is_))
        with pytest.raises(DataError, match=r"w\.pkl: not read: it holds an array"):
            read_checkpoint(path)
    for array in (np.zeros(3, [("a", "f4")]), np.array(["text"]), np.zeros(3, np.complex64), np.zeros(2, "M8[s]")):
        path.write_bytes(pickle.dumps({"model": {"a": array}}, 4))
        with pytest.raises(DataError, match=r"w\.pkl: not read: "):
            read_checkpoint(path)


def test_mutated_containers_end_in_one_line_and_soon(tmp_path) -> None:
    rng = random.Random(8)
    forms = {f"w{n}.pkl": pickle.dumps({"model": ARRAYS, "__author__": "x"}, n) for n in (2, 4, 5)}
    forms |= {f"w{n}.params": mxnet_file(MXNET, n) for n in (0, 2)}
    for name, content in forms.items():
        path = tmp_path / name
        for _ in range(80):
            path.write_bytes(mutate(content, rng, len(content)))
            began, said = time.process_time(), str(path)
            try:
                read_checkpoint(path)
            except MaskkitError as error:
                said = str(error)
            assert str(path) in said
            assert said.isprintable()
            assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x80\x02]" + b"2" * 3_500_000 + b".",  # instructions without end
        b"\x80\x02)" + b"2\x86" * 3000 + b"}q\x00" + b"h\x00" + b"2\x86K\x01s.",  # tuples within tuples as a key
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\x00\x00.",  # bytes of 281 TB
        b"\x80\x02r\xff\xff\xff\xff.",  # a place in the memo that is far away
        b"\x80\x02(((((.",
    ],
)
def test_pickles_that_ask_for_too_much_are_refused_soon(tmp_path, bomb) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(bomb)
    began = time.process_time()
    with pytest.raises(DataError, match=r"w\.pkl: "):
        read_checkpoint(path)
    assert time.process_time() - began < 20
