"""int8: the convolutions alone, per channel.

What follows the last convolution stays in fp32. The masks of dynamic heads are matrix products with weights of each
object; quantised too, they lose most of their accuracy while the boxes keep theirs.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from maskkit.data.dataset import Dataset
from maskkit.infer.predict import Predictor
from maskkit.infer.preprocess import prepare, stack
from maskkit.infer.sources import dataset_images

IMAGES = 100
"""Images of the calibration at most."""


class Feeds:
    """Inputs of the graph for the images of a data set; ONNX Runtime's ``CalibrationDataReader`` by its methods."""

    def __init__(self, predictor: Predictor, dataset: Dataset, batch: int, names: tuple[str, ...]) -> None:
        step = max(len(dataset) // IMAGES, 1)
        self._dataset = dataset.subset(range(0, step * min(len(dataset), IMAGES), step))
        self._input, self._batch, self._names = predictor.input, batch, names
        self.rewind()

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        items = iter(dataset_images(self._dataset))
        while group := list(islice(items, self._batch)):
            group += group[-1:] * (self._batch - len(group))
            prepared = [prepare(*item.read(self._input), self._input) for item in group]
            images, sizes, _ = stack(prepared, self._input)
            given = {"images": np.ascontiguousarray(images), "sizes": sizes}
            yield {name: given[name] for name in self._names}

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input, None at the end."""
        return next(self._left, None)

    def rewind(self) -> None:
        """Begin again."""
        self._left = iter(self)


def onnx_int8(path: Path, feeds: Feeds) -> None:
    """Quantise the convolutions of an ONNX file by ONNX Runtime's static quantisation (QDQ), in place."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(path),
        feeds,  # type: ignore[arg-type]
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()


def openvino_int8(onnx: Path, xml: Path, description: Mapping[str, Any], feeds: Feeds) -> None:
    """Quantise the convolutions of an ONNX file by NNCF and write it as OpenVINO."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)  # it reports every operation that it leaves alone
    model = openvino.convert_model(str(onnx))
    others = sorted({node.get_type_name() for node in model.get_ops()} - {"Convolution", "GroupConvolution"})
    ignored = nncf.IgnoredScope(types=others, validate=False)
    small = nncf.quantize(model, nncf.Dataset(list(feeds)), ignored_scope=ignored, subset_size=IMAGES)
    small.set_rt_info(json.dumps(description), "maskkit")
    openvino.save_model(small, str(xml), compress_to_fp16=False)
