# Everything happens inside .venv; nothing is installed outside it.
PYTHON ?= python3
PORT ?= 3000
BIN := .venv/bin
export DAGSTER_HOME ?= $(CURDIR)/.dagster

.PHONY: help setup demo demo-clean test lint dev lock
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/' | expand -t 14

setup: .venv/.installed  ## create .venv with every dependency from the lock, and the package

.venv/.installed: requirements.lock requirements-uv.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(DAGSTER_HOME)/dagster.yaml: dagster.yaml
	@mkdir -p $(DAGSTER_HOME)
	@cp dagster.yaml $@

demo: setup $(DAGSTER_HOME)/dagster.yaml  ## six small drawn datasets, all 90 partitions, all checks, a table
	$(BIN)/embeddings-assets demo

demo-clean: setup  ## delete what the demo made
	$(BIN)/embeddings-assets demo --remove

test: setup  ## the whole test suite
	$(BIN)/python -m pytest

lint: setup  ## ruff (lint, format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

dev: setup $(DAGSTER_HOME)/dagster.yaml  ## the Dagster web UI on 127.0.0.1 (PORT=3000)
	$(BIN)/dagster dev --host 127.0.0.1 --port $(PORT) --workspace workspace.yaml

lock: setup  ## compile the lock again from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --quiet --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-header --output-file requirements.lock
	grep -A200 '^uv==' requirements.lock | awk 'NR==1 || /^    --hash/ {print; next} {exit}' > requirements-uv.lock
