"""The nine classes, the finding words of the sources, and how a word becomes a label."""

import re

CLASSES: tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Covid",
    "Edema",
    "Effusion",
    "Emphysema",
    "No Finding",
    "Pneumonia",
    "Tuberculosis",
)
"""The classes in the order that every index, vector and table follows."""

LABEL_INDEX: dict[str, int] = {label: index for index, label in enumerate(CLASSES)}

OTHER_FINDINGS: tuple[str, ...] = (
    "Consolidation",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural_Thickening",
    "Pneumothorax",
)
"""Findings that NIH reports and that are none of the nine classes."""

FINDINGS: frozenset[str] = frozenset(CLASSES + OTHER_FINDINGS)
"""Every finding word that is known; any other is an `unknown_label`."""

SOURCES: tuple[str, ...] = ("nih", "pneumonia", "tuberculosis", "covid")
"""The public sources, in the order of preference among duplicates: best documented first."""

SELECTED: dict[str, tuple[str, ...]] = {
    # NIH has neither Covid nor Tuberculosis today; if a copy ever does, they count.
    "nih": CLASSES,
    "pneumonia": ("Pneumonia",),
    "tuberculosis": ("Tuberculosis",),
    "covid": ("Covid",),
}
"""The classes that each source gives by default; its others are `class_not_selected`."""

LABEL_POLICIES: tuple[str, ...] = ("sole",)
"""`sole`: an image has a label when it has exactly one finding, and that is one of the nine."""

_ALIASES: dict[str, str] = {
    "covid 19": "Covid",
    "covid19": "Covid",
    "infiltrate": "Infiltration",  # the NIH bounding boxes' word
    "normal": "No Finding",
    "turberculosis": "Tuberculosis",  # a folder's name in the original covid archive
}


def _key(text: str) -> str:
    """Folds case and takes runs of space, `_` and `-` as one space."""
    return re.sub(r"[\s_-]+", " ", text.casefold()).strip()


_CANONICAL: dict[str, str] = {_key(label): label for label in FINDINGS} | _ALIASES


def canonical_label(text: str) -> str:
    """Returns the one spelling of a finding word.

    Args:
        text: a word as a CSV, a folder or a list spells it; case and surrounding space don't
            matter, and neither does `_`, `-` or space between words.

    Returns:
        The member of `FINDINGS` that is meant (`"NORMAL"` is `"No Finding"`), or, where none is,
        the text without surrounding space.
    """
    return _CANONICAL.get(_key(text), text.strip())


def split_finding_labels(text: str) -> list[str]:
    """Splits NIH's `A|B` into canonical labels, each once, in the order given.

    Returns:
        The labels; empty where the text holds none.
    """
    words = (canonical_label(part) for part in text.split("|"))
    return list(dict.fromkeys(word for word in words if word))


def column_name(label: str) -> str:
    """Returns the label as a column is named: `"No Finding"` gives `"no_finding"`."""
    return label.lower().replace(" ", "_")


CLASS_COLUMNS: tuple[str, ...] = tuple(column_name(label) for label in CLASSES)
"""The columns of the nine probabilities, in class order."""
