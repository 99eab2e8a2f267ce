"""Augmentation: one seed a clip, a function of the seed alone, and each change what its name says."""

from __future__ import annotations

import pytest
import torch

from sage_scale.config import Augment, load_recipe
from sage_scale.vision.augment import augment, centre_crop
from sage_scale.vision.packed import mix, uniform

ALL = Augment(rotation=20, translate=0.1, scale=0.2, brightness=0.3, contrast=0.3, saturation=0.3)
LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


def frames(count: int, side: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(count)) * 255


def test_frames_of_a_clip_change_alike_and_neighbours_do_not_matter():
    picture = frames(1)
    clip = torch.tensor([0, 0, 1, 1, 1])
    seeds = torch.tensor([77, 12345])
    out = augment(picture.expand(5, -1, -1, -1), clip, seeds, ALL, 20)
    assert out.shape == (5, 3, 20, 20)
    assert torch.equal(out[0], out[1]) and torch.equal(out[2], out[4])
    assert (out[0] - out[2]).abs().max() > 1
    alone = augment(picture, torch.tensor([0]), seeds[1:], ALL, 20)
    torch.testing.assert_close(alone[0], out[3])


def test_nothing_to_change_is_the_centre_crop():
    assert not Augment().active and Augment(contrast=0.1).active
    x = frames(2, 10)
    out = augment(x, torch.tensor([0, 0]), torch.tensor([5]), Augment(), 6)
    assert torch.equal(out, x[:, :, 2:8, 2:8])
    assert torch.equal(centre_crop(x, 10), x)
    with pytest.raises(ValueError, match=r"vision\.crop=11 is larger than the stored frames of 10x10"):
        centre_crop(x, 11)


def test_the_released_recipes_shift_is_a_random_crop_of_224_of_256():
    """Every pixel of the result says which column and row it is from; no crop leaves the picture."""
    settings = load_recipe("sage-phoenix14t-released").pretrain.augment
    assert (settings.rotation, settings.rotation_share) == (30, 0.5)
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    picture = torch.stack([x, y, x])[None]
    corners = []
    for seed in range(200):
        seeds = torch.tensor([seed * 1_000_003])
        out = augment(picture, torch.tensor([0]), seeds, Augment(translate=settings.translate), 224)[0, :2]
        corners.append(out[:, 0, 0])
        torch.testing.assert_close(out - out[:, :1, :1], picture[0, :2, :224, :224], atol=2e-3, rtol=0)
    corners = torch.stack(corners)
    assert corners.min() >= -1e-3 and corners.max() <= 32.001
    assert (corners.mean(0) - 16).abs().max() < 2 and (corners.std(0) - 32 / 12**0.5).abs().max() < 1


def test_a_shift_moves_the_picture_and_a_rotation_turns_it():
    """A bright blob, its centre of mass before and after: distance from the middle kept by a rotation."""
    side = 65
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    blob = torch.exp(-((x - 44.0) ** 2 + (y - 32.0) ** 2) / 18).expand(1, 3, -1, -1)

    def centre(picture: torch.Tensor) -> torch.Tensor:
        mass = picture[0, 0]
        return torch.stack([(mass * x).sum(), (mass * y).sum()]) / mass.sum()

    moves, angles = [], []
    for seed in range(20):
        seeds = torch.tensor([seed * 1_000_003])
        moved = augment(blob, torch.tensor([0]), seeds, Augment(translate=0.15), side)
        moves.append(centre(moved) - centre(blob))
        turned = centre(augment(blob, torch.tensor([0]), seeds, Augment(rotation=30), side)) - 32
        assert turned.norm().item() == pytest.approx(12, abs=0.05)
        angles.append(torch.rad2deg(torch.atan2(turned[1], turned[0])).item())
    moves = torch.stack(moves)
    assert moves.abs().max() <= 0.15 * side + 0.05 and moves.abs().max() > 0.1 * side
    assert (moves > 0).any(0).all() and (moves < 0).any(0).all()
    assert max(map(abs, angles)) <= 30.2 and min(angles) < -15 and max(angles) > 15


