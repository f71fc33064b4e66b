"""The words of the sources become the nine classes."""

import pytest

from cxr_spark import labels


def test_the_nine_classes_stand_in_alphabetical_order_and_know_their_index():
    assert len(labels.CLASSES) == 9
    assert list(labels.CLASSES) == sorted(labels.CLASSES)
    assert [labels.LABEL_INDEX[label] for label in labels.CLASSES] == list(range(9))


def test_columns_are_the_classes_in_lower_case_without_spaces():
    assert labels.CLASS_COLUMNS[:3] == ("atelectasis", "cardiomegaly", "covid")
    assert labels.column_name("No Finding") == "no_finding"
    assert all(name.isidentifier() and name.islower() for name in labels.CLASS_COLUMNS)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("COVID19", "Covid"),
        (" covid-19 ", "Covid"),
        ("NORMAL", "No Finding"),
        ("no finding", "No Finding"),
        ("No_Finding", "No Finding"),
        ("PNEUMONIA\n", "Pneumonia"),
        ("TURBERCULOSIS", "Tuberculosis"),
        ("Tuberculosis", "Tuberculosis"),
        ("Infiltrate", "Infiltration"),
        ("Pleural Thickening", "Pleural_Thickening"),
    ],
)
def test_case_space_and_the_sources_own_spellings_are_forgiven(text, label):
    assert labels.canonical_label(text) == label
    assert label in labels.FINDINGS


def test_an_unknown_word_comes_back_stripped_but_otherwise_as_it_is():
    assert labels.canonical_label("  Lung Opacity ") == "Lung Opacity"
    assert labels.canonical_label("Pneumonia?") == "Pneumonia?"


def test_every_canonical_word_stays_what_it_is():
    assert {labels.canonical_label(word) for word in labels.FINDINGS} == labels.FINDINGS
    assert len(labels.FINDINGS) == 17


def test_finding_labels_are_split_at_bars_in_their_order():
    assert labels.split_finding_labels("Effusion|Cardiomegaly") == ["Effusion", "Cardiomegaly"]


def test_a_finding_named_twice_is_one_finding():
    assert labels.split_finding_labels("Edema | edema||Mass") == ["Edema", "Mass"]


def test_no_findings_text_gives_no_labels():
    assert labels.split_finding_labels(" ") == []


def test_each_source_selects_known_classes_and_the_single_class_sources_one():
    assert set(labels.SELECTED) == set(labels.SOURCES)
    assert labels.SELECTED["nih"] == labels.CLASSES
    assert labels.SELECTED["pneumonia"] == ("Pneumonia",)
    assert labels.SELECTED["tuberculosis"] == ("Tuberculosis",)
    assert labels.SELECTED["covid"] == ("Covid",)
