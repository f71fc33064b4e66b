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


# --- which classes a run takes -------------------------------------------------------------------


def test_without_a_choice_the_public_sources_give_what_they_always_give() -> None:
    assert labels.parse_selection([]) == labels.SELECTED


def test_a_choice_replaces_the_classes_of_its_source_alone() -> None:
    selection = labels.parse_selection(["covid=tuberculosis,normal, COVID-19 ,pneumonia,covid"])
    chosen = ("Covid", "No Finding", "Pneumonia", "Tuberculosis")
    assert selection == labels.SELECTED | {"covid": chosen}


def test_all_takes_the_nine_classes() -> None:
    assert labels.parse_selection(["pneumonia=ALL"])["pneumonia"] == labels.CLASSES


def test_a_manifest_gives_all_nine_classes_unless_some_are_chosen() -> None:
    selection = labels.parse_selection(["hope=Edema"], ["mercy", "hope"])
    assert selection == labels.SELECTED | {"mercy": labels.CLASSES, "hope": ("Edema",)}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["mercy=Edema"], "no source 'mercy'; .*sources nih, pneumonia, tuberculosis, covid"),
        (["Edema"], "no source 'Edema'; expected SOURCE=CLASS,CLASS"),
        (["nih=Mass"], "'Mass' is none of the classes; they are Atelectasis, Cardiomegaly, "),
        (["nih=all,Edema"], "'all' is none of the classes"),
        (["nih"], "'nih': a class is missing; they are Atelectasis"),
        (["nih= "], "a class is missing"),
        (["nih=Edema,,Covid"], "a class is missing"),
        (["nih=Edema", "nih=Covid"], "the classes of nih are chosen twice"),
    ],
)
def test_a_choice_that_cannot_be_meant_says_what_can(texts: list[str], message: str) -> None:
    with pytest.raises(labels.LabelError, match=message):
        labels.parse_selection(texts)


def test_caps_are_numbers_of_images_by_class() -> None:
    assert labels.parse_caps([]) == {}
    caps = labels.parse_caps(["no_finding=5000", "COVID19 = 1"])
    assert caps == {"No Finding": 5000, "Covid": 1}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["Mass=5"], "'Mass=5': 'Mass' is none of the classes"),
        (["=5"], "a class is missing"),
        (["Edema"], "expected CLASS=N"),
        (["Edema=0"], "expected CLASS=N, where N is a number of images from 1"),
        (["Edema=-1"], "expected CLASS=N"),
        (["Edema=1.5"], "expected CLASS=N"),
        ([f"Edema=1{'0' * 5000}"], "expected CLASS=N"),
        (["Edema=5", "edema=5"], "Edema is capped twice"),
    ],
)
def test_a_cap_that_cannot_be_meant_says_what_can(texts: list[str], message: str) -> None:
    with pytest.raises(labels.LabelError, match=message):
        labels.parse_caps(texts)
