"""The frame encoder against a ResNet of basic blocks written out with torchvision's names."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch
from factories.resnets import torchvision_forward, torchvision_state
from safetensors.torch import save_file
from torch import nn

from sage_scale.config import Backbone
from sage_scale.errors import CheckpointError
from sage_scale.nn.frame_encoder import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FrameEncoder,
    PickedConv,
    last_map_side,
    load_backbone,
)

SMALL = Backbone(depths=(2, 1, 2), widths=(8, 12, 16))


def pictures(count: int, side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("form", ["pth", "safetensors", "transformers", "lightning"])
def test_weights_in_each_form_give_the_published_forward_pass(form, tmp_path):
    state = torchvision_state(SMALL.depths, SMALL.widths)
    path = tmp_path / "weights.pth"
    if form == "pth":
        torch.save(state, path)
    elif form == "lightning":
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    elif form == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(state, path)
    else:  # the folder of a transformers ResNet classifier
        torch.save(state, tmp_path / "first.pth")
        other = FrameEncoder(SMALL, 32)
        load_backbone(other, str(tmp_path / "first.pth"))
        path = tmp_path / "folder"
        path.mkdir()
        named = {f"resnet.{name}": value.clone() for name, value in other.resnet.state_dict().items()}
        save_file({**named, "classifier.1.weight": torch.zeros(10, 16)}, path / "model.safetensors")
    encoder = FrameEncoder(SMALL, 32)
    load_backbone(encoder, str(path))
    encoder = encoder.double().eval()
    x = pictures(3)
    normed = (x / 255 - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[
        :, None, None
    ]
    wanted = torchvision_forward(state, SMALL.depths, normed).mean((2, 3))
    torch.testing.assert_close(encoder(x), wanted, rtol=1e-5, atol=1e-6)
    centred = torchvision_forward(
        state, SMALL.depths, (x - 90) / 255 / torch.tensor(IMAGENET_STD)[:, None, None]
    ).mean((2, 3))
    torch.testing.assert_close(encoder(x - 90, centred=True), centred, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("crop", [32, 33, 64, 71])
def test_flatten_keeps_the_places_of_the_last_map(crop):
    encoder = FrameEncoder(Backbone(depths=(1, 1, 1), widths=(4, 6, 8), pool="flatten"), crop).eval()
    last = encoder.resnet(torch.zeros(1, 3, crop, crop)).last_hidden_state
    assert last.shape[2:] == (last_map_side(crop, 3),) * 2
    assert encoder(pictures(2, crop).float()).shape == (2, 8)
    x = pictures(1, crop).float()
    assert not torch.allclose(encoder(x), encoder(x.flip(3)), atol=1e-4)


def test_picking_pixels_first_is_the_convolution_with_strides():
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 16, 1, stride=2, bias=False).double()
    picked = PickedConv(8, 16, 1, stride=2, bias=False).double()
    picked.load_state_dict(plain.state_dict())
    for side in (7, 8):
        x, same = (torch.randn(3, 8, side, side).double().requires_grad_() for _ in range(2))
        same.data.copy_(x.data)
        weights = torch.randn(3, 16, 4, 4).double()
        for conv, values in ((plain, x), (picked, same)):
            conv.zero_grad()
            (conv(values) * weights).sum().backward()
        torch.testing.assert_close(picked.weight.grad, plain.weight.grad)
        torch.testing.assert_close(same.grad, x.grad)


@pytest.mark.system
def test_narrow_stages_train_on_large_frames():
    """In a process of its own: what is tested ends it by SIGSEGV where torch has the fault."""
    program = (
        "import torch; torch.set_num_threads(1)\n"
        "from sage_scale.config import Backbone\n"
        "from sage_scale.nn.frame_encoder import FrameEncoder\n"
        "for widths in ((8, 16), (4, 8, 12)):\n"
        "    encoder = FrameEncoder(Backbone(depths=(1,) * len(widths), widths=widths), 224)\n"
        "    encoder(torch.rand(4, 3, 224, 224) * 255).sum().backward()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])


@pytest.mark.parametrize("pool", ["mean", "flatten"])
def test_no_frames_give_no_features_and_zero_gradients(pool):
    encoder = FrameEncoder(Backbone(depths=(1, 1), widths=(4, 6), pool=pool), 16)
    out = encoder(torch.zeros(0, 3, 16, 16))
    out.sum().backward()
    assert out.shape == (0, 6)
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in encoder.parameters())


def test_resnet34_has_the_published_size():
    with torch.device("meta"):
        encoder = FrameEncoder(Backbone(), 224)
    assert sum(p.numel() for p in encoder.parameters()) == 21_284_672


def test_wrong_weights_are_refused_in_one_line(tmp_path):
    encoder = FrameEncoder(SMALL, 32)
    state = torchvision_state(SMALL.depths, SMALL.widths)
    path = tmp_path / "weights.pth"

    def refused(words: str, file=path) -> None:
        with pytest.raises(CheckpointError, match=words) as caught:
            load_backbone(encoder, str(file))
        assert "\n" not in str(caught.value)

    refused("weights file")
    refused(r"no model\.safetensors", tmp_path)
    path.write_bytes(b"no weights")
    refused(r"weights\.pth")
    path.write_bytes(pickle.dumps({"a": pytest.raises}, protocol=2))
    refused(r"weights\.pth")
    torch.save({"a": 3}, path)
    refused("from names to tensors")
    torch.save({name: value for name, value in state.items() if name != "layer2.0.conv1.weight"}, path)
    refused(r"lacks encoder\.stages\.1\.layers\.0\.layer\.0\.convolution\.weight")
    torch.save(torchvision_state((2, 1, 2), (8, 12, 20)), path)
    refused(r"another shape of encoder\.stages\.2\.")
    torch.save(torchvision_state((3, 1, 2), (8, 12, 16)), path)
    refused(r"strange encoder\.stages\.0\.layers\.2\.")
