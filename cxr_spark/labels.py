"""The nine classes, the finding words of the sources, and how a word becomes a label."""

import re
from collections.abc import Iterable, Mapping, Sequence

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

LABEL_POLICIES: tuple[str, ...] = ("sole", "sole-target")
"""When an image has a label. `sole`: it has exactly one finding, and that is one of the nine
classes. `sole-target`: exactly one of its findings is one of the nine; it may have others. Under
both, a finding that is none of FINDINGS leaves the image without a label."""


class LabelError(ValueError):
    """A choice of classes that can't be meant."""


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


def parse_selection(
    texts: Iterable[str],
    sources: Sequence[str] = SOURCES,
    before: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Parses `source=Class,Class` texts: which classes each source gives.

    Args:
        texts: each replaces one source's classes; `source=all` takes all nine.
        sources: the sources of a run, whose manifests may be named beside the public ones.
        before: classes of sources that stay as they were, where nothing else is chosen.

    Returns:
        The classes by source, in class order: those chosen, else those before, else SELECTED, else
        all nine.

    Raises:
        LabelError: a text names an unknown source or class, no class, or a source again.
    """
    kept = dict(before or {})
    known = tuple(dict.fromkeys((*SOURCES, *sources, *kept)))
    chosen: dict[str, tuple[str, ...]] = {}
    for text in texts:
        source, _, words = (part.strip() for part in text.partition("="))
        if source not in known:
            raise LabelError(
                f"{text!r}: no source {source!r}; expected SOURCE=CLASS,CLASS with one of the "
                f"sources {', '.join(known)}."
            )
        if source in chosen:
            raise LabelError(f"{text!r}: the classes of {source} are chosen twice.")
        chosen[source] = _classes(text, words)
    return {source: CLASSES for source in known} | SELECTED | kept | chosen


def _classes(text: str, words: str) -> tuple[str, ...]:
    if words.lower() == "all":
        return CLASSES
    named = {_class(text, word) for word in words.split(",")}
    return tuple(label for label in CLASSES if label in named)


def _class(text: str, word: str) -> str:
    label = canonical_label(word)
    if label not in LABEL_INDEX:
        what = f"{label!r} is none of the classes" if label else "a class is missing"
        raise LabelError(f"{text!r}: {what}; they are {', '.join(CLASSES)}.")
    return label


def parse_caps(texts: Iterable[str]) -> dict[str, int]:
    """Parses `Class=N` texts: the most images that a class may have, at least 1.

    Raises:
        LabelError: a text names an unknown class, a class again, or no such number.
    """
    caps: dict[str, int] = {}
    for text in texts:
        word, _, number = text.partition("=")
        label = _class(text, word)
        if not re.fullmatch(r"[1-9][0-9]{0,8}", number.strip()):
            raise LabelError(f"{text!r}: expected CLASS=N, where N is a number of images from 1.")
        if label in caps:
            raise LabelError(f"{text!r}: {label} is capped twice.")
        caps[label] = int(number)
    return caps


def column_name(label: str) -> str:
    """Returns the label as a column is named: `"No Finding"` gives `"no_finding"`."""
    return label.lower().replace(" ", "_")


CLASS_COLUMNS: tuple[str, ...] = tuple(column_name(label) for label in CLASSES)
"""The columns of the nine probabilities, in class order."""
