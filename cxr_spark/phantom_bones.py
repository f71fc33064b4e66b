"""Bones, vessels and airways of a phantom: what is added to or taken from its soft tissue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cxr_spark.phantom_anatomy import SIDES, Anatomy, spine_x, wall_x
from cxr_spark.phantom_frame import FloatImage, Frame, Layer, curve, oval, ribbon, step

RIBS = 10


def bones(frame: Frame, anatomy: Anatomy, rng: np.random.Generator) -> FloatImage:
    """Ribs, spine, clavicles, scapulae and humeri as brightness to add, float32 (size, size)."""
    posterior, anterior, shoulder = frame.layer(), frame.layer(), frame.layer()
    for side in SIDES:
        tilt = rng.uniform(-0.02, 0.02)
        for number in range(RIBS):
            _rib(frame, anatomy, side, number, tilt, (posterior, anterior), rng)
        _scapula(frame, anatomy, side, shoulder, rng)
        _humerus(frame, anatomy, side, shoulder)
    clavicles = frame.layer()
    for side in SIDES:
        _clavicle(frame, anatomy, side, clavicles, rng)
    x, y = frame.grid
    medial = 0.35 + 0.65 * step(np.abs(x - anatomy.shift) - 0.16, 0.2)
    above = 0.25 + 0.75 * step(float(np.mean(anatomy.domes)) + 0.04 - y, 0.12)
    total = (
        0.19 * frame.soften(posterior, 0.006) * medial * above
        + 0.12 * frame.soften(anterior, 0.009) * above
        + 0.20 * frame.soften(clavicles, 0.006)
        + 0.13 * frame.soften(shoulder, 0.008)
        + 0.13 * frame.soften(_spine(frame, anatomy, rng), 0.006)
    )
    return anatomy.bones * total


def _rib(
    frame: Frame,
    anatomy: Anatomy,
    side: int,
    number: int,
    tilt: float,
    layers: tuple[Layer, Layer],
    rng: np.random.Generator,
) -> None:
    """The posterior arc from the spine to the wall and the anterior arc back to mid-lung."""
    posterior, anterior = layers
    spacing = anatomy.length / 8.6
    start = anatomy.apex + (number + 0.05) * spacing + rng.uniform(-0.006, 0.006)
    slope = anatomy.rib_slope * (0.5 + 0.12 * number) + tilt
    end = start + slope + 0.04
    reach = float(wall_x(anatomy, side, end)) + 0.012
    t = np.linspace(0, 1, 24)
    x = 0.05 + (reach - 0.05) * np.sin(t * np.pi / 2) ** 0.9
    y = start + slope * t**2 - 0.055 * np.sin(np.pi * t**0.9) + 0.04 * t**6
    middle = np.stack([side * x + spine_x(anatomy, start), y], axis=1)
    level = rng.uniform(0.85, 1.0) * (1.0 if number < 8 else 0.7)
    _bone(frame, posterior, middle, np.linspace(0.030, 0.044, 24), 120 * level, 215 * level)
    if 0 < number < 7:
        drop = 0.16 + 0.035 * number
        stop = 0.30 + 0.02 * number + rng.uniform(-0.03, 0.03)
        x = stop + (reach - stop) * np.cos(t * np.pi / 2) ** 0.8
        y = end + drop * t**1.25
        middle = np.stack([side * x, y], axis=1)
        _bone(frame, anterior, middle, np.linspace(0.042, 0.058, 24), 110 * level, 190 * level)


def _bone(
    frame: Frame,
    layer: Layer,
    middle: NDArray[np.float64],
    widths: NDArray[np.float64] | float,
    marrow: float,
    cortex: float,
) -> None:
    """A band with denser edges, the lower one the denser."""
    upper, lower = ribbon(middle, widths)
    frame.fill(layer, np.vstack([upper, lower[::-1]]), marrow)
    frame.stroke(layer, lower, 0.008, cortex)
    frame.stroke(layer, upper, 0.006, 0.5 * (cortex + marrow))


def _clavicle(
    frame: Frame, anatomy: Anatomy, side: int, layer: Layer, rng: np.random.Generator
) -> None:
    top = anatomy.apex
    lift = rng.uniform(-0.06, 0.04)
    middle = curve(
        [
            (side * 0.075, top + 0.17),
            (side * 0.22, top + 0.11),
            (side * 0.42, top + 0.03 + 0.5 * lift),
            (side * 0.60, top - 0.02 + lift),
            (side * 0.76, top + lift),
        ]
    )
    widths = np.interp(
        np.linspace(0, 1, len(middle)), [0, 0.15, 0.6, 1], [0.075, 0.05, 0.045, 0.06]
    )
    _bone(frame, layer, middle, widths, 125, 205)


def _scapula(
    frame: Frame, anatomy: Anatomy, side: int, layer: Layer, rng: np.random.Generator
) -> None:
    """The blade beside the upper chest wall; its lateral border and spine show most."""
    top, inward = anatomy.apex, rng.uniform(-0.04, 0.05)
    tip = (0.70 - inward, top + 0.74)
    blade = curve(
        [
            (0.80 - inward, top + 0.14),
            (0.66 - inward, top + 0.22),
            (0.60 - inward, top + 0.46),
            tip,
            (0.78 - inward, top + 0.60),
            (0.86 - inward, top + 0.34),
            (0.90 - inward, top + 0.22),
        ]
    )
    frame.fill(layer, blade * [side, 1], 50)
    lateral = curve(
        [
            tip,
            (0.785 - inward, top + 0.58),
            (0.865 - inward, top + 0.34),
            (0.90 - inward, top + 0.24),
        ]
    )
    frame.stroke(layer, lateral * [side, 1], 0.026, 135)
    medial = curve([(0.655 - inward, top + 0.22), (0.60 - inward, top + 0.46), tip])
    frame.stroke(layer, medial * [side, 1], 0.008, 110)
    ridge = curve([(0.64 - inward, top + 0.22), (0.78 - inward, top + 0.10), (0.90, top + 0.02)])
    frame.stroke(layer, ridge * [side, 1], 0.035, 120)


def _humerus(frame: Frame, anatomy: Anatomy, side: int, layer: Layer) -> None:
    top = anatomy.apex
    frame.fill(layer, oval((side * 0.985, top + 0.17), (0.085, 0.09)), 170)
    shaft = curve(
        [
            (side * 1.0, top + 0.2),
            (side * 1.06, anatomy.axilla),
            (side * 1.17, anatomy.axilla + 0.5),
            (side * 1.3, 1.4),
        ]
    )
    _bone(frame, layer, shaft, 0.10, 140, 230)


def _spine(frame: Frame, anatomy: Anatomy, rng: np.random.Generator) -> Layer:
    """Vertebrae of growing size, no two alike, with endplates, pedicles and spinous processes."""
    layer = frame.layer()
    y = anatomy.apex - 0.55
    while y < 1.3:
        grown = float(np.clip((y + 1.1) / 2, 0, 1))
        height = 0.082 + 0.045 * grown + rng.uniform(-0.004, 0.004)
        half = 0.060 + 0.035 * grown + rng.uniform(-0.003, 0.003)
        x = float(spine_x(anatomy, y)) + rng.uniform(-0.004, 0.004)
        level = rng.uniform(0.75, 1.0) * float(
            np.interp(y, [-0.4, 0.0, 0.4, 0.8], [1, 0.7, 0.6, 0.85])
        )
        top, low, waist = y + 0.008, y + height - 0.008, 0.9 * half
        body = curve(
            [
                (x - half, top),
                (x, top + 0.004),
                (x + half, top),
                (x + waist, (top + low) / 2),
                (x + half, low),
                (x, low - 0.004),
                (x - half, low),
                (x - waist, (top + low) / 2),
                (x - half, top),
            ],
            4,
        )
        frame.fill(layer, body, 120 * level)
        frame.stroke(layer, body, 0.007, 165 * level)
        for side in SIDES:
            pedicle = (x + side * 0.62 * half, top + 0.33 * height)
            frame.fill(layer, oval(pedicle, (0.013, 0.02)), 200 * level)
        process = (x + rng.uniform(-0.008, 0.008), low - 0.01)
        frame.fill(layer, oval(process, (0.011, 0.028)), 215 * level)
        y += height
    return layer


def vessels(frame: Frame, anatomy: Anatomy, rng: np.random.Generator) -> FloatImage:
    """The branching lung vessels as brightness to add where there is air, float32 (size, size)."""
    layer = frame.layer()
    roots, headings, sides = [], [], np.repeat(SIDES, 8)
    for side, drop in zip(SIDES, (0.06, 0.01), strict=True):
        hilum = np.array([anatomy.shift + side * 0.135, anatomy.heart_top + drop])
        roots.append(hilum + rng.normal(0, 0.028, (8, 2)))
        headings.append(np.linspace(-1.35, 1.50, 8) + rng.normal(0, 0.12, 8))
    levels = _branches(np.vstack(roots), np.hstack(headings), sides, rng)
    for level, lines in reversed(list(enumerate(levels))):
        frame.strokes(layer, lines, 0.023 * 0.68**level, 200 * 0.82**level)
    strength = 0.25 * anatomy.vessels * np.clip(0.8 + 0.35 * frame.noise(rng, 9), 0.2, 1.4)
    return strength * frame.soften(layer, 0.0035)


def _branches(
    starts: NDArray[np.float64],
    headings: NDArray[np.float64],
    sides: NDArray[np.int64],
    rng: np.random.Generator,
) -> list[NDArray[np.float64]]:
    """Vessels and what they divide into: lines (n, 4, 2) level by level, the thickest first.

    Args:
        starts: where each vessel begins, (n, 2).
        headings: radians below the horizontal, away from the midline, (n,).
        sides: the side of each, (n,).
    """
    levels = []
    for level in range(6):
        count = len(starts)
        length = 0.05 * 0.86**level * rng.uniform(0.5, 1.3, (count, 1))
        bend = headings[:, None] + rng.normal(0, 0.14, (count, 3))
        x = starts[:, :1] + np.cumsum(length * np.cos(bend) * sides[:, None], axis=1)
        y = starts[:, 1:] + np.cumsum(length * np.sin(bend), axis=1)
        levels.append(
            np.stack([np.hstack([starts[:, :1], x]), np.hstack([starts[:, 1:], y])], axis=2)
        )
        fork = rng.uniform(0.15, 0.60, count) * rng.choice(SIDES, count)
        divides = rng.random(count) < 0.75
        keep = np.concatenate([np.arange(count), np.flatnonzero(divides)])
        turns = np.concatenate([-0.4 * fork, fork[divides]])
        starts, sides = levels[-1][keep, -1], sides[keep]
        headings = bend[keep, -1] + turns
    return levels


def airways(frame: Frame, anatomy: Anatomy) -> FloatImage:
    """Trachea and main bronchi as darkness to take, float32 (size, size) in 0-1."""
    layer = frame.layer()
    carina = (anatomy.shift, anatomy.heart_top - 0.09)
    trachea = curve(
        [
            (0.0, -1.6),
            (0.1 * anatomy.shift, anatomy.apex),
            (0.8 * anatomy.shift - 0.01, carina[1] - 0.15),
            carina,
        ]
    )
    frame.stroke(layer, trachea, 0.085, 230)
    for side, drop in ((-1, 0.16), (1, 0.11)):
        bronchus = curve(
            [
                carina,
                (carina[0] + side * 0.07, carina[1] + 0.5 * drop),
                (carina[0] + side * 0.16, carina[1] + drop),
            ]
        )
        frame.stroke(layer, bronchus, 0.05, 170)
    return frame.soften(layer, 0.012)
