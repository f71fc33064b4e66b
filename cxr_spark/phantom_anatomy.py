"""A patient's random proportions, and the outlines of lungs, heart and body that follow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cxr_spark.phantom_frame import curve

Points = NDArray[np.float64]
SIDES = (-1, 1)  # the patient's right is the image's left


@dataclass(frozen=True)
class Anatomy:
    """Proportions in anatomy units (phantom_frame); pairs are (patient's right, patient's left).

    Attributes:
        half_width: of the rib cage at its widest.
        apex: y of the tops of the lungs.
        domes: y of the tops of the diaphragm.
        dome_height: of each dome over its costophrenic angle.
        heart: how far the heart reaches to either side of the midline.
        heart_top: y at which the heart's left border leaves the great vessels.
        knob: radius of the aortic knob.
        shift: of the mediastinum to the patient's left (negative: right).
        scoliosis: amplitude of the spine's sideways curve.
        axilla: y of the armpits; neck: half the width of the neck.
        rib_slope: how far a posterior rib descends from the spine to the wall.
        air: how dark air is.
        vessels: how strong the lung vessels are.
        bones: how strong the bones are.
    """

    half_width: float
    apex: float
    domes: tuple[float, float]
    dome_height: tuple[float, float]
    heart: tuple[float, float]
    heart_top: float
    knob: float
    shift: float
    scoliosis: float
    axilla: float
    neck: float
    rib_slope: float
    air: float
    vessels: float
    bones: float

    @property
    def length(self) -> float:
        """Height of the lungs from apex to the mean costophrenic angle."""
        return float(np.mean(self.domes) + np.mean(self.dome_height) - self.apex)


def random_anatomy(rng: np.random.Generator) -> Anatomy:
    """A healthy patient; breath, build and exposure differ more than most diseases change them."""
    half_width = rng.uniform(0.66, 0.77)
    dome = rng.uniform(0.33, 0.51)
    ratio = rng.uniform(0.40, 0.49)
    share = rng.uniform(0.28, 0.36)
    heights = rng.uniform(0.12, 0.21, 2)
    return Anatomy(
        half_width=half_width,
        apex=rng.uniform(-0.74, -0.62),
        domes=(dome, dome + rng.uniform(0.0, 0.07)),
        dome_height=(heights[0], heights[1]),
        heart=(2 * half_width * ratio * share, 2 * half_width * ratio * (1 - share)),
        heart_top=rng.uniform(-0.12, -0.04),
        knob=rng.uniform(0.065, 0.095),
        shift=rng.uniform(-0.02, 0.02),
        scoliosis=rng.uniform(-0.025, 0.025),
        axilla=rng.uniform(-0.15, 0.10),
        neck=rng.uniform(0.18, 0.26),
        rib_slope=rng.uniform(0.05, 0.16),
        air=rng.uniform(0.38, 0.50),
        vessels=rng.uniform(0.85, 1.15),
        bones=rng.uniform(0.75, 1.15),
    )


def with_heart(anatomy: Anatomy, ratio: float) -> Anatomy:
    """The anatomy with another cardiothoracic ratio, the heart's share to either side kept."""
    right, left = anatomy.heart
    factor = 2 * anatomy.half_width * ratio / (right + left)
    return replace(anatomy, heart=(right * factor, left * factor))


@lru_cache(maxsize=4)
def wall(anatomy: Anatomy, side: int) -> Points:
    """The lung's outer border from its apex down to the costophrenic angle, (n, 2)."""
    width, top = anatomy.half_width, anatomy.apex
    index = SIDES.index(side)
    height = anatomy.domes[index] + anatomy.dome_height[index] - top
    fractions = [
        (0.20, 0.085),
        (0.28, 0.02),
        (0.40, 0.0),
        (0.56, 0.035),
        (0.74, 0.17),
        (0.88, 0.36),
        (0.965, 0.60),
        (1.0, 0.84),
        (0.985, 1.0),
    ]
    return curve([(side * width * x, top + height * y) for x, y in fractions])


