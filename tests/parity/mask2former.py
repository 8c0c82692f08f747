"""Mask2Former against facebookresearch/Mask2Former. Every stored tensor of a case is compared; nothing is left out."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskkit import zoo
from maskkit.config import change
from maskkit.data.loader import normalise
from maskkit.decode import Decoder, decode
from maskkit.decode.outputs import ClassLogits, ObjectMasks, SegmentQueries
from maskkit.engine.optim import learning_rate, param_groups
from maskkit.models.base import to_arrays
from maskkit.models.mask2former import Mask2Former, Mask2FormerConfig, Mask2FormerRaw
from maskkit.nn.deform_attn import DeformableAttention, sample_by_grid, sample_by_rows
from maskkit.nn.query_loss import mask_costs, match, uncertain_points
from maskkit.prediction import Categories, ImageMeta
from maskkit.targets import Batch, Target, full_sizes
from maskkit.zoo.mask2former import rename
from tests.parity.goldens import Case, watched


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    told_by = {
        "pred_logits": _forward,
        "core": _attention,
        "loss_ce": _loss,
        "losses": _train_step,
        "lr": _optimizer,
        "instance.scores": _postprocess,
    }
    next(check for name, check in told_by.items() if name in case.outputs)(case, monkeypatch)
    assert not case.unchecked, f"stored but not compared: {sorted(case.unchecked)}"


def _preset(case: Case) -> str:
    """The preset of ``maskformer2_R50_bs16_50ep.yaml`` of its task's folder."""
    found = re.search(r"(instance|panoptic)-segmentation/maskformer2_R(\d+)_", case.config["file"])
    assert found is not None
    task, depth = found.groups()
    return f"mask2former-resnet{depth}" + ("-panoptic" if task == "panoptic" else "")


def _knobs(case: Case) -> dict[str, Any]:
    """What the manifest says otherwise than the preset."""
    overrides = case.config.get("overrides", [])
    given = dict(zip(overrides[::2], overrides[1::2], strict=True))
    assert given.pop("MODEL.MASK_FORMER.DROPOUT", 0.0) == 0.0
    names = {"MODEL.MASK_FORMER.TRAIN_NUM_POINTS": "points"}
    knobs: dict[str, Any] = {"query_loss": {names[name]: value for name, value in given.items()}}
    limits = case.config.get("thresholds", {})
    places = {"topk": "detections", "object_mask": "segment_score", "overlap": "segment_overlap"}
    return knobs | {ours: limits[theirs] for theirs, ours in places.items() if theirs in limits}


def _model(case: Case, **knobs: Any) -> Mask2Former:
    """The model of a case without weights."""
    config = change(zoo.preset(_preset(case)).model, **_knobs(case), **knobs)
    assert isinstance(config, Mask2FormerConfig)
    with torch.device("meta"):
        return Mask2Former(config)


def _filled(case: Case) -> Mask2Former:
    return case.filled(_preset(case), case.weights() | case.constants, **_knobs(case))


def _limits(case: Case) -> tuple[float, float]:
    tolerance = case.manifest["tolerance"]
    return tolerance.get("rtol", 0.0), tolerance.get("atol", 0.0)


