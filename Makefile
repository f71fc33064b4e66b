# Every target sets up what it needs; `make` alone lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# Which Python builds .venv; empty: the first 3.11 found as python3.11, python3 or python.
PYTHON ?=
# Of the demo: images that curation keeps of each class, and passes over them.
IMAGES ?= 120
EPOCHS ?= 12
# Options for pytest, as in `make test PYTEST='-k splits -x'`, and the processes that share the tests.
PYTEST ?=
PROCESSES ?= 2

BIN := .venv/bin

# Of the benchmarks: a folder of radiographs to vary; without one, they are drawn.
FROM ?=
BENCH := $(BIN)/python -m benchmarks.
CORPUS = $(if $(FROM),--from "$(FROM)")

.PHONY: help install demo learning-curve test test-long fuzz test-kills check lint format clean java bench-ingest bench-scale bench-near bench-delta bench-sql bench-reader bench-learning bench-train bench-engines bench-score bench-score-memory bench-score-rerun docs test-airflow

help: ## List the targets
	@echo "make TARGET, where TARGET is one of"
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

install: .venv/.stamp ## Set up .venv: once, 3 to 6 minutes and about 7 GB

demo: install ## Run the whole chain on drawn radiographs, into demo/ (5 to 7 minutes)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh $(IMAGES) $(EPOCHS)

learning-curve: install ## Train on shares of the drawn images, and tell CCE by share (a quarter of an hour)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/learning_curve.sh $(IMAGES) $(EPOCHS)

test: install ## Run the tests (under 25 minutes)
	@$(BIN)/python -m pytest -m "not long" -n $(PROCESSES) $(PYTEST)

test-long: install ## Run the tests that take longer
	@$(BIN)/python -m pytest -m long $(PYTEST)

test-kills: install ## Kill curate at each of its steps of writing (half an hour)
	@CXR_SPARK_KILL_POINTS=1000 $(BIN)/python -m pytest tests/test_kills.py -m long $(PYTEST)

fuzz: install ## Decode 10,000 mutated files
	@$(BIN)/python -m pytest tests/test_fuzz.py $(PYTEST)

bench-ingest: install .venv-bench/.stamp ## Ingest against a bare loop, Daft and Ray Data (half an hour)
	@$(BENCH)ingest --kind png --files 1000 $(CORPUS)
	@$(BENCH)ingest --kind jpeg --files 2000 $(CORPUS)

bench-scale: install ## Memory of curate up to 100k files, and a rerun (a quarter of an hour)
	@$(BENCH)scale $(CORPUS)

bench-near: install ## Recall and scaling of near-duplicate search; give FROM=DIR
	@$(BENCH)near_duplicates $(CORPUS)
	@$(BENCH)near_duplicate_scaling $(CORPUS)

bench-delta: install ## Writes to Delta against Spark's plain Parquet writer (5 minutes)
	@$(BENCH)delta_write

bench-sql: install ## Queries through the views against plain Parquet; opening 1,000 commits (a quarter of an hour)
	@$(BENCH)sql_views

bench-reader: install .venv-bench-reader/.stamp ## The training reader against bare pyarrow, LitData, Streaming, WebDataset (10 minutes)
	@$(BENCH)reader $(CORPUS)

bench-engines: install .venv-bench/.stamp ## Engines for inference: ms of a core an image (5 minutes)
	@$(BENCH)engines

bench-score: install .venv-bench/.stamp ## Scoring against a bare loop, Daft and Ray Data (hours)
	@$(BENCH)score --kind pixels --arch resnet18 $(CORPUS)
	@$(BENCH)score --kind pixels --arch densenet121 $(CORPUS)
	@$(BENCH)score --kind png $(CORPUS)
	@$(BENCH)score --kind jpeg $(CORPUS)
	@$(BENCH)score --kind png --rivals daft-torch,ray-torch $(CORPUS)

bench-score-memory: install ## Memory of scoring 20,000 images at 224, by quarters (10 minutes)
	@$(BENCH)score_memory

bench-score-rerun: install ## Memory of scoring 100,000 images, and reruns that find nothing new
	@$(BENCH)score_rerun

