import pytest
import timm
import torch

from maskkit.checkpoints.foreign import write_tensors
from maskkit.engine.teacher import Teacher
from maskkit.errors import DataError, MaskkitError

TINY = "eva_tiny_patch16_224"


def test_a_teacher_learns_nothing() -> None:
    torch.manual_seed(0)
    teacher = Teacher(f"random:{TINY}", "hub", (4, 4), 16).train()
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    features = teacher(torch.rand(2, 3, 64, 64, requires_grad=True))
    assert features.shape == (2, 16, 192)
    assert not features.requires_grad


def test_a_teacher_of_other_patches_sees_the_image_in_its_size() -> None:
    """Its grid is the student's: 4 x 4 patches of 14 pixels are 56 pixels, not 64."""
    torch.manual_seed(0)
    teacher = Teacher("random:eva02_tiny_patch14_224", "hub", (4, 4), 16)
    assert teacher.net.patch_embed.img_size == (56, 56)
    assert teacher(torch.rand(1, 3, 64, 64)).shape == (1, 16, 192)


def test_clip_gives_what_its_projection_makes_of_every_token() -> None:
    torch.manual_seed(0)
    teacher = Teacher("random:vit_base_patch16_clip_quickgelu_224.openai", "hub", (2, 2), 16)
    assert teacher.features == 512
    pixels = torch.rand(1, 3, 32, 32)
    assert teacher(pixels).shape == (1, 4, 512)
    images = (pixels - teacher.mean) / teacher.std
    with torch.no_grad():
        tokens = teacher.net.head(teacher.net.forward_features(images))
    assert torch.allclose(teacher(pixels), tokens[:, 1:])
    assert teacher.net.forward_features(images).shape[2] == 768, "before it"


def test_a_teacher_from_a_file(tmp_path) -> None:
    torch.manual_seed(0)
    net = timm.create_model(TINY, num_classes=0)
    write_tensors(tmp_path / "vit.safetensors", net.state_dict(), {})
    teacher = Teacher(f"timm:{TINY}", str(tmp_path / "vit.safetensors"), (14, 14), 16)
    assert all(torch.equal(t, teacher.net.state_dict()[n]) for n, t in net.state_dict().items())
    with pytest.raises(DataError, match="cannot load its weights"):
        Teacher("timm:eva02_tiny_patch14_224", str(tmp_path / "vit.safetensors"), (14, 14), 16)


def test_any_network_of_the_right_stride_can_teach(tmp_path) -> None:
    torch.manual_seed(0)
    net = timm.create_model("mobilenetv2_050")
    write_tensors(tmp_path / "mobile.safetensors", net.state_dict(), {})
    teacher = Teacher("timm:mobilenetv2_050", str(tmp_path / "mobile.safetensors"), (4, 4), 16)
    assert teacher(torch.rand(2, 3, 64, 64)).shape == (2, 16, teacher.features)


def test_random_weights_are_never_silent() -> None:
    with pytest.raises(MaskkitError, match="neither timm:NAME nor random:NAME"):
        Teacher(TINY, "hub", (4, 4), 16)
    with pytest.raises(MaskkitError, match="has random weights, and"):
        Teacher(f"random:{TINY}", "weights.safetensors", (4, 4), 16)
    with pytest.raises(MaskkitError, match="no teacher 'none'"):
        Teacher("timm:none", "hub", (4, 4), 16)
