"""The frame encoder against a ResNet of basic blocks written out with torchvision's names."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
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


def torchvision_state(backbone: Backbone) -> dict[str, torch.Tensor]:
    """Random weights under the names that `torchvision.models.resnet` gives a ResNet of basic blocks."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def conv(name: str, out: int, into: int, kernel: int) -> None:
        state[f"{name}.weight"] = (
            torch.randn(out, into, kernel, kernel, generator=generator) * (2 / into) ** 0.5 / kernel
        )

    def norm(name: str, width: int) -> None:
        for leaf, low, high in (
            ("weight", 0.5, 1.5),
            ("bias", -1, 1),
            ("running_mean", -1, 1),
            ("running_var", 0.5, 2),
        ):
            state[f"{name}.{leaf}"] = torch.rand(width, generator=generator) * (high - low) + low
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", backbone.widths[0], 3, 7)
    norm("bn1", backbone.widths[0])
    into = backbone.widths[0]
    for stage, (depth, width) in enumerate(zip(backbone.depths, backbone.widths), start=1):
        for block in range(depth):
            name = f"layer{stage}.{block}"
            conv(f"{name}.conv1", width, into, 3)
            norm(f"{name}.bn1", width)
            conv(f"{name}.conv2", width, width, 3)
            norm(f"{name}.bn2", width)
            if block == 0 and stage > 1:
                conv(f"{name}.downsample.0", width, into, 1)
                norm(f"{name}.downsample.1", width)
            into = width
    state["fc.weight"], state["fc.bias"] = torch.randn(10, into, generator=generator), torch.zeros(10)
    return state


def torchvision_forward(state: dict[str, torch.Tensor], backbone: Backbone, x: torch.Tensor) -> torch.Tensor:
    """The last map of that ResNet in eval mode, as torchvision's `_forward_impl` has it."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        s = {
            leaf: state[f"{name}.{leaf}"].to(x) for leaf in ("running_mean", "running_var", "weight", "bias")
        }
        return F.batch_norm(x, **s)

    def conv(name: str, x: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
        return F.conv2d(x, state[f"{name}.weight"].to(x), stride=stride, padding=padding)

    x = F.max_pool2d(F.relu(norm("bn1", conv("conv1", x, 2, 3))), 3, 2, 1)
    for stage, depth in enumerate(backbone.depths, start=1):
        for block in range(depth):
            name, stride = f"layer{stage}.{block}", 2 if block == 0 and stage > 1 else 1
            out = F.relu(norm(f"{name}.bn1", conv(f"{name}.conv1", x, stride, 1)))
            out = norm(f"{name}.bn2", conv(f"{name}.conv2", out, 1, 1))
            if f"{name}.downsample.0.weight" in state:
                x = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride, 0))
            x = F.relu(out + x)
    return x


def pictures(count: int, side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("form", ["pth", "safetensors", "transformers", "lightning"])
def test_weights_in_each_form_give_the_published_forward_pass(form, tmp_path):
    state = torchvision_state(SMALL)
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
    wanted = torchvision_forward(state, SMALL, normed).mean((2, 3))
    torch.testing.assert_close(encoder(x), wanted, rtol=1e-5, atol=1e-6)
    centred = torchvision_forward(
        state, SMALL, (x - 90) / 255 / torch.tensor(IMAGENET_STD)[:, None, None]
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
    state = torchvision_state(SMALL)
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
    torch.save(torchvision_state(Backbone(depths=(2, 1, 2), widths=(8, 12, 20))), path)
    refused(r"another shape of encoder\.stages\.2\.")
    torch.save(torchvision_state(Backbone(depths=(3, 1, 2), widths=(8, 12, 16))), path)
    refused(r"strange encoder\.stages\.0\.layers\.2\.")