def wall_x(anatomy: Anatomy, side: int, y: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Distance of the rib cage's inner wall from the midline at heights y."""
    border = wall(anatomy, side)[16:]
    return np.interp(y, border[:, 1], np.abs(border[:, 0]))


def diaphragm(anatomy: Anatomy, side: int) -> Points:
    """The dome from the costophrenic angle to the midline, (n, 2)."""
    width, index = anatomy.half_width, SIDES.index(side)
    top, height = anatomy.domes[index], anatomy.dome_height[index]
    fractions = [
        (0.985, 1.0),
        (0.93, 0.62),
        (0.80, 0.22),
        (0.58, 0.0),
        (0.36, 0.06),
        (0.18, 0.34),
        (0.06, 0.62),
    ]
    return curve([(side * width * x, top + height * y) for x, y in fractions])


def lung(anatomy: Anatomy, side: int) -> Points:
    """Outline of one lung, the part behind the heart included, (n, 2)."""
    width, top = anatomy.half_width, anatomy.apex
    medial = curve(
        [
            (side * 0.05, anatomy.domes[SIDES.index(side)]),
            (side * 0.05, 0.0),
            (side * 0.06, top + 0.36),
            (side * 0.095, top + 0.20),
            (side * width * 0.20, top + 0.085 * anatomy.length),
        ]
    )
    return np.vstack([wall(anatomy, side), diaphragm(anatomy, side), medial])


def spine_x(anatomy: Anatomy, y: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Midline of the spine at heights y."""
    return np.asarray(anatomy.scoliosis * np.sin(2.2 * np.asarray(y) + 0.6))


def heart(anatomy: Anatomy) -> Points:
    """Outline of the heart, (n, 2), apex to the patient's left."""
    right, left = anatomy.heart
    top, base = anatomy.heart_top, max(anatomy.domes) + 0.09
    mid = anatomy.shift
    depth = base - top
    outline = [
        (-0.10, top),
        (-0.13, top + 0.12 * depth),
        (-right, top + 0.52 * depth),
        (-0.9 * right, top + 0.80 * depth),
        (-0.5 * right, base),
        (0.3 * left, base + 0.03),
        (0.86 * left, base - 0.02),
        (left, top + 0.80 * depth),
        (0.90 * left, top + 0.56 * depth),
        (0.62 * left, top + 0.27 * depth),
        (0.12 + 0.13 * left, top + 0.02 * depth),
        (0.10, top - 0.05),
    ]
    return curve([(mid + x, y) for x, y in outline])


def mediastinum(anatomy: Anatomy) -> Points:
    """Outline of the great vessels above the heart with the aortic knob, (n, 2)."""
    mid, knob, top = anatomy.shift, anatomy.knob, anatomy.apex
    arch = anatomy.heart_top - 0.22
    outline = [
        (0.5 * mid - 0.17, top - 0.35),
        (0.5 * mid - 0.12, top + 0.08),
        (mid - 0.105, arch),
        (mid - 0.115, anatomy.heart_top),
        (mid - 0.12, 0.8),
        (mid + 0.08, 0.8),
        (mid + 0.13, anatomy.heart_top + 0.05),
        (mid + 0.125, arch + 1.25 * knob),
        (mid + 0.06 + knob, arch + 0.3 * knob),
        (mid + 0.05 + knob, arch - 0.6 * knob),
        (mid + 0.07, arch - 1.5 * knob),
        (0.5 * mid + 0.09, top + 0.08),
        (0.5 * mid + 0.17, top - 0.35),
    ]
    return curve(outline)


def torso(anatomy: Anatomy) -> Points:
    """Outline of neck, shoulders and trunk without the arms, (n, 2)."""
    width, top, neck = anatomy.half_width, anatomy.apex, anatomy.neck
    right = [
        (neck * 1.05, -1.9),
        (neck, -1.15),
        (neck * 1.15, top - 0.24),
        (0.55, top - 0.10),
        (0.84, top + 0.02),
        (0.99, top + 0.22),
        (width + 0.25, anatomy.axilla - 0.12),
        (width + 0.15, anatomy.axilla + 0.12),
        (width + 0.12, 0.35),
        (width + 0.15, 0.9),
        (width + 0.20, 1.9),
    ]
    edge = curve(right)
    return np.vstack([edge, edge[::-1] * [-1, 1]])


def arm(anatomy: Anatomy, side: int) -> Points:
    """Outline of the upper arm, hanging slightly away from the trunk, (n, 2)."""
    width, top, axilla = anatomy.half_width, anatomy.apex, anatomy.axilla
    outer = curve(
        [
            (0.72, top - 0.03),
            (0.97, top + 0.10),
            (1.12, axilla - 0.1),
            (1.25, axilla + 0.4),
            (1.5, 1.9),
        ]
    )
    inner = curve(
        [
            (1.26, 1.9),
            (1.02, axilla + 0.5),
            (width + 0.21, axilla + 0.05),
            (width + 0.10, axilla - 0.15),
            (0.70, top + 0.2),
        ]
    )
    return np.vstack([outer, inner]) * [side, 1]
