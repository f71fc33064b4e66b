"""Why a listed file is no image of the data set: short stable names, in order of precedence."""

FILE_REASONS: dict[str, str] = {
    "missing_file": "the metadata names a file that isn't there",
    "outside_root": "a path, a URL or a link that leads out of the source's folder",
    "not_in_manifest": "the source's metadata has no row for the file",
    "not_a_file": "a folder, pipe, socket or device named like an image; never opened",
    "empty_file": "no bytes",
    "too_large": "more bytes or pixels than any radiograph has; refused before decoding",
    "unreadable": "no image in a format that is read here, or one that can't be decoded",
    "truncated": "the file ends before its image does",
    "multi_frame": "more than one frame or page",
    "too_small": "a side is shorter than any radiograph's",
    "not_grayscale": "a colour photograph",
    "blank": "all but a few pixels have nearly the same grey",
    "decoder_crashed": "the decoder took its process down",
    "decoder_timeout": "the decoder didn't come to an end",
    "decoder_memory": "the decoder asked for more memory than a worker has",
}
"""The file can't be used as an image, whatever it is labelled."""

LABEL_REASONS: dict[str, str] = {
    "unknown_label": "a finding is none that cxr_spark knows",
    "no_target_label": "none of the findings is one of the nine classes",
    "class_not_selected": "the class is not taken from this source",
    "multi_label": "more findings than the label policy allows",
}
"""The image has no label under the chosen classes and policy."""

COPY_REASONS: dict[str, str] = {
    "label_conflict": "the same picture is labelled differently elsewhere",
    "duplicate": "the same picture is there already",
    "over_cap": "the class has as many images as it was allowed",
}
"""The image has a label, and is left out because of other images."""

REASONS: dict[str, str] = FILE_REASONS | LABEL_REASONS | COPY_REASONS
"""All reasons with what each means: a rejected file has the first that applies."""

UNREAD_UNTIL_CHANGED = ("empty_file", "too_large")
"""Refused by their size, so their content has no hash; other unread files are tried each time."""
