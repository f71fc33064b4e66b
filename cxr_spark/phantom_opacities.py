"""The air that each disease fills in a phantom's lungs, as opacity in 0-1 over the canvas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr_spark.phantom_anatomy import SIDES, Anatomy, wall_x
from cxr_spark.phantom_frame import FloatImage, Frame, curve, ellipse, ribbon, step


@dataclass(frozen=True)
class Chest:
    """A patient on a frame; the pairs are (patient's right, patient's left), float32 (size, size).

    Attributes:
        lungs: masks in 0-1.
        depths: distance from the lung's border, in anatomy units.
        halves: 1 on one side of the midline, 0 on the other.
    """

    frame: Frame
    anatomy: Anatomy
    lungs: tuple[FloatImage, FloatImage]
    depths: tuple[FloatImage, FloatImage]
    halves: tuple[FloatImage, FloatImage]


def clear(chest: Chest, severity: float, side: int, rng: np.random.Generator) -> FloatImage:
    """Nothing: the finding shows in the anatomy alone, or there is none."""
    return np.zeros_like(chest.lungs[0])


def effusion(chest: Chest, severity: float, side: int, rng: np.random.Generator) -> FloatImage:
    """Fluid at the base, its upper border a meniscus that climbs along the wall."""
    x, y = chest.frame.grid
    anatomy, index = chest.anatomy, SIDES.index(side)
    base = anatomy.domes[index] + anatomy.dome_height[index]
    level = base - 0.10 - 0.36 * severity
    across = np.clip(np.abs(x) / anatomy.half_width, 0, 1.1)
    surface = level + 0.10 - (0.10 + 0.22 * severity) * across**4
    surface += 0.012 * chest.frame.noise(rng, 6)
    return chest.halves[index] * 0.96 * step(y - surface, 0.09)


def atelectasis(chest: Chest, severity: float, side: int, rng: np.random.Generator) -> FloatImage:
    """Collapsed lung: plates above the base, a wedge behind the heart, or a folded upper lobe."""
    kind = rng.choice(["plates", "lower", "upper"])
    index = SIDES.index(side)
    if kind == "plates":
        opacity = _plates(chest, severity, side, rng)
    else:
        opacity = _wedge(chest, kind, side) * (0.60 + 0.35 * severity)
        opacity = np.maximum(opacity, 0.8 * _plates(chest, 0.5 * severity, side, rng))
    texture = 1 + 0.10 * chest.frame.noise(rng, 10, 2)
    return chest.halves[index] * np.clip(opacity * texture, 0, 0.97)


def _plates(chest: Chest, severity: float, side: int, rng: np.random.Generator) -> FloatImage:
    """Linear bands, nearly level, a little above the dome."""
    layer = chest.frame.layer()
    dome = chest.anatomy.domes[SIDES.index(side)]
    for number in range(rng.integers(2, 5)):
        y = dome - 0.06 - 0.08 * number + rng.uniform(-0.025, 0.025)
        start, reach = rng.uniform(0.18, 0.34), rng.uniform(0.22, 0.42)
        slope, sag = rng.uniform(-0.06, 0.10), rng.uniform(-0.02, 0.01)
        line = curve(
            [
                (side * start, y),
                (side * (start + reach / 2), y + slope / 2 + sag),
                (side * (start + reach), y + slope),
            ]
        )
        thick = (0.020 + 0.018 * severity) * rng.uniform(0.5, 1.2)
        taper = thick * np.sin(np.linspace(0.15, np.pi - 0.15, len(line))) ** 0.7
        upper, lower = ribbon(line, taper)
        chest.frame.fill(layer, np.vstack([upper, lower[::-1]]), rng.uniform(170, 255))
    return (0.5 + 0.4 * severity) * chest.frame.soften(layer, 0.007)


def _wedge(chest: Chest, kind: str, side: int) -> FloatImage:
    """A collapsed lobe: a triangle at the base beside the spine, or at the apex."""
    anatomy = chest.anatomy
    dome, top = anatomy.domes[SIDES.index(side)], anatomy.apex
    hilum = (side * 0.10, anatomy.heart_top + 0.05)
    if kind == "lower":
        corners = [
            hilum,
            (side * 0.22, 0.5 * (hilum[1] + dome)),
            (side * 0.50, dome + 0.02),
            (side * 0.48, dome + 0.2),
            (0.0, dome + 0.2),
            (0.0, hilum[1]),
        ]
    else:
        edge = float(wall_x(anatomy, side, top + 0.22))
        corners = [
            hilum,
            (side * 0.26, top + 0.32),
            (side * edge * 1.02, top + 0.20),
            (side * edge, top - 0.1),
            (0.0, top - 0.1),
            (0.0, hilum[1]),
        ]
    return chest.frame.mask(corners, 0.012)


def edema(chest: Chest, severity: float, side: int, rng: np.random.Generator) -> FloatImage:
    """Bat-wing haze around both hila, and short level lines at the lateral bases (Kerley B)."""
    x, y = chest.frame.grid
    anatomy, total = chest.anatomy, np.zeros_like(chest.lungs[0])
    texture = chest.frame.noise(rng, 9, 3)
    for index, each in enumerate(SIDES):
        centre = (anatomy.shift + each * rng.uniform(0.23, 0.29), anatomy.heart_top + 0.11)
        haze = np.exp(-(ellipse(x, y, centre, (0.27, 0.34)) ** 2.6)) * (0.80 + 0.36 * texture)
        rim = step(chest.depths[index] - 0.07, 0.06)
        lines = _kerley(chest, severity, each, rng)
        total += chest.halves[index] * np.maximum((0.30 + 0.38 * severity) * haze * rim, lines)
    return np.clip(total, 0, 0.93)


def _kerley(chest: Chest, severity: float, side: int, rng: np.random.Generator) -> FloatImage:
    layer = chest.frame.layer()
    dome = chest.anatomy.domes[SIDES.index(side)]
    for y in np.arange(dome - 0.22, dome + 0.12, 0.030) + rng.uniform(-0.012, 0.012, 12):
        edge = float(wall_x(chest.anatomy, side, y)) - 0.01
        line = [(side * edge, y), (side * (edge - rng.uniform(0.05, 0.10)), y + 0.008)]
        chest.frame.stroke(layer, line, 0.007, 255)
    return (0.15 + 0.25 * severity) * chest.frame.soften(layer, 0.003)


def pneumonia(chest: Chest, severity: float, side: int, rng: np.random.Generator) -> FloatImage:
    """One lobe's consolidation, sharp along a fissure, open airways running through it."""
    x, y = chest.frame.grid
    anatomy, index = chest.anatomy, SIDES.index(side)
    height = rng.uniform(0.34, 0.80)
    centre_y = anatomy.apex + height * (anatomy.domes[index] - anatomy.apex)
    centre_x = side * rng.uniform(0.36, 0.58) * float(wall_x(anatomy, side, centre_y))
    across, down = rng.uniform(0.22, 0.30), rng.uniform(0.18, 0.26)
    size = 0.8 + 0.3 * severity
    reach = ellipse(x, y, (centre_x, centre_y), (size * across, size * down))
    blob = step(1 - reach + 0.22 * chest.frame.noise(rng, 7, 3), 0.55)
    fissure = rng.choice([-1, 1]) * (y - centre_y - 0.18 * side * (x - centre_x)) + 0.55 * down
    blob *= 0.12 + 0.88 * step(fissure, 0.02)
    opacity = (0.64 + 0.30 * severity) * blob * (1 + 0.08 * chest.frame.noise(rng, 24, 2))
    root = np.array([anatomy.shift + side * 0.16, anatomy.heart_top + 0.06])
    air = _bronchogram(chest, root, np.array([centre_x, centre_y]), rng)
    return chest.halves[index] * np.clip(opacity, 0, 0.95) * (1 - 0.6 * air)