bench-learning: install ## CCE and calibration error that the defaults reach in ten minutes on 400 images a class
	@$(BENCH)learning

bench-train: install ## Training steps on the reader against a batch in memory; two processes against one (5 minutes)
	@$(BENCH)train_step $(CORPUS)

test-airflow: install .venv-airflow/.stamp ## Run the Airflow DAG in an environment of its own
	@$(BIN)/python -m pytest tests/test_scheduling.py -m long $(PYTEST)

docs: install ## Bring the options shown in docs/ up to date
	@$(BIN)/python -m scripts.refresh_docs

check: lint test ## Everything that a change must pass: lint, then test

lint: install ## Check format, ruff's rules and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: install ## Format the code, and mend what ruff can mend
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

# What ingest is measured against needs other versions than the product.
.venv-bench/.stamp: | .venv/.stamp
	@$(BIN)/python -m venv .venv-bench
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --progress-bar off \
	  "daft[deltalake]==0.7.26" "pyiceberg==0.12.0" "ray[data]==2.60.0" "deltalake==1.6.6" "kornia-rs==0.2.0" \
	  "simplejpeg==1.9.0" "opencv-python-headless==4.11.0.86" "pillow==13.0.0" "onnxruntime==1.32.0" "openvino==2026.4.0"
	@touch $@

# The readers that ours is measured against stand on the product's environment: on the same torch and numpy.
.venv-bench-reader/.stamp: | .venv/.stamp
	@$(BIN)/python -m venv .venv-bench-reader
	@echo "$(CURDIR)/.venv/lib/python3.11/site-packages" > .venv-bench-reader/lib/python3.11/site-packages/product.pth
	@.venv-bench-reader/bin/python -m pip install --quiet --disable-pip-version-check --progress-bar off \
	  "litdata==0.2.76" "mosaicml-streaming==0.13.0" "webdataset==1.0.2" "numpy<2" "pyarrow==14.0.2"
	@touch $@

.venv-airflow/.stamp: | .venv/.stamp
	@$(BIN)/python -m venv .venv-airflow
	@.venv-airflow/bin/python -m pip install --quiet --disable-pip-version-check --progress-bar off \
	  "apache-airflow==3.3.2" "apache-airflow-providers-standard==1.21.0"
	@touch $@

clean: ## Remove demo/, caches and builds; .venv stays
	@rm -rf demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache spark-warehouse
	@find cxr_spark jobs schemas conf tests -name __pycache__ -prune -exec rm -rf {} +

# Spark 4.0 runs on Java 17 and 21, and takes JAVA_HOME's before PATH's.
java:
	@java="$${JAVA_HOME:+$$JAVA_HOME/bin/}java"; \
	found=$$("$$java" -version 2>&1 | sed -nE '1,3s/.* version "(1\.[0-9]+|[0-9]+).*/\1/p' | head -n 1) || true; \
	case "$$found" in 17|21) ;; *) \
	  echo "cxr_spark needs Java 17 or 21, but '$$java' is $${found:+Java }$${found:-no working Java}:" \
	    "install one (openjdk-17-jre-headless) or point JAVA_HOME at it." >&2; exit 1;; esac

.venv/.stamp: requirements.lock setup.cfg pyproject.toml | java
	@is_311='import sys; sys.exit(sys.version_info[:2] != (3, 11))'; python=; \
	for candidate in $(if $(PYTHON),"$(PYTHON)",python3.11 python3 python); do \
	  if "$$candidate" -c "$$is_311" 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "cxr_spark needs Python 3.11, but $(if $(PYTHON),'$(PYTHON)' is not one,none was found):" \
	    "install it (python3.11 with its venv module) or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	if ! "$(BIN)/python" -c "import pip; $$is_311" 2>/dev/null; then \
	  "$$python" -m venv --clear .venv >/dev/null || { rm -rf .venv; \
	    echo "'$$python' cannot make a virtual environment: install its venv module (python3.11-venv)." >&2; exit 1; }; \
	fi
	@echo "Installing into .venv: 3 to 6 minutes, about 7 GB ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar off -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@echo "Keeping Spark's classes for quicker starts ..." >&2
	@$(BIN)/python -m scripts.archive_classes
	@touch $@
