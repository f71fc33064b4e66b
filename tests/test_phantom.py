"""Drawn radiographs: the same for a seed, with each disease where it shows, and no shortcuts."""

import multiprocessing

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from cxr_spark import phantom
from cxr_spark.augment import augment
from cxr_spark.labels import CLASSES
from cxr_spark.learner import make_optimizer
from cxr_spark.models import build_model, standardise
from cxr_spark.phantom_anatomy import random_anatomy
from cxr_spark.phantom_findings import FINDINGS
from cxr_spark.schedule import learning_rate_share
from cxr_spark.train_options import TrainOptions
from tests.shortcuts import border, brightness, cross_entropy, draw_at_96, linear_cce, thumbnails

CANVAS = 128


def drawn(finding: str, seed: int, canvas: int = CANVAS) -> NDArray[np.float32]:
    return phantom.draw([finding], [seed], canvas).pixels.astype(np.float32) / 255


def change(finding: str, seed: int) -> NDArray[np.float32]:
    """What a finding adds to the same patient's clear radiograph; its overall shift is removed."""
    difference = drawn(finding, seed) - drawn("No Finding", seed)
    return cv2.GaussianBlur(difference - np.median(difference), (0, 0), 2)


def test_a_seed_gives_the_same_picture_bit_for_bit_and_another_seed_another() -> None:
    one = phantom.draw(["Pneumonia"], [3, 14], CANVAS)
    again = phantom.draw(["Pneumonia"], [3, 14], CANVAS)
    other = phantom.draw(["Pneumonia"], [3, 15], CANVAS)
    assert np.array_equal(one.pixels, again.pixels) and one.boxes == again.boxes
    assert one.pixels.dtype == np.uint8 and one.pixels.shape == (CANVAS, CANVAS)
    assert np.abs(one.pixels.astype(int) - other.pixels).mean() > 5


def test_every_class_can_be_drawn_and_nothing_else() -> None:
    assert set(CLASSES) <= FINDINGS.keys()
    with pytest.raises(KeyError):
        phantom.draw(["Fibrosis of the moon"], [0], CANVAS)


@pytest.mark.parametrize("severity", [0.45, 1.0])
def test_an_enlarged_heart_is_wider_than_half_the_chest_and_a_healthy_one_is_not(
    severity: float,
) -> None:
    for seed in range(20):
        anatomy = random_anatomy(np.random.default_rng(seed))
        enlarged = FINDINGS["Cardiomegaly"].alter(anatomy, severity, 1)
        assert sum(anatomy.heart) / (2 * anatomy.half_width) < 0.5
        assert sum(enlarged.heart) / (2 * enlarged.half_width) > 0.53


def test_emphysema_flattens_and_lowers_the_diaphragm_and_narrows_the_heart() -> None:
    for seed in range(20):
        anatomy = random_anatomy(np.random.default_rng(seed))
        trapped = FINDINGS["Emphysema"].alter(anatomy, 0.8, -1)
        assert min(np.subtract(trapped.domes, anatomy.domes)) > 0.05
        assert max(np.divide(trapped.dome_height, anatomy.dome_height)) < 0.5
        assert sum(trapped.heart) < sum(anatomy.heart)


def test_atelectasis_raises_the_dome_and_pulls_the_mediastinum_to_its_side() -> None:
    anatomy = random_anatomy(np.random.default_rng(0))
    right = FINDINGS["Atelectasis"].alter(anatomy, 0.8, -1)
    left = FINDINGS["Atelectasis"].alter(anatomy, 0.8, 1)
    assert right.domes[0] < anatomy.domes[0] and right.domes[1] == anatomy.domes[1]
    assert left.domes[1] < anatomy.domes[1] and left.domes[0] == anatomy.domes[0]
    assert right.shift < anatomy.shift < left.shift


@pytest.mark.parametrize(
    ("finding", "rows", "sides"),
    [
        ("Effusion", (0.55, 0.95), 1),
        ("Tuberculosis", (0.10, 0.50), 1),
        ("Pneumonia", (0.20, 0.80), 1),
        ("Covid", (0.35, 0.85), 2),
        ("Edema", (0.30, 0.75), 2),
    ],
)
def test_a_finding_brightens_the_lungs_where_its_disease_shows(
    finding: str, rows: tuple[float, float], sides: int
) -> None:
    for seed in range(8):
        added = change(finding, seed)
        centre = CANVAS // 2
        weights = [np.clip(half, 0, None) for half in (added[:, :centre], added[:, centre:])]
        strengths = sorted(float(weight.max()) for weight in weights)
        at = np.average(np.arange(CANVAS) / CANVAS, weights=sum(w.sum(axis=1) for w in weights))
        assert strengths[1] > 0.05, f"seed {seed}: nothing to see"
        assert (strengths[0] > 0.4 * strengths[1]) or sides == 1, f"seed {seed}: one side only"
        assert rows[0] < at < rows[1], f"seed {seed}: at {at:.2f}"


