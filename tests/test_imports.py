"""Imports point down only: the picture in the README, held by reading each module's own imports."""

import ast
import configparser
import graphlib
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).resolve().parent.parent

# From the bottom up. A module imports from the layers below its own; at the bottom and among the
# parts also from its own. Stages don't import each other: they meet through tables.
LAYERS = {
    "concepts": """run whole_files labels reasons pseudonyms listing sources sources_nih manifest
        images image_arrays decoders dicom isolation duplicates groups splits metrics figures
        bootstrap baselines operating_points scored_rows slice_figures slices
        comparison learning_curve localisation charts evaluation_words
        calibration artifact backbones imbalance train_options drift_figures html_pages
        phantom phantom_anatomy phantom_bones phantom_findings
        phantom_frame phantom_opacities sample_layouts sample_traps""",
    "parts": """storage contracts delta staging file_statistics commits tables arrow_batches
        near_duplicates selection ledger leakage expectations data_docs
        judged_images refusals material glances explain file_scan known_files shares
        read_plans reader augment models pretrained gradcam ranks
        training_plan training_run schedule checkpoints validation learner training_log fit
        model_card distribute forecast engines onnx_export inference
        score_inputs scored scoring explanations prediction_rows prediction_commits submission
        sql sql_errors sql_gate sql_output
        sql_parameters sql_prompt sql_views sql_users sql_rows sql_metadata sql_dialect sql_engine
        sql_thrift sql_server retention drift operator_metrics curation_facts""",
    "stages": """ingest curate train score evaluate maintenance report curation_report sample job
        session""",
    "jobs": """jobs.check_leakage jobs.curate jobs.evaluate jobs.maintain jobs.query jobs.sample
        jobs.score jobs.serve_sql jobs.train""",
}
LAYER_OF = {module: layer for layer, modules in LAYERS.items() for module in modules.split()}
HEIGHT = {layer: height for height, layer in enumerate(LAYERS)}
CLOSED = {"stages", "jobs"}

# Who may import what is heavy. fit, reader and models run under TorchDistributor, without a JVM;
# ingest, curate, tables and delta run where there is no torch.
MAY_IMPORT = {
    "deltalake": "delta commits maintenance",
    "petastorm": "reader",
    "great_expectations": "expectations data_docs",
    "pyspark": """contracts delta staging file_statistics arrow_batches commits tables
        near_duplicates leakage selection expectations ledger duplicates groups splits file_scan
        sql sql_errors sql_output sql_parameters sql_rows sql_metadata sql_dialect sql_engine
        sql_thrift ingest curate train score evaluate score_inputs scored inference
        prediction_commits maintenance report session drift curation_facts curation_report
        judged_images material glances explain explanations distribute shares""",
    "onnx": "onnx_export",
    "onnxruntime": "engines",
    "TCLIService": "sql_rows sql_thrift",
    "pydicom": "dicom",
    "gdcm": "dicom",
    "torch": """augment checkpoints engines explain fit forecast gradcam learner models onnx_export
        pretrained
        ranks validation""",
    "torchvision": "models",
    "tensorboardX": "training_log",
}


def imports(source: str) -> set[str]:
    """Dotted names of all that a module's source imports, in functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ["cxr_spark"] * bool(node.level) + ([node.module] if node.module else [])
            names |= {".".join([*package, alias.name]) for alias in node.names}
    return names


def packages(source: str) -> set[str]:
    """The top-level packages that a source imports."""
    return {name.split(".")[0] for name in imports(source)}


def own(source: str) -> set[str]:
    """The modules of ours that a source imports, by short name."""
    paths = [name.removeprefix("cxr_spark.").split(".") for name in imports(source)]
    return {
        ".".join(path[:2]) if path[0] == "jobs" else path[0] for path in paths
    } & LAYER_OF.keys()


def heavy(source: str) -> set[str]:
    """The heavy packages that a source imports."""
    return packages(source) & MAY_IMPORT.keys()


def points_down(importer: str, imported: str) -> bool:
    """Whether the rule lets one module of ours import another."""
    above, below = LAYER_OF[importer], LAYER_OF[imported]
    return HEIGHT[above] > HEIGHT[below] or (above == below and above not in CLOSED)


def sources() -> dict[str, str]:
    """The source of every module, by short name: labels, ..., jobs.curate, ..."""
    library = {path.stem: path.read_text("utf-8") for path in CHECKOUT.glob("cxr_spark/*.py")}
    jobs = {f"jobs.{path.stem}": path.read_text("utf-8") for path in CHECKOUT.glob("jobs/*.py")}
    return {name: text for name, text in (library | jobs).items() if "__init__" not in name}


def placed() -> dict[str, str]:
    """The sources of the modules that have a place."""
    return {name: text for name, text in sources().items() if name in LAYER_OF}


def test_every_module_has_its_place_in_the_layers() -> None:
    assert sources().keys() - LAYER_OF.keys() == set()


def test_the_layers_name_only_modules_that_exist() -> None:
    assert LAYER_OF.keys() - sources().keys() == set()


def test_a_module_imports_only_from_below() -> None:
    upward = [
        f"{importer} imports {imported}"
        for importer, source in placed().items()
        for imported in own(source)
        if not points_down(importer, imported)
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {importer: own(source) for importer, source in sources().items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_a_heavy_package_is_imported_only_where_it_belongs() -> None:
    misplaced = [
        f"{importer} imports {package}"
        for importer, source in sources().items()
        for package in heavy(source)
        if importer not in MAY_IMPORT[package].split()
    ]
    assert misplaced == []


def test_every_package_that_is_imported_is_declared_and_no_other() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(CHECKOUT / "setup.cfg")
    requirements = setup["options"]["install_requires"].split("\n")
    declared = {canonicalize_name(Requirement(line).name) for line in requirements if line}
    imported = set().union(*(packages(source) for source in sources().values()))
    distributions = packages_distributions()
    used = {
        canonicalize_name(distribution)
        for package in imported - sys.stdlib_module_names - {"cxr_spark", "jobs"}
        for distribution in distributions.get(package, [package])
    }
    assert used == declared


def test_importing_the_package_itself_imports_nothing() -> None:
    for folder in ("cxr_spark", "jobs", "schemas", "conf"):
        assert imports((CHECKOUT / folder / "__init__.py").read_text("utf-8")) == set()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import cxr_spark.fit", "fit"),
        ("from cxr_spark import labels, fit", "fit"),
        ("from cxr_spark.fit import fit as train_model", "fit"),
        ("from . import fit", "fit"),
        ("from .fit import train_one_epoch", "fit"),
        ("def late():\n    from cxr_spark import fit", "fit"),
        ("from cxr_spark.jobs import train", "jobs.train"),
        ("import jobs.train", "jobs.train"),
    ],
)
def test_an_import_of_ours_counts_in_every_spelling(source: str, name: str) -> None:
    assert name in own(source)


@pytest.mark.parametrize(
    "source",
    ["import torch", "import torch.nn as nn", "from torch import nn", "if True:\n  import torch"],
)
def test_an_import_of_a_heavy_package_counts_in_every_spelling(source: str) -> None:
    assert heavy(source) == {"torch"}


@pytest.mark.parametrize(
    ("importer", "imported"),
    [("labels", "tables"), ("tables", "curate"), ("train", "score"), ("curate", "job")],
)
def test_the_rule_refuses_imports_up_and_between_stages(importer: str, imported: str) -> None:
    assert not points_down(importer, imported)