def _images(case: Case) -> Tensor:
    """The images of a case, normalised by the package's own code and padded to a multiple of 32."""
    sizes = case.manifest["inputs"]["image_sizes_hw"]
    height, width = (-(-max(s[axis] for s in sizes) // 32) * 32 for axis in (0, 1))
    images = torch.zeros(len(sizes), 3, height, width)
    for i, (h, w) in enumerate(sizes):
        image = torch.from_numpy(case.recipe.seeded_image(h, w, case.seed + i)).permute(2, 0, 1)
        images[i, :, :h, :w] = normalise(image, zoo.preset(_preset(case)).input)
    return images


def _recipe_rand(case: Case, monkeypatch: pytest.MonkeyPatch, seed: int | None = None) -> None:
    """``torch.rand`` gives the numbers of the recipe, from the first call on."""
    calls = iter(range(10**6))
    seed = case.seed if seed is None else seed

    def rand(*shape: int) -> Tensor:
        made = case.recipe.rng_for(f"rand{next(calls)}", seed).random(shape)
        return torch.from_numpy(made.astype(np.float32))

    monkeypatch.setattr(torch, "rand", rand)


# the network ----------------------------------------------------------------------------------------------------------


def _forward(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _filled(case)
    images = _images(case)
    assert list(images.shape[2:]) == case.manifest["padded_hw"]
    with torch.no_grad(), watched(model.backbone, model.pixel_decoder, *model.pixel_decoder.layers) as seen:
        raw = model(images)
    stages, (features, levels), *layers = seen
    for stride, feature in stages.items():
        _nearly(case, f"backbone.res{stride.bit_length() - 1}", feature)
    for name in [n for n in case.outputs if n.startswith("encoder.layer")]:
        _nearly(case, name, layers[int(name.removeprefix("encoder.layer"))])
    for i, level in enumerate(levels):
        _nearly(case, f"multi_scale.{i}", level)
    _nearly(case, "mask_features", features)
    for name in sorted(case.unchecked):
        layer = -1 if name.startswith("pred") else int(re.findall(r"\d+", name)[0])
        masks = torch.einsum("bqc,bchw->bqhw", raw.embeddings[:, layer], raw.features)
        _nearly(case, name, masks if name.endswith("masks") else raw.logits[:, layer])


def _nearly(case: Case, name: str, ours: Tensor) -> None:
    """All but one in a thousand of the values agree: the attention masks are thresholds."""
    described = case.manifest["outputs"][name]
    assert list(ours.shape) == described["shape"], name
    official = case.stored(name).reshape(-1)
    relative, absolute = _limits(case)
    off = np.abs(case.part(name, ours) - official)
    far = off > absolute + relative * described["absmax"]
    assert far.mean() <= 1e-3, f"{name}: {far.sum()} of {len(far)} differ, the worst by {off.max():.3g}"


def _attention(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    given = case.manifest["inputs"]
    sizes = [(h, w) for h, w in given["spatial_shapes"]]
    made: dict[str, Any] = {}
    names = {
        "recipe": case.recipe,
        "seeded_array": case.recipe.seeded_array,
        "rng_for": case.recipe.rng_for,
        "quantise": case.scenes.quantise,
        "seed": case.seed,
    }
    for line in "; ".join(given["code"]).split("; "):
        exec(re.sub(r"(\w+) / sum over the last two axes", r"\1 / \1.sum((-2, -1), keepdims=True)", line), names, made)
    made = {name: torch.from_numpy(value) for name, value in made.items() if isinstance(value, np.ndarray)}
    width = made["query"].shape[2]
    heads, levels, points = made["weights"].shape[2:]
    attention = DeformableAttention(width, heads, levels, points)
    ours = {
        "sampling_offsets": "offsets",
        "attention_weights": "weights",
        "value_proj": "value",
        "output_proj": "output",
    }
    renamed = {n.replace(n.split(".")[0], ours[n.split(".")[0]]): t for n, t in case.weights().items()}
    attention.load_state_dict(renamed)
    extent = torch.tensor([(w, h) for h, w in sizes], dtype=torch.float32)
    places = (made["locations"] * extent[:, None]).movedim(-1, 0)
    with torch.no_grad():
        rows, grid = (s(made["value"], places, made["weights"], sizes) for s in (sample_by_rows, sample_by_grid))
        case.compare("core", rows, *_limits(case))
        case.compare("core", grid, *_limits(case))
        case.compare("module", attention(made["query"], made["reference"], made["input"], sizes), *_limits(case))


# losses ---------------------------------------------------------------------------------------------------------------


def _scenes(case: Case, sizes: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """The objects of a case's targets: ``sc_i = scenes.make_scene(seed + A + i, h_i, w_i, N + i)``."""
    first, fewest = re.findall(r"seed \+ (\d+) \+ i, h_i, w_i, (\d+) \+ i", case.manifest["inputs"]["targets"])[0]
    for i, (h, w) in enumerate(sizes):
        yield case.scenes.make_scene(case.seed + int(first) + i, h, w, int(fewest) + i)


def _batch(images: Tensor, scenes: list[dict[str, Any]]) -> Batch:
    """Objects whose masks are padded with background to the size of ``images``."""
    height, width = images.shape[2:]
    targets = []
    for scene in scenes:
        masks = torch.from_numpy(scene["masks"]).bool()
        padded = F.pad(masks, [0, width - masks.shape[2], 0, height - masks.shape[1]])
        targets.append(Target.of(scene["boxes"], scene["classes"], padded))
    metas = [ImageMeta(i, "", (height, width), (height, width)) for i in range(len(images))]
    return Batch(images, full_sizes(images), targets, metas)


def _loss(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    given = case.manifest["inputs"]
    sizes = [(int(h), int(w)) for h, w in re.findall(r"\((\d+), (\d+)\)", given["targets"].partition(") = ")[2])]
    scenes = list(_scenes(case, sizes))
    rows, columns, step = case.numbers_in(given["predictions"])[-3:]
    aux = case.numbers_in(given["aux_predictions"])[0]
    made = [
        [case.scenes.query_raw(case.seed + first + i, scene, rows, columns, step) for i, scene in enumerate(scenes)]
        for first in (aux, 0)  # the auxiliary prediction is the earlier one
    ]
    logits = [torch.from_numpy(np.stack([p["logits"] for p in layer])).requires_grad_() for layer in made]
    masks = [torch.from_numpy(np.stack([p["masks"] for p in layer])).requires_grad_() for layer in made]
    queries = masks[0].shape[1]
    # masks are products of embeddings and features: each query of each layer picks its own channel
    one = torch.eye(2 * queries).view(1, 2, queries, 2 * queries).expand(len(scenes), -1, -1, -1)
    raw = Mask2FormerRaw(torch.stack(logits, 1), one, torch.cat(masks, 1))
    batch = _batch(torch.zeros(len(scenes), 3, *given["padded_hw"]), scenes)
    model = _model(case)
    config = model.config.query_loss
    assert config.points == given["points"]
    truths = [model.truth(t, raw, batch) for t in batch.targets]
    close = _limits(case)

    _recipe_rand(case, monkeypatch)
    for i, truth in enumerate(truths):
        pairs = match(raw.logits[i, -1], raw.embeddings[i, -1], raw.features[i], truth, config)
        assert np.array_equal(case.stored(f"match.queries.{i}"), pairs.queries)
        assert np.array_equal(case.stored(f"match.targets.{i}"), pairs.objects)
    _recipe_rand(case, monkeypatch)
    with torch.no_grad():
        costs = mask_costs(raw.embeddings[0, -1], raw.features[0], truths[0], config.points)
    for name, cost in zip(("mask", "dice"), costs, strict=True):
        case.compare(f"cost.{name}", cost, *close)
    case.compare("cost.class", -raw.logits[0, -1].softmax(1)[:, truths[0].labels], *close)

    _recipe_rand(case, monkeypatch)
    weights = case.manifest["weights"]
    terms = {"ce": "classification", "mask": "mask", "dice": "mask/dice"}
    for layer, suffix, prefix in ((1, "", ""), (0, "_0", "aux_")):
        losses = model.layer_loss(raw, layer, truths, batch)
        for theirs, ours in terms.items():
            term = losses[ours] / weights[f"loss_{theirs}"]
            case.compare(f"loss_{theirs}{suffix}", term[None], *close)
            kind, leaf = ("logits", logits[layer]) if theirs == "ce" else ("masks", masks[layer])
            (gradient,) = torch.autograd.grad(term, leaf, retain_graph=True)
            case.compare(f"gradnorm.loss_{theirs}{suffix}.{prefix}{kind}", gradient.norm()[None], *close)

    shape = case.manifest["outputs"]["uncertain_points"]["shape"]
    few = replace(config, points=shape[1])
    _recipe_rand(case, monkeypatch, case.seed + 1)
    with torch.no_grad():
        case.compare("uncertain_points", uncertain_points(masks[1][0, : shape[0], None], few), *close)


def _train_step(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _filled(case).train()
    images = _images(case)
    sizes = [(h, w) for h, w in case.manifest["inputs"]["image_sizes_hw"]]
    batch = _batch(images, list(_scenes(case, sizes)))
    _recipe_rand(case, monkeypatch)
    raw = model(images)
    truths = [model.truth(t, raw, batch) for t in batch.targets]
    order = [raw.logits.shape[1] - 1, *range(raw.logits.shape[1] - 1)]
    losses = {layer: model.layer_loss(raw, layer, truths, batch) for layer in order}
    terms = {"ce": "classification", "mask": "mask", "dice": "mask/dice"}
    ours = []
    for name in case.manifest["loss_names"]:
        _, term, *layer = name.split("_")
        ours.append(losses[int(layer[0]) if layer else order[0]][terms[term]])
    close = case.manifest["tolerance"]
    official = case.stored("losses")
    assert np.allclose(torch.stack(ours).detach().numpy(), official, rtol=close["losses_rtol"], atol=0)
    total = torch.stack(ours).sum()
    assert np.allclose(total.item(), case.stored("loss_total"), rtol=close["losses_rtol"])
    total.backward()
    gradients = dict(model.named_parameters())
    official = case.stored("gradnorm")
    norms = []
    for name in case.manifest["gradnorm_names"]:
        (renamed,) = published_names([name])
        gradient = gradients[renamed].grad
        assert gradient is not None, name
        norms.append(gradient.norm().item())
    assert np.allclose(norms, official, rtol=close["gradnorm_rtol"], atol=1e-6 * official.max())


def published_names(names: list[str]) -> list[str]:
    """Our names of official ones."""
    return list(rename({name: torch.zeros(1) for name in names}))


def _optimizer(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model, train = _model(case), zoo.preset(_preset(case)).train
    solver = case.manifest["solver"]
    ours = dict(model.named_parameters())
    names = published_names(case.manifest["names"])
    assert {n for n, p in ours.items() if p.requires_grad} == set(names)
    assert not case.manifest["frozen"]
    of = {id(p): g for g in param_groups(model, train) for p in g["params"]}
    case.compare("lr", np.array([train.lr * of[id(ours[n])]["lr_factor"] for n in names]), *_limits(case))
    case.compare("weight_decay", np.array([of[id(ours[n])]["weight_decay"] for n in names]), *_limits(case))
    factors = [learning_rate(step, solver["MAX_ITER"], train) / train.lr for step in case.manifest["iterations"]]
    case.compare("factor", np.array(factors), *_limits(case))
    assert (train.optimizer, train.batch) == (solver["OPTIMIZER"].lower(), solver["IMS_PER_BATCH"])
    clip = re.search(r"clipping at ([\d.]+)", case.manifest["note"])
    assert clip is not None
    assert train.clip == float(clip[1])
    assert train.epochs == round(solver["MAX_ITER"] * train.batch / 118287), "images of COCO train2017"


# final results --------------------------------------------------------------------------------------------------------


def _postprocess(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official rules are applied to masks in the size of the image: ours are given such masks."""
    given, close = case.manifest["inputs"], case.manifest["tolerance"]
    (h, w), output = given["image_hw"], tuple(given["output_hw"])
    *_, objects, classes = case.numbers_in(given["scene"])
    scene = case.scenes.make_scene(case.seed, h, w, objects, num_classes=classes)
    rows, columns, step, queries, _ = case.numbers_in(given["predictions"])
    made = case.scenes.query_raw(case.seed, scene, rows, columns, step, queries, classes)
    logits, masks = (torch.from_numpy(made[name])[None] for name in ("logits", "masks"))
    assert np.isclose(masks.abs().sum(), given["check"]["masks"]["abs_sum"])
    enlarged = F.interpolate(masks, given["padded_hw"], mode="bilinear")[:, :, :h, :w]
    enlarged = F.interpolate(enlarged, output, mode="bilinear")
    things = case.numbers_in(case.manifest["stubbed"].partition("Thing classes are")[2])[:2]
    last_thing = things[1] if things else classes - 1
    meta = ImageMeta(1, "", output, output)

    decoder, chosen = _read(case, "instance", logits, enlarged)
    assert isinstance(chosen, ObjectMasks)
    kept = chosen.labels[0] <= last_thing  # the official list of a panoptic model has things alone
    scores, labels = chosen.scores[0, kept], chosen.labels[0, kept]
    case.compare("instance.scores", scores, 0, close["scores"])
    official = case.stored("instance.classes")
    sure = np.diff(scores, prepend=2.0, append=-1.0) < -close["scores"]
    assert np.array_equal(labels[sure[:-1] & sure[1:]], official[sure[:-1] & sure[1:]])
    categories = Categories.of(
        [str(i) for i in range(last_thing + 1)], [str(i) for i in range(last_thing + 1, classes)]
    )
    of_things = ObjectMasks(*(t[:, kept] for t in chosen))
    found = decode(decoder, to_arrays(of_things), [meta], categories, 0.1)[0].instances
    assert found is not None
    assert found.masks is not None
    wanted = case.unpacked("instance.masks")
    assert (_ious(found.masks.dense(), wanted) >= close["mask_iou"]).all()

    # the whole way from the grid as the published presets go it: rated in the image
    place = np.array([[output[1] / w, 0, 0], [0, output[0] / h, 0]])
    decoder, chosen = _read(case, "instance", logits, masks, "image")
    whole = ImageMeta(1, "", output, tuple(given["padded_hw"]), place)
    found = decode(decoder, to_arrays(chosen), [whole], categories)[0].instances
    assert found is not None
    assert found.masks is not None
    sure = case.outputs["instance.scores"][: len(found)]
    assert np.abs(found.scores - sure).max() <= close["scores"]
    assert (case.outputs["instance.scores"][len(found) :] == 0).all(), "objects without a pixel"
    assert (_ious(found.masks.dense()[: len(wanted)], wanted) >= close["mask_iou"]).all()

    # the whole way from the grid: rated there, and enlarged in one step
    decoder, chosen = _read(case, "instance", logits, masks)
    of_things = ObjectMasks(*(t[:, chosen.labels[0] <= last_thing] for t in chosen))
    found = decode(decoder, to_arrays(of_things), [whole], categories, 0.1)[0].instances
    assert found is not None
    assert found.masks is not None
    near = np.array([_ious(found.masks.dense(), mask[None]).max() for mask in wanted])
    assert near.mean() > 0.95, near

    if "panoptic.ids" in case.outputs:
        decoder, chosen = _read(case, "panoptic", logits, masks)
        assert isinstance(chosen, SegmentQueries)
        panoptic = decode(decoder, to_arrays(chosen), [whole], categories)[0].panoptic
        assert panoptic is not None
        segments = panoptic.segments
        assert np.array_equal(case.stored("panoptic.categories"), [s.label for s in segments])
        assert np.array_equal(case.stored("panoptic.isthing"), [s.thing for s in segments])
        official = case.stored("panoptic.ids")
        numbers = [s.id for s in segments]
        assert numbers == [*range(1, len(numbers) + 1)]
        ours, theirs = (np.stack([ids == n for n in numbers]) for ids in (panoptic.ids, official))
        assert (_ious(ours, theirs) >= close["mask_iou"]).all()
        _, chosen = _read(case, "semantic", logits, enlarged)
        assert isinstance(chosen, ClassLogits)
        case.compare("sem_seg", chosen.logits[0], 0, close["scores"])
        best = case.part("sem_seg.argmax", chosen.logits[0].argmax(0))
        assert (case.stored("sem_seg.argmax").reshape(-1) == best).mean() >= 0.9999


def _read(case: Case, task: str, logits: Tensor, masks: Tensor, scored_in: str = "cells") -> tuple[Decoder, Any]:
    """What a model of ``task`` selects from masks that are given, and its decoder."""
    model = _model(case, task=task, scored_in=scored_in)
    one = torch.eye(masks.shape[1])[None, None]
    return model.decoder, model.select(Mask2FormerRaw(logits[:, None], one, masks))


def _ious(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return (ours & theirs).sum((1, 2)) / np.maximum((ours | theirs).sum((1, 2)), 1)
