"""Ratios of what was measured in turn, so that what slows the machine down slows both sides."""

from statistics import median


def ratios(rates: dict[str, list[float]], ours: str) -> dict[str, list[float]]:
    """Our rate over each other's, round by round."""
    return {
        name: [round(a / b, 3) for a, b in zip(rates[ours], others, strict=True)]
        for name, others in rates.items()
        if name != ours
    }


def medians(values: dict[str, list[float]], digits: int) -> dict[str, float]:
    """The median of each, rounded."""
    return {name: round(median(found), digits) for name, found in values.items()}
