# Everything happens inside .venv; nothing is installed outside it.
PYTHON ?= python3
PORT ?= 3000
BIN := .venv/bin
export DAGSTER_HOME ?= $(CURDIR)/.dagster

.PHONY: help setup demo demo-clean test test-lowest bench bench-gpu lint dev lock
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/' | expand -t 14

setup: .venv/.installed  ## create .venv with every dependency from the lock, and the package

.venv/.installed: requirements.lock requirements-uv.lock pyproject.toml Makefile
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@# Compiled once: where Python may not write bytecode, every process would compile torch anew.
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(DAGSTER_HOME)/dagster.yaml: dagster.yaml | setup
	@# A file that is there is its owner's: storage, limits. Until the pool is known, its limit holds for nobody.
	@if [ ! -e $@ ]; then \
		mkdir -p $(DAGSTER_HOME) && cp dagster.yaml $@ && \
		{ $(BIN)/dagster instance concurrency set gpu 1 >/dev/null || { rm $@; exit 1; }; } \
	elif ! cmp -s dagster.yaml $@; then echo "note: $@ differs from dagster.yaml"; fi

demo: setup $(DAGSTER_HOME)/dagster.yaml  ## six small drawn datasets, all 90 partitions, all checks, a table
	$(BIN)/embeddings-assets demo

demo-clean: setup  ## delete what the demo made
	$(BIN)/embeddings-assets demo --remove

test: setup  ## the whole test suite
	$(BIN)/python -m pytest

test-lowest: setup  ## parity, store, extraction and graph with the lowest versions allowed
	$(BIN)/python .ci/lowest.py

bench: setup  ## speed and memory against the machine's ceilings (BENCH="--images DIR --count 2000")
	$(BIN)/python benchmarks/engine.py $(BENCH) --json bench.json
	$(BIN)/python benchmarks/memory.py --json bench-memory.json

bench-gpu: setup  ## all that a GPU should answer, in 8 minutes (BENCH="--images DIR --kit DIR")
	$(BIN)/python benchmarks/gpu.py $(BENCH) --json bench-gpu.json

lint: setup  ## ruff (lint, format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

dev: setup $(DAGSTER_HOME)/dagster.yaml  ## the Dagster web UI on 127.0.0.1 (PORT=3000)
	$(BIN)/dagster dev --host 127.0.0.1 --port $(PORT) --workspace workspace.yaml

COMPILE := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--generate-hashes --no-header

lock: setup  ## compile both locks again from pyproject.toml
	$(COMPILE) --extra dev --output-file requirements.lock
	$(COMPILE) --extra test --resolution lowest-direct --output-file requirements-lowest.lock
	grep -A200 '^uv==' requirements.lock | awk 'NR==1 || /^    --hash/ {print; next} {exit}' > requirements-uv.lock
