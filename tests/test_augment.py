"""Augmentation moves and brightens within its bounds, and is the same for the same seed."""

import pytest
import torch

from cxr_spark import augment as module
from cxr_spark.augment import augment


def random_state(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spot_positions(images: torch.Tensor) -> torch.Tensor:
    """Centre of mass of each image, (B, 2) as (x, y) in shares of the side."""
    weights = images.squeeze(1) / images.sum(dim=(1, 2, 3)).view(-1, 1, 1)
    places = (torch.arange(images.shape[-1]) + 0.5) / images.shape[-1]
    return torch.stack([weights.sum(1) @ places, weights.sum(2) @ places], dim=1)


def off_centre_spots(count: int) -> torch.Tensor:
    images = torch.zeros(count, 1, 100, 100)
    images[:, :, 48:52, 73:77] = 1.0
    return images


def only(monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    for name in ("ROTATION_DEGREES", "SCALE", "SHIFT", "GAIN", "OFFSET"):
        if name != kept:
            monkeypatch.setattr(module, name, 0.0)


def test_the_same_seed_gives_the_same_images_and_another_gives_others() -> None:
    images = torch.rand(4, 1, 16, 16)
    first = augment(images, random_state(1))
    assert torch.equal(first, augment(images, random_state(1)))
    assert not torch.equal(first, augment(images, random_state(2)))
    assert first.shape == images.shape and first.dtype == torch.float32


def test_without_any_change_an_image_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "none")
    images = torch.rand(4, 1, 16, 16)
    torch.testing.assert_close(augment(images, random_state()), images)


def test_images_are_shifted_by_up_to_six_hundredths(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "SHIFT")
    moved = spot_positions(augment(off_centre_spots(200), random_state())) - torch.tensor(
        [0.75, 0.5]
    )
    assert 0.055 < moved.abs().max() < 0.061
    assert moved.mean(0).abs().max() < 0.01


def test_images_are_turned_by_up_to_four_degrees(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "ROTATION_DEGREES")
    x, y = (spot_positions(augment(off_centre_spots(200), random_state())) - 0.5).T
    degrees = torch.rad2deg(torch.atan2(y, x))
    torch.testing.assert_close(torch.hypot(x, y), torch.full((200,), 0.25), atol=2e-3, rtol=0)
    assert 3.8 < degrees.abs().max() < 4.1
    assert degrees.mean().abs() < 0.5


def test_images_are_scaled_by_up_to_six_hundredths(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "SCALE")
    x = spot_positions(augment(off_centre_spots(200), random_state()))[:, 0] - 0.5
    assert 0.25 / 1.061 - 1e-3 < x.min() < 0.25 / 1.05
    assert 0.25 / 0.95 < x.max() < 0.25 / 0.939 + 1e-3


def test_half_of_the_images_are_mirrored_where_that_is_asked_for() -> None:
    spots = off_centre_spots(200)
    plain, mirrored = (augment(spots, random_state(), flip=flip) for flip in (False, True))
    is_plain = torch.isclose(plain, mirrored, atol=1e-4).flatten(1).all(1)
    turned = spot_positions(mirrored.clamp(min=0) - mirrored.amin(dim=(1, 2, 3), keepdim=True))
    assert (turned[is_plain, 0] > 0.5).all() and (turned[~is_plain, 0] < 0.5).all()
    assert 70 < is_plain.sum() < 130


def test_each_image_has_its_own_gain_and_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROTATION_DEGREES", "SCALE", "SHIFT"):
        monkeypatch.setattr(module, name, 0.0)
    changed = augment(
        torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(200, 1, 2, 2), random_state()
    )
    offset = changed[:, 0, 0, 0]
    gain = changed[:, 0, 0, 1] - offset
    assert 0.095 < offset.abs().max() <= 0.1001
    assert 0.145 < (gain - 1).abs().max() <= 0.1501
    assert len(set(gain.tolist())) == 200


def test_what_comes_in_at_the_edge_continues_it() -> None:
    flat = torch.full((8, 1, 32, 32), 2.0)
    for image in augment(flat, random_state()):
        assert image.max() - image.min() < 1e-4
