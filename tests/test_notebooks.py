"""The notebooks run from the first cell to the last on a warehouse that the jobs have written."""

import json
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from tests.conftest import REPOSITORY, Chain

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_is_stored_without_outputs(
    spark: SparkSession, chain: Chain, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    cells = [c for c in json.loads(path.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    monkeypatch.setenv("CXR_WAREHOUSE", str(chain.warehouse))
    shown: list[object] = []
    names = {"display": shown.append}  # Jupyter has it built in
    for cell in cells:
        exec("".join(cell["source"]), names)
    kept, rejects, picture, answer = shown
    assert kept.set_index("label").sum().sum() == 72  # type: ignore[attr-defined]
    assert "duplicate" in set(rejects["reason"])  # type: ignore[index]
    assert picture.size == (9 * 64, 64)  # type: ignore[attr-defined]
    assert list(answer["images"]) == [8] * 9  # type: ignore[index]