def test_scale_changes_the_size_of_what_is_seen():
    side = 65
    y, x = torch.meshgrid(torch.arange(side) - 32.0, torch.arange(side) - 32.0, indexing="ij")
    blob = torch.exp(-(x**2 + y**2) / 50).expand(1, 3, -1, -1)
    for seed in (3, 4, 5, 6):
        out = augment(blob, torch.tensor([0]), torch.tensor([seed]), Augment(scale=0.3), side)[0, 0]
        grown = ((out * (x**2 + y**2)).sum() / out.sum() / 50).sqrt().item()  # deviation, before: 5 * sqrt(2)
        factor = 1 + 0.3 * (2 * uniform(torch.tensor([seed]), 1).item() - 1)
        assert grown == pytest.approx(factor, rel=0.02)


def test_colours():
    x, clip = frames(3), torch.tensor([0, 0, 1])
    seeds = torch.tensor([8, 9])
    bright = augment(x, clip, seeds, Augment(brightness=0.4), 24) / x
    assert (
        bright[:2].std() < 1e-6
        and abs(bright[0].mean() - 1) <= 0.4
        and abs(bright[2].mean() - bright[0].mean()) > 1e-3
    )
    contrast = augment(x, clip, seeds, Augment(contrast=0.4), 24)
    luma = lambda pictures: (pictures * LUMA).sum(1).mean((1, 2))  # noqa: E731
    torch.testing.assert_close(luma(contrast), luma(x), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(
        contrast[0].std() / x[0].std(), contrast[1].std() / x[1].std(), rtol=0.02, atol=0
    )
    saturation = augment(x, clip, seeds, Augment(saturation=0.4), 24)
    torch.testing.assert_close((saturation * LUMA).sum(1), (x * LUMA).sum(1), rtol=1e-5, atol=1e-3)
    assert (saturation - x).abs().max() > 1


def test_changes_commute_with_taking_a_background_away():
    """Geometry, brightness and saturation of a difference are the difference of the changed pictures."""
    x, background = frames(2), frames(1)
    settings = Augment(rotation=20, translate=0.1, scale=0.2, brightness=0.3, saturation=0.3, contrast=0.3)
    clip, seeds = torch.tensor([0, 0]), torch.tensor([4])
    together = augment(x - background, clip, seeds, settings, 20)
    apart = augment(x, clip, seeds, settings, 20) - augment(background, clip[:1], seeds, settings, 20)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-2)


