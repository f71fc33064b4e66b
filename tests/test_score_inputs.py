"""What is scored: files below folders or named by lists, curated images of one preprocessing."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from cxr_spark import job, score, score_inputs
from cxr_spark.artifact import load_card
from cxr_spark.delta import NoSuchVersion
from cxr_spark.score_inputs import ScoreInputError
from cxr_spark.scoring import Scoring, load_model
from cxr_spark.sources import SourceError
from cxr_spark.tables import Warehouse
from tests import artifacts
from tests.test_curate import draw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, nested, in formats that their names don't tell, and what is none."""
    draw(tmp_path / "in" / "a.png", 0)
    draw(tmp_path / "in" / "deep" / "er" / "b.jpg", 1)
    draw(tmp_path / "in" / "c.png", 2).rename(tmp_path / "in" / "1.2.840")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    return tmp_path / "in"


def test_the_files_of_folders_are_listed_once_and_named_from_their_folder(folder: Path) -> None:
    listed = score_inputs.image_files([folder, folder / "deep"], [])
    assert listed["name"].to_pylist() == ["1.2.840", "a.png", "deep/er/b.jpg"]
    assert listed["image_id"].to_pylist()[1] == f"file:{folder}/a.png"
    assert listed["size_bytes"].to_pylist()[1] == (folder / "a.png").stat().st_size
    assert listed.schema == score_inputs.listed_schema()


def _write(kind: str, folder: Path, paths: list[str]) -> Path:
    rows = pa.table({"label": ["x"] * len(paths), "path": paths})
    place = folder.parent / f"list.{kind}"
    if kind == "csv":
        place.write_text("label, path\n" + "".join(f'x,"{path}"\n' for path in paths))
    elif kind == "parquet":
        pq.write_table(rows, place)
    else:
        write_deltalake(str(place), rows)
    return place


@pytest.mark.parametrize("kind", ["csv", "parquet", "delta"])
def test_lists_name_files_absolutely_or_from_their_own_folder(kind: str, folder: Path) -> None:
    paths = [f"{folder}/a.png", "in/deep/er/b.jpg", "in/gone.png"]
    listed = score_inputs.image_files([], [_write(kind, folder, paths)])
    assert listed["name"].to_pylist() == paths
    assert listed["reason"].to_pylist() == [None, None, "missing_file"]
    assert listed["path"].to_pylist()[1] == f"{folder}/deep/er/b.jpg"


def test_a_path_that_no_file_can_have_is_a_row_with_a_reason(folder: Path) -> None:
    paths = ["in/a.png", "in/a.png\0", "x" * 300]
    listed = score_inputs.image_files([], [_write("parquet", folder, paths)])
    assert listed["reason"].to_pylist() == [None, "unreadable", "unreadable"]
    assert len(set(listed["image_id"].to_pylist())) == 3


def test_a_list_keeps_its_rows_and_their_names(folder: Path) -> None:
    place = _write("csv", folder, ["in/a.png", "./in/a.png", "in/c.png"])
    listed = score_inputs.image_files([folder], [place])
    assert listed["name"].to_pylist()[3:] == ["in/a.png", "./in/a.png", "in/c.png"]
    assert listed["image_id"].to_pylist()[3:5] == [f"file:{folder}/a.png"] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [("file\nx", "no column path"), ("path,x\n,1\n", "line 2: no path"), ("", "no column path")],
)
def test_a_list_without_paths_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ScoreInputError, match=message):
        score_inputs.image_files([], [tmp_path / "list.csv"])


def test_what_is_no_list_or_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.parquet").write_text("none")
    for place in ("list.parquet", "nowhere"):
        with pytest.raises(ScoreInputError, match="not readable as a Delta table"):
            score_inputs.image_files([], [tmp_path / place])
    nulls = pa.table({"path": pa.array(["a", None])})
    pq.write_table(nulls, tmp_path / "list.parquet")
    with pytest.raises(ScoreInputError, match="never null"):
        score_inputs.image_files([], [tmp_path / "list.parquet"])
    with pytest.raises(SourceError, match="no such folder"):
        score_inputs.image_files([tmp_path / "nowhere"], [])


def test_a_file_is_settled_when_it_has_not_changed_for_seconds() -> None:
    now = datetime(2026, 11, 24, 12, tzinfo=UTC)
    ages = [0, 2, 4, -2, -3600]  # a clock ahead by an hour doesn't keep a file for ever
    times = [now - timedelta(seconds=age) for age in ages]
    listed = pa.table({"modified_at": pa.array([*times, None], score_inputs.MOMENT)})
    settled = score_inputs.is_settled(listed, now).to_pylist()
    assert settled == [False, False, True, False, True, True]


def test_curated_images_of_another_preprocessing_are_refused(
    curated: tuple[Path, Any], tmp_path: Path
) -> None:
    warehouse, versions = Warehouse(curated[0]), Warehouse(curated[0]).published()
    at = versions["images"], versions["images_raw"]
    card = load_card(artifacts.save(tmp_path, size=64))
    listed = score_inputs.curated_images(warehouse, *at, split="all", card=card)
    assert len(listed) == curated[1]["counts"]["images"]
    assert listed["path"].null_count == 0 and listed["image_id"].to_pylist() == sorted(
        listed["image_id"].to_pylist()
    )
    other = load_card(artifacts.save(tmp_path, size=32))
    with pytest.raises(ScoreInputError, match="--image-size"):
        score_inputs.curated_images(warehouse, *at, split="all", card=other)


def test_an_older_version_of_the_images_is_listed_as_it_was(tmp_path: Path) -> None:
    model = load_model(artifacts.save(tmp_path / "models", size=32))
    warehouse, now = Warehouse(tmp_path / "warehouse"), datetime.now(UTC)

    def curate(number: int) -> dict[str, int]:
        known = {"image_id": f"own:{number}.png", "run_id": str(number)}
        file = known | {"path": f"/{number}"}
        image = known | {"split": "test", "preprocessing": model.card.preprocessing_fingerprint}
        versions = {
            "images": warehouse.append_rows("images", [image]),
            "images_raw": warehouse.append_rows("images_raw", [file]),
        }
        run = {"run_id": str(number), "job": "curate", "status": "finished", "exit_code": 0}
        run |= {"started_at": now, "finished_at": now + timedelta(number)}
        warehouse.append_rows("runs", [run | {"versions_written": versions}])
        return versions

    first, _ = [curate(number) for number in range(2)]
    run = job.Run("score")
    listed = score.list_images(warehouse, Scoring((model,)), run, "test", first["images"])
    assert listed.select(["image_id", "path", "images_version"]).to_pylist() == [
        {"image_id": "own:0.png", "path": "/0", "images_version": first["images"]}
    ]
    assert run.versions_read == first
    assert len(score.list_images(warehouse, Scoring((model,)), run, "test", None)) == 2
    with pytest.raises(NoSuchVersion, match="never published"):
        score.list_images(warehouse, Scoring((model,)), run, "test", 7)
