"""Draws one synthetic chest radiograph: anatomy, findings, then an exposure like any other's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_spark import phantom_anatomy as outlines
from cxr_spark.phantom_anatomy import SIDES, Anatomy, random_anatomy
from cxr_spark.phantom_bones import airways, bones, vessels
from cxr_spark.phantom_findings import FINDINGS
from cxr_spark.phantom_frame import FloatImage, Frame, curve, ellipse, oval, posed_frame, step
from cxr_spark.phantom_opacities import Chest

CANVAS = 512


class FindingBox(NamedTuple):
    """Where a finding is, as fractions of the image's side."""

    label: str
    x: float
    y: float
    width: float
    height: float


class Phantom(NamedTuple):
    """A drawn radiograph: uint8 (canvas, canvas) and the boxes of its findings."""

    pixels: NDArray[np.uint8]
    boxes: list[FindingBox]


def draw(findings: Sequence[str], seed: Sequence[int], canvas: int = CANVAS) -> Phantom:
    """Draw one radiograph.

    Args:
        findings: keys of phantom_findings.FINDINGS; several are drawn over each other.
        seed: integers >= 0; the same ones give the same picture, bit for bit, and with other
            findings the same patient on the same film.
        canvas: side in pixels.

    Raises:
        KeyError: a finding that nothing here can draw.
    """
    patient, disease, film = np.random.default_rng(list(seed)).spawn(3)
    frame = posed_frame(canvas, patient)
    anatomy = random_anatomy(patient)
    plan = [(label, disease.uniform(0.45, 1.0), int(disease.choice(SIDES))) for label in findings]
    for label, severity, side in plan:
        anatomy = FINDINGS[label].alter(anatomy, severity, side)
    chest = _chest(frame, anatomy)
    opacity, boxes = np.zeros((canvas, canvas), np.float32), []
    for label, severity, side in plan:
        filled = FINDINGS[label].paint(chest, severity, side, disease)
        opacity = np.maximum(opacity, filled)
        if FINDINGS[label].boxed:
            boxes.append(_box(label, chest, filled))
    image = _radiograph(chest, opacity, patient)
    return Phantom(_exposed(frame, image, film), boxes)


def _chest(frame: Frame, anatomy: Anatomy) -> Chest:
    masks = [frame.mask(outlines.lung(anatomy, side), 0.004) for side in SIDES]
    depths = [frame.depth(mask) for mask in masks]
    left = (frame.grid[0] > 0).astype(np.float32)
    return Chest(frame, anatomy, (masks[0], masks[1]), (depths[0], depths[1]), (1 - left, left))


def _box(label: str, chest: Chest, filled: FloatImage) -> FindingBox:
    """The bounds of what a finding filled, or of the heart where the heart is the finding."""
    frame = chest.frame
    if label == "Cardiomegaly":
        shown = frame.mask(outlines.heart(chest.anatomy)) > 0.5
    else:
        inside = filled * np.maximum(chest.lungs[0], chest.lungs[1])
        shown = inside > 0.5 * inside.max()
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    left, top = columns[0] / frame.size, rows[0] / frame.size
    width, height = (columns[-1] + 1) / frame.size - left, (rows[-1] + 1) / frame.size - top
    return FindingBox(label, left, top, width, height)