def _bronchogram(
    chest: Chest, root: NDArray[np.float64], centre: NDArray[np.float64], rng: np.random.Generator
) -> FloatImage:
    """Thin branching tubes of air from the hilum through the consolidation, in 0-1."""
    layer, frame = chest.frame.layer(), chest.frame
    for _ in range(4):
        end = centre + rng.normal(0, 0.10, 2)
        fork = root + (end - root) * rng.uniform(0.45, 0.7)
        frame.stroke(layer, curve([root, fork + rng.normal(0, 0.015, 2), end]), 0.011, 220)
        for _ in range(2):
            tip = end + (end - fork) * 0.5 + rng.normal(0, 0.07, 2)
            frame.stroke(
                layer, curve([fork, (fork + tip) / 2 + rng.normal(0, 0.02, 2), tip]), 0.007, 170
            )
    return frame.soften(layer, 0.003)


def covid(chest: Chest, severity: float, side: int, rng: np.random.Generator) -> FloatImage:
    """Patches of ground glass in both lungs, along the wall and towards the bases."""
    x, y = chest.frame.grid
    anatomy, total = chest.anatomy, np.zeros_like(chest.lungs[0])
    mottle = 0.75 + 0.30 * chest.frame.noise(rng, 22, 3)
    for index, each in enumerate(SIDES):
        patches = np.zeros_like(total)
        for _ in range(rng.integers(2, 5)):
            centre_y = anatomy.apex + rng.triangular(0.35, 0.85, 1.0) * (
                anatomy.domes[index] - anatomy.apex
            )
            edge = float(wall_x(anatomy, each, centre_y))
            centre_x = each * (edge - rng.uniform(0.04, 0.12))
            radius = rng.uniform(0.09, 0.15) * (0.85 + 0.3 * severity)
            reach = ellipse(x, y, (centre_x, centre_y), (radius, 1.35 * radius))
            np.maximum(patches, np.exp(-(reach**3)), out=patches)
        patches *= np.clip(1 + 0.25 * chest.frame.noise(rng, 8, 2), 0.3, 1.5)
        total += chest.halves[index] * (0.36 + 0.34 * severity) * patches * mottle
    return np.clip(total, 0, 0.85)