@pytest.mark.parametrize("finding", ["Effusion", "Pneumonia", "Mass", "Nodule"])
def test_a_box_encloses_what_was_added(finding: str) -> None:
    for seed in range(6):
        added = np.abs(change(finding, seed))
        (box,) = phantom.draw([finding], [seed], CANVAS).boxes
        x, y, width, height = (round(CANVAS * part) for part in box[1:])
        assert box.label == finding and 0 <= x < x + width <= CANVAS
        assert 0 <= y < y + height <= CANVAS
        inside = added[y : y + height, x : x + width]
        assert inside.mean() > 2 * added.mean()


def test_several_findings_are_drawn_over_each_other_each_with_its_box() -> None:
    both = phantom.draw(["Cardiomegaly", "Effusion"], [5], CANVAS)
    assert [box.label for box in both.boxes] == ["Cardiomegaly", "Effusion"]


def test_pictures_of_different_seeds_are_no_near_duplicates() -> None:
    hashes = []
    for seed in range(60):
        small = cv2.resize(drawn("No Finding", seed), (9, 8), interpolation=cv2.INTER_AREA)
        hashes.append((small[:, 1:] > small[:, :-1]).ravel())
    apart = np.not_equal(np.array(hashes)[:, None], hashes).sum(axis=2)
    assert apart[np.triu_indices(60, 1)].min() >= 1


@pytest.mark.long
def test_neither_thumbnails_nor_borders_nor_brightness_give_the_class_away_to_a_linear_model() -> (
    None
):
    per_class, in_train = 60, 36
    images = np.array(
        [
            phantom.draw([label], [7, number], 96).pixels
            for number in range(per_class)
            for label in CLASSES
        ]
    )
    labels = np.tile(np.arange(len(CLASSES)), per_class)
    cut = in_train * len(CLASSES)
    # 1.9 of ln 9 = 2.2 nats; without the smooth field over the film it's 1.2.
    assert linear_cce(thumbnails(images), labels, cut) > 1.5
    assert linear_cce(border(images), labels, cut) > 2.1
    assert linear_cce(brightness(images), labels, cut) > 2.1


@pytest.mark.long
def test_a_small_cnn_sees_what_linear_models_on_thumbnails_and_borders_do_not() -> None:
    in_train, in_test = 90, 30
    plan = [(label, number) for number in range(in_train + in_test) for label in CLASSES]
    with multiprocessing.get_context("spawn").Pool() as pool:
        images = np.array(pool.starmap(draw_at_96, plan, chunksize=18))
    labels = np.array([CLASSES.index(label) for label, _ in plan])
    cut = in_train * len(CLASSES)
    cnn = cross_entropy(cnn_probabilities(images[:cut], labels[:cut], images[cut:]), labels[cut:])
    assert 0.05 < cnn < 0.6, "learnable, but not at a glance"
    assert linear_cce(thumbnails(images), labels, cut) > max(1.2, cnn + 0.5)
    assert linear_cce(border(images), labels, cut) > max(2.1, cnn + 0.5)
    assert linear_cce(brightness(images), labels, cut) > max(2.1, cnn + 0.5)


def cnn_probabilities(
    train: NDArray[np.uint8], labels: NDArray[np.int64], test: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """What a resnet18 says of the test images after it has seen some 11,000 training images."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    mean, std = float(train.mean() / 255), float(train.std() / 255)
    inputs, tests = (
        standardise(torch.from_numpy(images)[:, None], mean, std) for images in (train, test)
    )
    model = build_model("resnet18").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(model, TrainOptions(learning_rate=2e-3))
    steps = 11_000 // 32
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_share(step / steps, warm_up=0.08)
    )
    order = torch.cat([torch.randperm(len(train), generator=generator) for _ in range(14)])
    for rows in order[: 32 * steps].split(32):
        batch = augment(inputs[rows], generator).contiguous(memory_format=torch.channels_last)
        loss = functional.cross_entropy(
            model(batch), torch.from_numpy(labels)[rows], label_smoothing=0.05
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(batch) for batch in tests.split(64)])
    return logits.double().softmax(dim=1).numpy()