def _radiograph(chest: Chest, opacity: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Attenuation along each ray: soft tissue less the air that is left, plus vessels and bones."""
    frame, anatomy = chest.frame, chest.anatomy
    heart = frame.mask(outlines.heart(anatomy), 0.010)
    great_vessels = frame.mask(outlines.mediastinum(anatomy), 0.008)
    solid = 1 - (1 - 0.93 * heart) * (1 - 0.93 * great_vessels)
    depth = np.maximum(chest.depths[0], chest.depths[1])
    lungs = np.maximum(chest.lungs[0], chest.lungs[1])
    air = lungs * (0.45 + 0.55 * np.sqrt(np.clip(depth / 0.22, 0, 1)))
    air *= (1 - solid) * (1 - opacity) * _ventilation(chest, rng)
    image = _soft_tissue(frame, anatomy, rng)
    image -= anatomy.air * air
    shown = lungs * (1 - 0.85 * solid) * (1 - 0.8 * opacity)
    image += 0.07 * lungs * _hila(frame, anatomy, rng)
    image += shown * (vessels(frame, anatomy, rng) + 0.012 * frame.noise(rng, 60, 2))
    image -= 0.14 * airways(frame, anatomy)
    image += bones(frame, anatomy, rng)
    return image


def _ventilation(chest: Chest, rng: np.random.Generator) -> FloatImage:
    """How well the lungs are filled: unevenly, and one side a little better than the other."""
    uneven = 1 + 0.08 * chest.frame.noise(rng, 5)
    right, left = rng.uniform(0.88, 1.0, 2)
    return np.clip(uneven, 0.6, 1.3) * (right * chest.halves[0] + left * chest.halves[1])


def _hila(frame: Frame, anatomy: Anatomy, rng: np.random.Generator) -> FloatImage:
    """The soft shadow where vessels and bronchi enter each lung, the left one higher."""
    x, y = frame.grid
    total = np.zeros_like(x)
    for side, drop in zip(SIDES, (0.08, 0.02), strict=True):
        centre = (anatomy.shift + side * rng.uniform(0.12, 0.17), anatomy.heart_top + drop)
        radii = (rng.uniform(0.08, 0.12), rng.uniform(0.13, 0.19))
        total += np.exp(-(ellipse(x, y, centre, radii) ** 2))
    return total * (1 + 0.35 * frame.noise(rng, 24, 2))


def _soft_tissue(frame: Frame, anatomy: Anatomy, rng: np.random.Generator) -> FloatImage:
    """Trunk, arms, breasts and abdomen with its gas, without lungs."""
    y = frame.grid[1]
    trunk = frame.mask(outlines.torso(anatomy), 0.006)
    body = trunk
    for side in SIDES:
        body = np.maximum(body, 0.8 * frame.mask(outlines.arm(anatomy, side), 0.006))
    thickness = 1 - np.exp(-frame.depth(body) / 0.17)
    image = body * (0.26 + 0.46 * thickness)
    dome = float(np.mean(anatomy.domes))
    image += 0.10 * trunk * step(y - dome - 0.05, 0.3)
    if rng.random() < 0.5:
        for side in SIDES:
            image += rng.uniform(0.03, 0.12) * _breast(frame, anatomy, side, rng) * trunk
    image -= rng.uniform(0.10, 0.24) * _stomach(frame, anatomy, rng)
    return image


def _breast(frame: Frame, anatomy: Anatomy, side: int, rng: np.random.Generator) -> FloatImage:
    x, y = frame.grid
    low = anatomy.domes[0] + rng.uniform(-0.10, 0.10)
    away = (side * x - 0.47) / 0.34
    below = (y - low + 0.24) / 0.26
    below = np.where(below > 0, below, 0.45 * below)
    return step(1 - ellipse(away, below, (0.0, 0.0), (1.0, 1.0)), 0.12)


def _stomach(frame: Frame, anatomy: Anatomy, rng: np.random.Generator) -> FloatImage:
    """The gas bubble under the left dome, level below, and some gas in the bowel beside it."""
    x, y = frame.grid
    top = anatomy.domes[1] + 0.05
    centre = rng.uniform(0.28, 0.46)
    width, height = rng.uniform(0.09, 0.18), rng.uniform(0.06, 0.13)
    bubble = step(1 - ellipse(x, y, (centre, top + height), (width, height)), 0.25)
    bubble *= step(top + rng.uniform(0.8, 1.5) * height - y, 0.03)
    loops = step(frame.noise(rng, 9, 2) - 1.6, 0.5) * step(y - top - 0.16, 0.05)
    return np.maximum(bubble, 0.6 * loops)


def _exposed(frame: Frame, image: FloatImage, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Film, exposure, letters and leads, in the same way for every disease and source."""
    image = image + 0.10 * frame.noise(rng, 5)
    image = 0.5 + rng.uniform(0.80, 1.15) * (image - 0.5)
    image = np.clip(image, 0, 1.2) / 1.2
    image = image ** rng.uniform(0.75, 1.25)
    image = _equalised(image, rng)
    _leads(frame, image, rng)
    _letters(frame, image, rng)
    image += rng.uniform(0.006, 0.016) * rng.standard_normal(image.shape, np.float32)
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _equalised(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Bring the mean of the inner region to a value that no disease influences, edges faded."""
    size = len(image)
    ramp = np.clip(
        np.minimum(np.arange(size) + 0.5, size - np.arange(size) - 0.5) / size / 0.16, 0, 1
    )
    fade = (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)
    window = np.outer(fade, fade)
    mean = float((image * window).sum() / window.sum())
    target = 0.52 + 0.03 * float(rng.standard_normal())
    return image + (target - mean) * window * float(window.sum() / (window * window).sum())


def _leads(frame: Frame, image: FloatImage, rng: np.random.Generator) -> None:
    """Now and then an electrode or two with its cable."""
    for _ in range(rng.choice([0, 1, 2, 3], p=[0.5, 0.2, 0.2, 0.1])):
        layer = frame.layer()
        start = rng.uniform([-0.6, -0.6], [0.6, 0.3])
        end = np.array([rng.choice([-1.3, 1.3]), rng.uniform(-0.4, 1.0)])
        cable = curve(
            [
                start,
                start + rng.normal(0, 0.15, 2) + [0, 0.2],
                (start + end) / 2 + rng.normal(0, 0.2, 2),
                end,
            ]
        )
        frame.stroke(layer, cable, 0.009, 150)
        frame.fill(layer, oval((start[0], start[1]), (0.022, 0.022)), 210)
        image += 0.30 * frame.soften(layer, 0.002)


def _letters(frame: Frame, image: FloatImage, rng: np.random.Generator) -> None:
    """The side marker, and sometimes a word, in an upper corner."""
    side = rng.choice(SIDES)
    layer, size = frame.layer(), frame.size
    place = (
        int(size * (0.5 + side * rng.uniform(0.38, 0.44))),
        int(size * rng.uniform(0.06, 0.16)),
    )
    cv2.putText(
        layer,
        "L" if side > 0 else "R",
        place,
        cv2.FONT_HERSHEY_DUPLEX,
        size / 512 * rng.uniform(0.7, 1.1),
        (255,),
        max(1, size // 256),
        cv2.LINE_AA,
    )
    if rng.random() < 0.25:
        word = str(rng.choice(["PORTABLE", "MOBILE", "ERECT", "SUPINE"]))
        start = (int(size * (0.06 if side > 0 else 0.74)), int(size * 0.06))
        cv2.putText(
            layer, word, start, cv2.FONT_HERSHEY_SIMPLEX, size / 512 * 0.45, (230,), 1, cv2.LINE_AA
        )
    np.maximum(image, rng.uniform(0.80, 0.97) * layer.astype(np.float32) / 255, out=image)
