"""EVA against baaivision/EVA. Every stored tensor of a case is compared; nothing is left out."""

from collections.abc import Sequence
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.beit import Beit
from timm.models.eva import Eva
from torch import Tensor, nn

from maskkit.config import PlainVit
from maskkit.nn.backbones.vit import VitPyramid
from maskkit.nn.mim import MaskedStudent, cosine_loss
from maskkit.zoo.eva import rename, rename_student, rename_vit
from tests.parity.goldens import Case

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
DETECTRON2 = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    told_by = {
        "prediction": _mim,
        "patch_tokens": _classifier,
        "last_feat": _detector,
        "text_features": _clip,
        "logits_shared": _relative_bias,
    }
    next(check for name, check in told_by.items() if name in case.outputs)(case)
    assert not case.unchecked, f"stored but not compared: {sorted(case.unchecked)}"


def _limits(case: Case) -> tuple[float, float]:
    return case.manifest["tolerance"]["rtol"], case.manifest["tolerance"]["atol"]


def _ratio(value: str | float) -> float:
    """``6144/1408`` as a number."""
    above, _, below = str(value).partition("/")
    return float(above) / float(below or 1)


def _form(config: dict[str, Any]) -> dict[str, Any]:
    """The sizes of a case as timm calls them."""
    names = ("patch_size", "embed_dim", "depth", "num_heads")
    return {n: config[n] for n in names} | {"mlp_ratio": _ratio(config.get("mlp_ratio", "6144/1408"))}


def _images(case: Case, size: tuple[int, int], seed: int, count: int, statistics: Sequence[Sequence[float]]) -> Tensor:
    images = [torch.from_numpy(case.recipe.seeded_image(*size, seed + i)).permute(2, 0, 1) for i in range(count)]
    mean, std = (torch.tensor(v)[:, None, None] for v in statistics)
    scale = 255.0 if statistics is CLIP else 1.0
    return (torch.stack(images).float() / scale - mean) / std


def _pair(case: Case, side: int) -> Tensor:
    return _images(case, (side, side), case.seed, 2, CLIP)


def _watch_blocks(blocks: nn.Module, seen: list[Tensor]) -> None:
    def watch(_: nn.Module, __: Any, output: Tensor) -> None:
        seen.append(output)

    for block in blocks.children():
        block.register_forward_hook(watch)


def _mim(case: Case) -> None:
    config, limits = case.config, _limits(case)
    side, features = config["img_size"], config["predict_feature_dim"]
    student = MaskedStudent("eva_tiny_patch16_224", side, features, **_form(config))
    student.load_state_dict(rename_student(case.weights()))
    blocks: list[Tensor] = []
    _watch_blocks(student.net.blocks, blocks)
    places = student.grid[0] * student.grid[1]
    rank = torch.from_numpy(case.recipe.seeded_array("mask", (2, places), case.seed)).argsort(1).argsort(1)
    mask = rank < int(config["mask_ratio"] * places)
    targets = torch.from_numpy(case.recipe.seeded_array("clip_features", (2, places, features), case.seed))
    images = _pair(case, side)
    tokens = student.tokens(images, mask)
    for i, block in enumerate(blocks):
        case.compare(f"block{i}", block, *limits)
    predicted = student(images, mask)
    loss = cosine_loss(predicted, targets[mask])
    loss.backward()
    case.compare("mask", mask.int(), 0)
    case.compare("tokens", tokens, *limits)
    case.compare("patch_tokens", student.net.patch_embed(images), *limits)
    case.compare("prediction", predicted, *limits)
    case.compare("loss", loss.reshape(1), *limits)
    theirs = {name: n for n in case.weights() for name in rename_student({n: torch.empty(0)})}
    for name, parameter in student.named_parameters():
        if (stored := f"grad.{theirs[name]}") in case.outputs:
            assert parameter.grad is not None
            case.compare(stored, parameter.grad, *limits)


def _classifier(case: Case) -> None:
    """The published classifiers are timm's networks, and so backbones of ours, by their names alone."""
    config, limits = case.config, _limits(case)
    options = {"img_size": config["img_size"], "num_classes": config["num_classes"], "global_pool": "avg"}
    net = timm.create_model("eva_tiny_patch16_224", **options, **_form(config))
    assert isinstance(net, Eva)
    net.load_state_dict(rename_vit(case.weights()))
    blocks: list[Tensor] = []
    _watch_blocks(net.blocks, blocks)
    with torch.no_grad():
        images = _pair(case, config["img_size"])
        case.compare("logits", net(images), *limits)
        for i, block in enumerate(blocks):
            case.compare(f"block{i}", block, *limits)
        case.compare("patch_tokens", net.fc_norm(net.forward_features(images)[:, 1:]), *limits)


