"""The findings that a phantom can have: what each changes in the anatomy, and what it fills."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from cxr_spark import phantom_opacities as opacities
from cxr_spark.phantom_anatomy import SIDES, Anatomy, with_heart
from cxr_spark.phantom_frame import FloatImage
from cxr_spark.phantom_opacities import Chest


def _same(anatomy: Anatomy, severity: float, side: int) -> Anatomy:
    return anatomy


def _enlarge_heart(anatomy: Anatomy, severity: float, side: int) -> Anatomy:
    return replace(
        with_heart(anatomy, 0.50 + 0.125 * severity), heart_top=anatomy.heart_top - 0.04 * severity
    )


def _trap_air(anatomy: Anatomy, severity: float, side: int) -> Anatomy:
    """Low flat domes, a narrow upright heart, dark lungs with few vessels."""
    right, left = anatomy.domes
    low = 0.02 + 0.10 * severity
    flat = 1 - 0.78 * severity
    return replace(
        with_heart(anatomy, 0.42 - 0.06 * severity),
        domes=(right + low, left + low),
        dome_height=(anatomy.dome_height[0] * flat, anatomy.dome_height[1] * flat),
        apex=anatomy.apex - 0.03 * severity,
        rib_slope=anatomy.rib_slope * (1 - 0.6 * severity),
        air=anatomy.air + 0.05 * severity,
        vessels=anatomy.vessels * (1 - 0.40 * severity),
    )


def _lose_volume(anatomy: Anatomy, severity: float, side: int) -> Anatomy:
    """The dome of the side rises and the mediastinum moves towards it."""
    domes = list(anatomy.domes)
    domes[SIDES.index(side)] -= 0.05 + 0.09 * severity
    return replace(
        anatomy,
        domes=(domes[0], domes[1]),
        shift=anatomy.shift + side * (0.015 + 0.055 * severity),
    )


@dataclass(frozen=True)
class Finding:
    """How a finding alters the anatomy, what air it fills, and whether NIH would box it."""

    alter: Callable[[Anatomy, float, int], Anatomy] = _same
    paint: Callable[[Chest, float, int, np.random.Generator], FloatImage] = opacities.clear
    boxed: bool = False


FINDINGS: dict[str, Finding] = {
    "Atelectasis": Finding(_lose_volume, opacities.atelectasis, boxed=True),
    "Cardiomegaly": Finding(_enlarge_heart, boxed=True),
    "Covid": Finding(paint=opacities.covid),
    "Edema": Finding(paint=opacities.edema),
    "Effusion": Finding(paint=opacities.effusion, boxed=True),
    "Emphysema": Finding(_trap_air),
    "Mass": Finding(paint=opacities.lump(0.10, 0.16), boxed=True),
    "No Finding": Finding(),
    "Nodule": Finding(paint=opacities.lump(0.035, 0.06), boxed=True),
    "Pneumonia": Finding(paint=opacities.pneumonia, boxed=True),
    "Tuberculosis": Finding(paint=opacities.tuberculosis),
}
