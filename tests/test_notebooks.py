"""The notebooks run from the first cell to the last, in a kernel of their own, as in Jupyter."""

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY, Chain

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
# A number that its outputs must tell: images of all nine classes, a picture of nine squares, ...
SHOWN = {
    "1_curated_data": ("duplicate", "Atelectasis, Cardiomegaly, Covid", "image/png"),
    "2_training_and_errors": ("val_cce", "predicted_label", "image/png"),
    "3_predictions_in_sql": ("newest_model_predictions", "mean_confidence", "entropy"),
}


def code_cells(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_short_and_without_outputs(path: Path) -> None:
    cells = code_cells(path)
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert sum(len(cell["source"]) for cell in cells) < 60


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_a_warehouse_that_the_jobs_wrote(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    monkeypatch.setenv("CXR_WAREHOUSE", str(chain.warehouse))
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}})
    client.execute()
    outputs = json.dumps([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])
    for words in SHOWN[path.stem]:
        assert words in outputs
