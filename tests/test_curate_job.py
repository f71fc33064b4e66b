"""jobs/curate.py as users run it: what its options do, and what it refuses before it begins."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pyspark.sql import SparkSession

from cxr_spark import job, labels
from cxr_spark.images import Preprocessing
from cxr_spark.pseudonyms import pseudonym
from cxr_spark.selection import Policy, selection_of
from cxr_spark.tables import CurateRun, Warehouse
from jobs import curate as curate_job
from tests.conftest import Finished
from tests.test_curate import draw

SALT = "a salt of the user's own, 33 bytes"
FILES = 7
OPTIONS = {
    "--label-policy": "sole-target",
    "--cap": "Edema=2",
    "--select": "mercy=Edema,Effusion",
    "--split-policy": "hash",
    "--ratios": "1,0,0",
    "--fit": "pad",
    "--image-size": "32",
    "--commit-every": "3",
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital's images, twice as high as wide, its manifest, and the salt that it keeps."""
    folder = tmp_path_factory.mktemp("archive")
    findings = ["Edema", "Edema", "Edema|Mass", "Effusion", "Covid", "Edema|Effusion", "Gout"]
    for i in range(FILES):
        picture = cv2.imread(str(draw(folder / f"{i}.png", i, 160)), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(folder / f"{i}.png"), np.maximum(picture[:, :80], 9))
    lines = [f"{i}.png,{finding},P-{i}" for i, finding in enumerate(findings)]
    (folder / "list.csv").write_text("path,label,patient_id\n" + "\n".join(lines))
    (folder / "salt").write_text(SALT)
    return folder


def _options(archive: Path, warehouse: Path) -> list[str]:
    named = ["--warehouse", warehouse, "--manifest", f"mercy={archive}/list.csv"]
    named += ["--salt-file", archive / "salt"]
    return [str(part) for part in (*named, *(part for pair in OPTIONS.items() for part in pair))]


@pytest.fixture(scope="module")
def done(run_job: Any, archive: Path) -> Finished:
    """A first run with all of the options."""
    return run_job("curate", *_options(archive, archive / "warehouse"))


def test_each_option_does_what_it_says_and_is_recorded(
    spark: SparkSession, archive: Path, done: Finished
) -> None:
    assert done.exit_code == 0, done.stderr[-3000:]
    warehouse = Warehouse(archive / "warehouse")
    run = warehouse.published_run()
    assert run is not None
    recorded = {name: run.arguments[name] for name in ("label_policy", "split_policy", "fit")}
    assert recorded == {"label_policy": "sole-target", "split_policy": "hash", "fit": "pad"}
    assert (run.arguments["ratios"], run.arguments["caps"]) == ("1.0,0.0,0.0", '{"Edema": 2}')
    assert selection_of(run.arguments)["mercy"] == ("Edema", "Effusion")
    squares = Preprocessing(size=32, fit="pad")
    assert run.arguments["preprocessing"] == squares.fingerprint()
    images = warehouse.read(spark, "images").collect()
    assert Counter(row.label for row in images) == {"Edema": 2, "Effusion": 1}
    assert {row.split for row in images} == {"train"}
    names = [row.image_id.removeprefix("mercy:").removesuffix(".png") for row in images]
    assert [row.patient_id for row in images] == [pseudonym(f"P-{n}", SALT.encode()) for n in names]
    assert not (warehouse.root / "salt").exists()
    for row in images:  # padded at the sides
        square = np.frombuffer(row.pixels, np.uint8).reshape(32, 32)
        assert not square[:, :8].any()
        assert not square[:, -8:].any()
        assert square[:, 8:-8].all()
    rejects = warehouse.read(spark, "rejects").collect()
    assert Counter(row.reason for row in rejects) == {
        "over_cap": 1,
        "class_not_selected": 1,
        "multi_label": 1,
        "unknown_label": 1,
    }
    pieces = {file.path.split("/")[-1] for file in warehouse.files("pixels")}
    assert len(pieces) >= 3  # of at most three files each
    assert warehouse.read(spark, "pixels").count() == FILES


def _run(*options: str) -> job.Run:
    """A run in this process, recorded as the job does it."""
    asked = curate_job.parser().parse_args(options)
    run = job.Run("curate")
    try:
        curate_job.main(asked, run)
    except Exception as error:
        run.status, message = job._outcome(error)
        run.extra["error"] = message
    finally:
        run.release()
    if run.status not in job.UNRECORDED:
        job.record(run, asked, "", datetime.now(UTC))
    return run


@pytest.mark.long
def test_strict_refuses_what_the_audit_warned_of_be_it_new_or_published(
    spark: SparkSession, archive: Path, done: Finished, tmp_path: Path
) -> None:
    assert done.summary["counts"]["audit_warnings"] > 0
    before = Warehouse(archive / "warehouse").published()
    again = _run(*_options(archive, archive / "warehouse"), "--strict")
    assert (again.status, again.counts["decoded"]) == ("refused", 0)
    assert again.outputs["data_docs"] == done.summary["outputs"]["data_docs"]
    assert Warehouse(archive / "warehouse").published() == before
    first = _run(*_options(archive, tmp_path / "warehouse"), "--strict")
    assert (first.status, Warehouse(tmp_path / "warehouse").published()) == ("refused", {})


def test_another_salt_is_refused_whatever_source_is_named(
    archive: Path, done: Finished, tmp_path: Path
) -> None:
    draw(tmp_path / "Tuberculosis" / "Tuberculosis-1.png", 1)
    options = ["--warehouse", str(archive / "warehouse"), "--tuberculosis", str(tmp_path)]
    run = _run(*options)  # in WAREHOUSE/salt there is none, so one would be drawn
    assert run.status == "invalid"
    assert "salt is not the salt of this warehouse" in run.extra["error"]
    assert not (archive / "warehouse" / "salt").exists()


# --- which classes are selected -------------------------------------------------------------------

EDEMA = ("Edema",)


def _selected(*options: str) -> dict[str, tuple[str, ...]]:
    """The selection of a run after one that took Edema from mercy and listed hope and covid."""
    before = CurateRun(
        "curate-1",
        None,
        Policy(labels.SELECTED | {"mercy": EDEMA, "covid": labels.CLASSES}).to_text(),
        {"mercy.listed": 1, "hope.listed": 2, "covid.listed": 3},
        {},
        datetime.now(UTC),
    )
    asked = curate_job.parser().parse_args(["--warehouse", "w", *options])
    manifests = [text.split("=")[0] for text in asked.manifest]
    folders = [name for name in labels.SOURCES if vars(asked)[name]]
    return dict(curate_job._policy(asked, before, [*folders, *manifests]).selected)


def test_sources_that_a_run_does_not_name_stay_as_they_were_selected() -> None:
    assert _selected("--nih", "x")["mercy"] == EDEMA
    assert _selected("--nih", "x")["covid"] == labels.CLASSES
    assert _selected("--nih", "x", "--select", "mercy=Covid")["mercy"] == ("Covid",)
    assert _selected("--nih", "x", "--select", "hope=Covid")["hope"] == ("Covid",)


def test_a_source_that_is_named_is_selected_by_what_is_asked_now() -> None:
    assert _selected("--covid", "x")["covid"] == labels.SELECTED["covid"]
    assert _selected("--manifest", "mercy=x.csv")["mercy"] == labels.CLASSES


def test_a_source_that_nobody_listed_can_not_be_selected() -> None:
    with pytest.raises(labels.LabelError, match="no source 'mercury'"):
        _selected("--nih", "x", "--select", "mercury=Edema")