def _detector(case: Case) -> None:
    config, limits = case.config, _limits(case)
    vit = PlainVit(
        patch=config["patch_size"],
        window=config["window_size"],
        global_blocks=tuple(config["global_blocks"]),
        relative=config["img_size"],
        width=config["out_channels"],
    )
    form = _form(config) | {"img_size": config["pretrain_img_size"]}
    form.pop("patch_size")
    strides = [int(vit.patch / scale) for scale in config["scale_factors"]]
    body = VitPyramid("eva_tiny_patch16_224", strides, vit, **form).eval()
    renamed = rename({f"backbone.{n}": t for n, t in case.weights().items()})
    body.load_state_dict({n.removeprefix("backbone.body."): t for n, t in renamed.items()})
    numbers = case.numbers_in(case.manifest["inputs"].partition("other size")[2])
    side = config["img_size"]
    with torch.no_grad():
        images = _images(case, (side, side), case.seed, 1, DETECTRON2)
        case.compare("last_feat", body.map(images), *limits)
        other = _images(case, (numbers[0], numbers[1]), case.seed + 1, 1, DETECTRON2)
        case.compare("last_feat_other_size", body.map(other), *limits)
        levels = body(images)
    for i, level in enumerate([*levels, F.max_pool2d(levels[-1], 1, 2)]):
        case.compare(f"p{i + 2}", level, *limits)


def _relative_bias(case: Case) -> None:
    """The options of EVA's code that its relatives of BEiT's kind use are timm's BEiT."""
    config, limits = case.config, _limits(case)
    form = {n: config[n] for n in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")}
    for tag, how in (("shared", "use_shared_rel_pos_bias"), ("per_block", "use_rel_pos_bias")):
        scaled = config["init_values"].split(" for ")[1].startswith(tag)
        options: dict[str, Any] = {**form, how: True}
        net = Beit(
            **options,
            use_abs_pos_emb=False,
            mlp_ratio=config["mlp_ratio"],
            init_values=float(config["init_values"].split()[0]) if scaled else None,
        )
        mine = [
            [n.removeprefix(f"{tag}/"), *rest] for n, *rest in case.manifest["parameters"] if n.startswith(f"{tag}/")
        ]
        weights = case.recipe.fill_state_dict(case.manifest | {"parameters": mine}, as_torch=True)
        net.load_state_dict(rename_vit(weights))
        with torch.no_grad():
            case.compare(f"logits_{tag}", net(_pair(case, config["img_size"])), *limits)
        for name, index in net.named_buffers():
            if name.endswith("relative_position_index"):
                case.compare(f"relative_position_index_{tag}", index, 0)


class TextTower(nn.Module):
    """CLIP's text transformer. The package has no use for one: it is here so that the whole case is compared."""

    def __init__(self, width: int, heads: int, layers: int, words: int, length: int, features: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(words, width)
        self.positional_embedding = nn.Parameter(torch.empty(length, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, features))
        self.logit_scale = nn.Parameter(torch.empty(()))

    def load(self, state: dict[str, Tensor]) -> None:
        """Weights with CLIP's names."""
        ours = {"attn.": "self_attn.", "ln_1.": "norm1.", "ln_2.": "norm2."}
        ours |= {"mlp.c_fc.": "linear1.", "mlp.c_proj.": "linear2.", "transformer.resblocks.": "layers."}
        for old, new in ours.items():
            state = {n.replace(old, new): t for n, t in state.items()}
        self.load_state_dict(state)

    def forward(self, words: Tensor) -> Tensor:
        x = self.token_embedding(words) + self.positional_embedding
        future = nn.Transformer.generate_square_subsequent_mask(words.shape[1])
        for layer in self.layers:
            x = layer(x, future)
        last = self.ln_final(x)[torch.arange(len(words)), words.argmax(1)]  # the end of the text has the highest id
        return last @ self.text_projection


def _clip(case: Case) -> None:
    """The vision tower is timm's EVA; of the text tower only this file knows."""
    config, limits = case.config, _limits(case)
    sizes, words = config["vision"], config["text"]
    form = {"embed_dim": sizes["width"], "depth": sizes["layers"], "num_heads": sizes["width"] // sizes["head_width"]}
    form |= {"patch_size": sizes["patch_size"], "mlp_ratio": sizes["mlp_ratio"], "img_size": sizes["image_size"]}
    vision = timm.create_model(
        "eva_tiny_patch16_224", num_classes=config["embed_dim"], global_pool="token", **form
    ).eval()
    text = TextTower(
        words["width"],
        words["heads"],
        words["layers"],
        words["vocab_size"],
        words["context_length"],
        config["embed_dim"],
    )
    assert isinstance(vision, Eva)
    state = case.weights()
    vision.load_state_dict(rename_vit(state))
    text.load({n.removeprefix("text."): t for n, t in state.items() if n.startswith("text.")})
    tokens = torch.from_numpy(case.stored("text")).long()
    with torch.no_grad():
        images = _pair(case, sizes["image_size"])
        seen, read = vision(images), text(tokens)
        case.compare("image_features_raw", seen, *limits)
        case.compare("text_features_raw", read, *limits)
        case.compare("visual_pooled", vision.forward_head(vision.forward_features(images), pre_logits=True), *limits)
        seen, read = F.normalize(seen), F.normalize(read)
        scale = text.logit_scale.exp()
        case.compare("image_features", seen, *limits)
        case.compare("text_features", read, *limits)
        case.compare("logit_scale", scale.reshape(1), *limits)
        case.compare("logits", scale * seen @ read.t(), *limits)
