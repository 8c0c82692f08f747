"""Names of backbones are names of timm's registry."""

import pytest

from maskkit import zoo
from maskkit.errors import MaskkitError
from maskkit.nn.backbones.names import check_name


def test_every_backbone_of_the_zoo_is_known() -> None:
    names = {backbone.name for p in zoo.presets() if (backbone := getattr(p.model, "backbone", None)) is not None}
    assert len(names) >= 5
    for name in names - {"vgg16", "resnet38", "nanodet_plus_m"}:
        check_name(name)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet18.a1_in1k", "mobilenetv2_100", "eva_tiny_patch16_224", "tf_efficientnet_b0"]
)
def test_names_of_timm_are_taken(name) -> None:
    check_name(name)


def test_nearly_right_names_get_a_hint() -> None:
    for name, meant in (("resnet_18", "resnet18"), ("ResNet50", "resnet50"), ("mobilenet_v2", "mobilenet")):
        with pytest.raises(MaskkitError, match=f"timm has no backbone '{name}'; did you mean .*{meant}"):
            check_name(name)
    with pytest.raises(MaskkitError, match=r"timm has no model 'eva_tinny_patch16_224'; did you mean eva"):
        check_name("eva_tinny_patch16_224", "model", "eva*")


@pytest.mark.parametrize(
    "name", ["hf-hub:timm/resnet18", "local-dir:/etc", "/etc/passwd", "https://a/b", "a b", "", "x" * 200]
)
def test_places_are_no_names(name) -> None:
    with pytest.raises(
        MaskkitError, match=r"is no backbone: .* never a folder or an address; .*backbone\.weights FILE"
    ):
        check_name(name)