def test_the_hash_is_splitmix64():
    """First outputs of SplitMix64 seeded with 1234567, as published with xoshiro's reference code."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    found = mix(torch.tensor([1234567]), torch.arange(3)).tolist()
    assert [value % 2**64 for value in found] == published
    assert mix(torch.tensor([1234567]), 2).item() == found[2]


def test_draws_are_uniform():
    values = uniform(torch.arange(20000), 3)
    assert values.min() >= 0 and values.max() < 1
    counts = torch.histc(values, 20, 0, 1)
    assert ((counts - 1000).abs() < 5 * 1000**0.5).all()
    assert abs(torch.corrcoef(torch.stack([values, uniform(torch.arange(20000), 4)]))[0, 1]) < 0.03


def test_mirroring_and_its_share():
    x = frames(1)
    one = torch.tensor([0])
    mirrored = augment(x, one, torch.tensor([3]), Augment(flip=1.0), 20)
    torch.testing.assert_close(mirrored, centre_crop(x, 20).flip(-1), atol=1e-3, rtol=0)
    seeds = torch.arange(400) * 7919
    out = augment(x.expand(400, -1, -1, -1), torch.arange(400), seeds, Augment(flip=0.25), 20)
    changed = (out - centre_crop(x, 20)).abs().amax((1, 2, 3)) > 1
    assert 0.18 < changed.float().mean() < 0.32


def test_a_resized_part_lies_inside_and_is_as_large_as_was_said():
    """Coordinates as colours: the part's corners can be read off what comes out."""
    side = 256
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    picture = torch.stack([x, y, torch.full_like(x, 100.0)])[None]
    seeds = torch.arange(200) * 104_729
    settings = Augment(crop=0.2, crop_ratio=0.1)
    out = augment(picture.expand(200, -1, -1, -1), torch.arange(200), seeds, settings, 64)
    torch.testing.assert_close(
        out[:, 2], torch.full_like(out[:, 2], 100.0), atol=1e-2, rtol=0
    )  # nothing from outside
    width, height = (
        (out[:, 0, 32, -1] - out[:, 0, 32, 0]) * 64 / 63,
        (out[:, 1, -1, 32] - out[:, 1, 0, 32]) * 64 / 63,
    )
    area, ratio = width * height / side**2, width / height
    assert area.min() > 0.79 and area.max() <= 1.001 and area.min() < 0.83 and area.max() > 0.97
    assert ratio.min() >= 0.89 and ratio.max() <= 1.11 and ratio.std() > 0.03
    middle = out[:, :2, 31:33, 31:33].mean((2, 3)) / side - 0.5
    assert middle.abs().max() < 0.08 and middle.std(0).min() > 0.01
    turned = augment(picture, torch.tensor([0]), torch.tensor([5]), Augment(crop=0.2, rotation=5), 64)
    assert (turned[0, 0, -1] - turned[0, 0, 0]).abs().min() > 1, (
        "x changes down the columns once it is rotated"
    )


def test_hue_keeps_luma_and_greys_and_its_share_is_of_clips():
    x = frames(1).expand(300, -1, -1, -1)
    seeds, clip = torch.arange(300) * 15_485_863, torch.arange(300)
    turned = augment(x, clip, seeds, Augment(hue=0.1), 24)
    torch.testing.assert_close((turned * LUMA).sum(1), (x * LUMA).sum(1), atol=0.2, rtol=0)
    assert (turned - x).abs().amax((1, 2, 3)).median() > 5
    grey = x.mean(1, keepdim=True).expand(-1, 3, -1, -1).contiguous()
    torch.testing.assert_close(augment(grey, clip, seeds, Augment(hue=0.1), 24), grey, atol=0.2, rtol=0)
    settings = Augment(hue=0.1, brightness=0.2, contrast=0.2, saturation=0.2, colour_share=0.3)
    changed = (augment(x, clip, seeds, settings, 24) - x).abs().amax((1, 2, 3)) > 0.5
    assert 0.22 < changed.float().mean() < 0.38
    pale = augment(x, clip, seeds, Augment(grey=0.2), 24)
    colourless = (pale.amax(1) - pale.amin(1)).amax((1, 2)) < 1e-2
    assert 0.13 < colourless.float().mean() < 0.27
    assert torch.equal(pale[~colourless], x[~colourless])


def test_only_a_share_of_the_clips_is_rotated():
    x, seeds = frames(1).expand(300, -1, -1, -1), torch.arange(300) * 32_452_843
    out = augment(x, torch.arange(300), seeds, Augment(rotation=5, rotation_share=0.3), 20)
    changed = (out - centre_crop(x, 20)).abs().amax((1, 2, 3)) > 1
    assert 0.22 < changed.float().mean() < 0.38 and not Augment(rotation_share=0.3).active


def test_a_step_in_bfloat16_sees_the_same_pictures():
    settings = Augment(rotation=20, crop=0.2, crop_ratio=0.1, flip=0.5, contrast=0.3, hue=0.2, saturation=0.3)
    x, clip, seeds = frames(6), torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([3, 1_000_003, 77])
    plain = augment(x, clip, seeds, settings, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(x, clip, seeds, settings, 20), plain)
