"""An installed wheel holds all that a job needs, and works where there is no checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from cxr_spark.session import SETTINGS

CHECKOUT = Path(__file__).resolve().parent.parent
FOUR = ("nih", "covid", "pneumonia", "tuberculosis")
# Where what stands in the checkout is found in the wheel.
FOLDERS = {
    "cxr_spark": "cxr_spark",
    "conf": "cxr_spark/conf",
    "jobs": "cxr_spark/jobs",
    "schemas": "cxr_spark/schemas",
}


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder with these variables added to the environment."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def pip(*arguments: str | Path, cwd: Path) -> None:
    """Run pip without network."""
    done = run(sys.executable, "-m", "pip", *arguments, "--no-index", "--no-deps", cwd=cwd)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that a build leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("copy")
    for folder in FOLDERS:
        shutil.copytree(
            CHECKOUT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / file, copy)
    pip("wheel", "--no-build-isolation", "--wheel-dir", copy / "dist", ".", cwd=copy)
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the checkout with the wheel's content installed in it."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--target", folder, wheel, cwd=folder)
    return folder


def run_installed(
    installed: Path, *arguments: str | Path, cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Run Python on the installed wheel; without `site`, so that no editable install helps out."""
    packages = os.pathsep.join([str(installed), sysconfig.get_path("purelib")])
    return run(sys.executable, "-S", *arguments, cwd=cwd, PYTHONPATH=packages)


def test_the_wheel_holds_every_file_of_the_product(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{inside}/{path.relative_to(CHECKOUT / folder).as_posix()}"
        for folder, inside in FOLDERS.items()
        for path in (CHECKOUT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {
        "cxr_spark/conf/spark-defaults.conf",
        "cxr_spark/jobs/curate.py",
        "cxr_spark/schemas/expectations/images.json",
        "cxr_spark/schemas/images.json",
        "cxr_spark/templates/evaluation.html",
    } <= expected
    assert expected - held == set()


def test_the_wheel_puts_nothing_beside_the_package(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"cxr_spark", wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"}


def test_an_installed_job_explains_itself(installed: Path, tmp_path: Path) -> None:
    done = run_installed(installed, "-m", "cxr_spark.jobs.curate", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--warehouse" in done.stdout + done.stderr


@pytest.mark.long
def test_curate_runs_from_an_installed_wheel(
    installed: Path, sources: Path, tmp_path: Path
) -> None:
    options = [part for name in FOUR for part in (f"--{name}", sources / name)]
    done = run_installed(
        installed,
        *("-m", "cxr_spark.jobs.curate", "--warehouse", "warehouse", "--image-size", "64"),
        *options,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "finished"
    assert (tmp_path / "warehouse" / "images" / "_delta_log").is_dir()


def test_what_an_installed_job_imports_is_the_installed_package(
    installed: Path, tmp_path: Path
) -> None:
    listing = (
        "import sys, cxr_spark.jobs.curate\n"
        "for name, module in sys.modules.items():\n"
        "    if name.split('.')[0] == 'cxr_spark': print(module.__file__)"
    )
    done = run_installed(installed, "-c", listing, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = [Path(line) for line in done.stdout.splitlines()]
    assert installed / "cxr_spark" / "tables.py" in files
    assert [file for file in files if installed not in file.parents] == []


def test_the_properties_file_says_what_the_session_sets() -> None:
    lines = (CHECKOUT / "conf" / "spark-defaults.conf").read_text("utf-8").splitlines()
    given = dict(line.split() for line in lines if line and not line.startswith("#"))
    # What comes too late from a session: the heap, and the log level of Spark's own start.
    heap, log_level = given.pop("spark.driver.memory"), given.pop("spark.log.level")
    ours = dict(SETTINGS)
    assert int(heap.removesuffix("g")) >= int(ours.pop("spark.driver.memory").removesuffix("g"))
    assert log_level == "ERROR"
    assert given == ours
