"""The drawing board of the phantoms: anatomy coordinates on a canvas, curves, masks, noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import cast

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatImage = NDArray[np.float32]
Layer = NDArray[np.uint8]
_SUBPIXEL_BITS = 4
_TURN = np.linspace(0, 2 * np.pi, 20, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)


@dataclass(frozen=True)
class Frame:
    """A square canvas and the pose that the patient has on it.

    Anatomy coordinates run from -1 to 1 over the canvas in a neutral pose, x to the image's
    right (the patient's left), y down. Lengths and widths below are in the same unit.

    Attributes:
        size: side of the canvas in pixels.
        pose: float64 (2, 3), anatomy coordinates to pixels.
    """

    size: int
    pose: NDArray[np.float64]

    @cached_property
    def grid(self) -> tuple[FloatImage, FloatImage]:
        """Anatomy coordinates x and y of every pixel, float32 (size, size) each."""
        inverse = cv2.invertAffineTransform(self.pose).astype(np.float32)
        column, row = np.meshgrid(
            np.arange(self.size, dtype=np.float32), np.arange(self.size, dtype=np.float32)
        )
        x = inverse[0, 0] * column + inverse[0, 1] * row + inverse[0, 2]
        y = inverse[1, 0] * column + inverse[1, 1] * row + inverse[1, 2]
        return x, y

    @cached_property
    def scale(self) -> float:
        """Pixels a unit of the anatomy."""
        return float(np.sqrt(abs(np.linalg.det(self.pose[:, :2]))))

    def points(self, points: ArrayLike) -> NDArray[np.float64]:
        """Anatomy points (n, 2) as pixel positions (n, 2)."""
        return np.asarray(points, dtype=np.float64) @ self.pose[:, :2].T + self.pose[:, 2]

    def layer(self) -> Layer:
        """An empty layer to stroke and fill, uint8 (size, size)."""
        return np.zeros((self.size, self.size), np.uint8)

    def stroke(self, layer: Layer, points: ArrayLike, width: float, value: float) -> None:
        """Draw an open line through points (n, 2); see strokes."""
        self.strokes(layer, np.asarray(points)[None], width, value)

    def strokes(self, layer: Layer, lines: ArrayLike, width: float, value: float) -> None:
        """Draw open lines (m, n, 2) of one width; below a pixel it gets fainter, not thinner."""
        thickness = self.scale * width
        level = value * min(1.0, max(thickness, 0.35))
        cv2.polylines(
            layer,
            list(self._fixed(lines)),
            False,
            (level,),
            max(1, round(thickness)),
            cv2.LINE_AA,
            _SUBPIXEL_BITS,
        )

    def fill(self, layer: Layer, points: ArrayLike, value: float) -> None:
        """Fill a polygon."""
        cv2.fillPoly(layer, [self._fixed(points)], (value,), cv2.LINE_AA, _SUBPIXEL_BITS)

    def mask(self, points: ArrayLike, softness: float = 0.0) -> FloatImage:
        """A filled polygon as float32 (size, size) in 0-1, its edge softened by a Gaussian."""
        layer = self.layer()
        self.fill(layer, points, 255)
        return self.soften(layer, softness)

    def soften(self, layer: Layer, sigma: float) -> FloatImage:
        """A layer as float32 in 0-1, blurred by a Gaussian of sigma anatomy units."""
        radius = self.scale * sigma
        blurred = cv2.GaussianBlur(layer, (0, 0), radius) if radius > 0.3 else layer
        return blurred.astype(np.float32) * np.float32(1 / 255)

    def depth(self, mask: FloatImage) -> FloatImage:
        """Distance of each pixel from the outside of a mask, float32, in anatomy units."""
        inside = (mask > 0.5).astype(np.uint8)
        return cast(FloatImage, cv2.distanceTransform(inside, cv2.DIST_L2, 3) / self.scale)

    def noise(self, rng: np.random.Generator, cells: int, octaves: int = 1) -> FloatImage:
        """Smooth random field, cubic between cells x cells standard normal values.

        Each further octave doubles the cells and has six tenths of the strength.
        """
        values: FloatImage = rng.standard_normal((cells, cells), np.float32)
        for octave in range(1, octaves):
            count = cells * 2**octave
            finer = rng.standard_normal((count, count), np.float32) * 0.6**octave
            values = finer + cv2.resize(values, (count, count), interpolation=cv2.INTER_CUBIC)
        field = cv2.resize(values, (self.size, self.size), interpolation=cv2.INTER_CUBIC)
        return cast(FloatImage, field)

    def _fixed(self, points: ArrayLike) -> NDArray[np.int32]:
        return np.round(self.points(points) * 2**_SUBPIXEL_BITS).astype(np.int32)


def posed_frame(size: int, rng: np.random.Generator) -> Frame:
    """A frame with a random pose: shifted, turned by up to 5 degrees, scaled by .90 to 1.12."""
    angle = np.radians(rng.uniform(-5, 5))
    scale = rng.uniform(0.90, 1.12) * size / 2
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = (size - 1) / 2 + rng.uniform(-0.05, 0.05, 2) * size / 2
    return Frame(size, np.hstack([turn, centre[:, None]]))


def curve(points: ArrayLike, steps: int = 8) -> NDArray[np.float64]:
    """A smooth open line through the points (Catmull-Rom), steps pieces between two of them."""
    knots = np.asarray(points, dtype=np.float64)
    padded = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    around = np.stack([padded[:-3], padded[1:-2], padded[2:-1], padded[3:]])
    pieces = np.tensordot(_catmull_rom(steps), around, axes=(1, 0))
    return np.concatenate([pieces.transpose(1, 0, 2).reshape(-1, 2), knots[-1:]])


@lru_cache
def _catmull_rom(steps: int) -> NDArray[np.float64]:
    """Weights of the point before, the two ends and the point after, (steps, 4)."""
    t = np.linspace(0, 1, steps, endpoint=False)
    weights = [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]
    return np.stack(weights, axis=1) / 2


def ribbon(line: ArrayLike, widths: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The two edges of a band of the given widths (one, or one a point) along a line."""
    middle = np.asarray(line, dtype=np.float64)
    direction = np.gradient(middle, axis=0)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True) + 1e-9
    normal = np.stack([-direction[:, 1], direction[:, 0]], axis=1)
    half = np.broadcast_to(np.asarray(widths, dtype=np.float64) / 2, len(middle))[:, None]
    return middle + normal * half, middle - normal * half


def step(values: FloatImage, width: float) -> FloatImage:
    """0 below zero, 1 above, with a smooth passage twice as wide as `width`; float32."""
    t = np.clip(values * (0.5 / width) + 0.5, 0, 1)
    return cast(FloatImage, t * t * (3 - 2 * t))


def ellipse(
    across: FloatImage, down: FloatImage, centre: tuple[float, float], radii: tuple[float, float]
) -> FloatImage:
    """Distance from a centre as a multiple of an ellipse's radius: 1 on the ellipse; float32."""
    return cast(
        FloatImage,
        cv2.magnitude((across - centre[0]) / radii[0], (down - centre[1]) / radii[1]),
    )


def oval(centre: tuple[float, float], radii: tuple[float, float]) -> NDArray[np.float64]:
    """The outline of an ellipse, (20, 2)."""
    return np.asarray(centre) + _CIRCLE * np.asarray(radii)
