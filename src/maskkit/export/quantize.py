"""int8: the convolutions alone, per channel, by NNCF.

What follows the last convolution stays in fp32. The masks of dynamic heads are matrix products with weights of each
object; quantised too, they lose most of their accuracy while the boxes keep theirs.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from maskkit.data.dataset import Dataset
from maskkit.infer.predict import Predictor
from maskkit.infer.preprocess import prepare, stack
from maskkit.infer.sources import dataset_images

Inputs = list[dict[str, np.ndarray]]

IMAGES = 100
"""Images of the calibration at most."""


def calibration(predictor: Predictor, dataset: Dataset, batch: int, names: tuple[str, ...]) -> Inputs:
    """Inputs of the graph for `IMAGES` images of a data set, evenly chosen."""
    step = max(len(dataset) // IMAGES, 1)
    items = iter(dataset_images(dataset.subset(range(0, step * min(len(dataset), IMAGES), step))))
    found = []
    while group := list(islice(items, batch)):
        group += group[-1:] * (batch - len(group))
        prepared = [prepare(*item.read(predictor.input), predictor.input) for item in group]
        images, sizes, _ = stack(prepared, predictor.input)
        given = {"images": np.ascontiguousarray(images), "sizes": sizes}
        found.append({name: given[name] for name in names})
    return found


def onnx_int8(path: Path, inputs: Inputs) -> list[Path]:
    """Quantise the convolutions of an ONNX file, in place, but for the depthwise ones; returns its files, as `save`.

    ONNX Runtime takes one scale for all channels of an input. In depthwise convolutions, whose channels are not mixed,
    this costs accuracy, and they are slower in eight bits: with them the built-in model had an AP of 0.243, without
    them 0.258 (0.256 in fp32) in five sixths of the time.
    """
    import onnx

    from maskkit.export.onnx import save

    model = onnx.load(path)
    _fold_constants(model.graph)
    others = {node.op_type for node in model.graph.node} - {"Conv"}
    return save(_quantised(model, others, inputs, per_channel=False, names=_depthwise(model.graph)), path)


def _depthwise(graph: Any) -> list[str]:
    """The names of the convolutions of which each output channel sees a single input channel of several."""
    seen = {weight.name: weight.dims[1] for weight in graph.initializer if len(weight.dims) == 4}
    convolutions = [node for node in graph.node if node.op_type == "Conv" and seen.get(node.input[1]) == 1]
    return [node.name for node in convolutions if any(a.name == "group" and a.i > 1 for a in node.attribute)]


def _fold_constants(graph: Any) -> None:
    """Put constants in place of their casts and concatenations, for which NNCF looks up types that they do not have."""
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    constants = {constant.name: constant for constant in graph.initializer}
    for node in list(graph.node):
        if node.op_type in ("Cast", "Concat") and all(name in constants for name in node.input):
            arrays = {name: numpy_helper.to_array(constants[name]) for name in node.input}
            (array,) = ReferenceEvaluator(node).run(None, arrays)
            constants[node.output[0]] = numpy_helper.from_array(np.asarray(array), node.output[0])
            graph.initializer.append(constants[node.output[0]])
            graph.node.remove(node)


def openvino_int8(onnx: Path, xml: Path, description: Mapping[str, Any], inputs: Inputs) -> None:
    """Quantise the convolutions of an ONNX file and write it as OpenVINO."""
    import openvino

    model = openvino.convert_model(str(onnx))
    others = {node.get_type_name() for node in model.get_ops()} - {"Convolution", "GroupConvolution"}
    small = _quantised(model, others, inputs, per_channel=None)
    small.set_rt_info(json.dumps(description), "maskkit")
    openvino.save_model(small, str(xml), compress_to_fp16=False)


def _quantised(
    model: Any, others: set[str], inputs: Inputs, per_channel: bool | None, names: Sequence[str] = ()
) -> Any:
    """``model`` in eight bits by NNCF, without the kinds of nodes in ``others`` and the nodes called ``names``.

    ``per_channel`` says whether inputs of convolutions have a scale for each channel; None leaves this to NNCF. Its
    correction of biases is what counts: ONNX Runtime's static quantisation, which has none, lost 0.027 of the
    built-in model's AP of 0.241.
    """
    import nncf
    from nncf.quantization.advanced_parameters import QuantizationParameters

    nncf.set_log_level(logging.ERROR)  # it reports every operation that it leaves alone
    ignored = nncf.IgnoredScope(types=sorted(others), names=list(names), validate=False)
    scales = nncf.AdvancedQuantizationParameters(
        activations_quantization_params=QuantizationParameters(per_channel=per_channel)
    )
    return nncf.quantize(
        model, nncf.Dataset(inputs), ignored_scope=ignored, subset_size=IMAGES, advanced_parameters=scales
    )