def tuberculosis(chest: Chest, severity: float, side: int, rng: np.random.Generator) -> FloatImage:
    """A thick-walled cavity in an infiltrated apex, nodules and strands around it."""
    opacity = _apex(chest, severity, side, rng)
    if rng.random() < 0.4:
        other = 0.7 * _apex(chest, 0.6 * severity, -side, rng, cavity=False)
        opacity = np.maximum(opacity, other)
    return np.clip(opacity, 0, 0.92)


def _apex(
    chest: Chest, severity: float, side: int, rng: np.random.Generator, cavity: bool = True
) -> FloatImage:
    """One apex: infiltrate, strands to the hilum, nodules, and the cavity where there is one."""
    x, y = chest.frame.grid
    anatomy, frame, index = chest.anatomy, chest.frame, SIDES.index(side)
    centre_y = anatomy.apex + rng.uniform(0.20, 0.32)
    centre_x = side * rng.uniform(0.55, 0.72) * float(wall_x(anatomy, side, centre_y))
    uneven = frame.noise(rng, 9, 3)
    reach = ellipse(x, y, (centre_x, centre_y), (0.25, 0.22))
    opacity = (0.26 + 0.26 * severity) * np.exp(-(reach**2.5)) * np.clip(0.9 + 0.5 * uneven, 0, 2)
    strands, nodules = frame.layer(), frame.layer()
    hilum = np.array([anatomy.shift + side * 0.15, anatomy.heart_top])
    for _ in range(5):
        end = np.array([centre_x, centre_y]) + rng.normal(0, 0.08, 2)
        frame.stroke(
            strands, curve([hilum, (hilum + end) / 2 + rng.normal(0, 0.03, 2), end]), 0.009, 200
        )
    for _ in range(int(10 + 14 * severity)):
        spot = np.array([centre_x, centre_y]) + rng.normal(0, 1, 2) * [0.13, 0.15]
        frame.stroke(
            nodules, [spot, spot + rng.normal(0, 0.006, 2)], rng.uniform(0.018, 0.036), 230
        )
    opacity = np.maximum(opacity, 0.45 * frame.soften(strands, 0.004))
    opacity = np.maximum(opacity, (0.40 + 0.25 * severity) * frame.soften(nodules, 0.008))
    if cavity:
        radius = rng.uniform(0.075, 0.105) * (0.85 + 0.35 * severity)
        turn, flat = rng.uniform(0, np.pi), rng.uniform(0.70, 1.0)
        along = (x - centre_x) * np.cos(turn) + (y - centre_y) * np.sin(turn)
        across = (y - centre_y) * np.cos(turn) - (x - centre_x) * np.sin(turn)
        distance = (
            ellipse(along, across, (0.0, 0.0), (radius, flat * radius))
            - 1
            + 0.20 * frame.noise(rng, 12, 2)
        )
        thickness = 0.24 * np.clip(1 + 0.5 * frame.noise(rng, 8), 0.4, 2)
        broken = np.clip(0.9 + 0.25 * frame.noise(rng, 16, 2), 0.3, 1.1)
        ring = np.exp(-((distance / thickness) ** 2)) * (0.55 + 0.33 * severity) * broken
        lumen = step(-distance - 0.5 * thickness, 0.3)
        opacity = np.maximum(opacity * (1 - 0.8 * lumen), ring)
    return chest.halves[index] * opacity


def lump(smallest: float, largest: float) -> Callable[..., FloatImage]:
    """One round opacity of a radius between the two, for the findings outside the nine."""

    def paint(chest: Chest, severity: float, side: int, rng: np.random.Generator) -> FloatImage:
        x, y = chest.frame.grid
        centre_y = rng.uniform(chest.anatomy.apex + 0.35, 0.25)
        centre_x = side * rng.uniform(0.5, 0.75) * float(wall_x(chest.anatomy, side, centre_y))
        radius = rng.uniform(smallest, largest) * (0.7 + 0.3 * severity)
        distance = ellipse(x, y, (centre_x, centre_y), (radius, radius)) - 1
        edge = distance + 0.08 * chest.frame.noise(rng, 12, 2)
        return chest.halves[SIDES.index(side)] * 0.7 * step(-edge, 0.4)

    return paint
