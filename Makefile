# Everything a contributor runs. `make setup` is idempotent; the other targets depend on it.
# Nothing here needs the network once `make setup` has run.

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.setup-done
# DeepSpeed builds its CPU kernels with the ninja that is installed beside it.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Extra arguments for pytest, such as PYTEST_ARGS="-k config".
PYTEST_ARGS ?=

# Runs a command, prints its wall time and keeps its exit status.
define timed
@start=$$(date +%s); $(2); status=$$?; \
echo "make $(1): $$(( $$(date +%s) - start )) s wall time, exit status $$status"; exit $$status
endef

.PHONY: setup quickstart quickstart-sft test test-slow lint type check fmt golden chaos bench cluster

setup: $(STAMP)

# torch comes first: DeepSpeed ships as source and needs torch, setuptools and wheel to build.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation \
		--editable '.[dev,tracking]'
	$(BIN)/python -m distft.assets
	@touch $(STAMP)

quickstart: setup
	$(call timed,quickstart,$(BIN)/distft tune configs/quickstart.yaml)

quickstart-sft: setup
	$(call timed,quickstart-sft,$(BIN)/distft train configs/quickstart-sft.yaml)

test: setup
	$(call timed,test,$(BIN)/pytest -m "not slow" $(PYTEST_ARGS))

test-slow: setup
	$(call timed,test-slow,$(BIN)/pytest -m slow $(PYTEST_ARGS))

# Trajectories that must agree: torch = ZeRO 0 = 1 = 2 = 3, splits, interrupted = uninterrupted.
golden: setup
	$(call timed,golden,$(BIN)/pytest tests/golden $(PYTEST_ARGS))

# Hosts of their own, lost and brought back: needs root and the package iproute2.
chaos: setup
	$(call timed,chaos,$(BIN)/pytest tests/chaos -o python_files='chaos_*.py' $(PYTEST_ARGS))

# Measurements, not tests: they print numbers and assert no time.
bench: setup
	$(call timed,bench,$(BIN)/pytest tests/bench -s -o python_files='bench_*.py' $(PYTEST_ARGS))

# Manifests for operators, from cluster/settings-*.yaml.
cluster: setup
	$(BIN)/python cluster/generate.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pydoclint --quiet distft

type: setup
	$(BIN)/mypy

check: lint type test

fmt: setup
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
