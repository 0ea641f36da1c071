# Everything a person or CI runs. `make` alone lists it.
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export MLFLOW_DISABLE_TELEMETRY := true
export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint types unit bench chaos fmt pins clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

# uv resolves and installs in seconds where pip needs minutes; pip's local wheels, where there are any, are passed on.
# The packages are compiled once, here: a sweep starts a dozen processes that import Ray and torch, and where Python may not
# write compiled code (PYTHONDONTWRITEBYTECODE) each of them would compile both anew: 97 s a demo instead of 50.
$(STAMP): pyproject.toml constraints.txt
	@echo "setting up: $(VENV), with the exact pins of constraints.txt"
	@test -x $(BIN)/python || $(PY) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	@UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev,dashboards]'
	@touch $@

setup: $(STAMP)  ## create .venv and install

demo: $(STAMP)  ## the main job: data, sweep, champions, served and checked
	@echo "running: python jobs/first_sweep.py"
	@$(BIN)/python jobs/first_sweep.py

test: $(STAMP)  ## every test but chaos, kind and gpu
	@echo "testing in two processes: what shares the session's Ray in one, all else in the other"
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not chaos and not kind and not gpu" $(PYTEST_ARGS)

check: $(STAMP)  ## lint, types, unit tests, two at a time
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint types unit

lint: $(STAMP)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP)
	@$(BIN)/mypy

unit: $(STAMP)
	@$(BIN)/python -m pytest -q -n 2 -m "not ray and not postgres and not chaos and not slow" tests/unit tests/architecture

bench: $(STAMP)  ## every benchmark beside its rival; writes .tiltyard/bench.json (ONLY=name to pick)
	@$(BIN)/python tests/benchmarks/harness.py $(ONLY)

chaos: $(STAMP)  ## random fault schedules
	@$(BIN)/python -m pytest -q -m chaos

fmt: $(STAMP)  ## format and mend what ruff can
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

pins: $(STAMP)  ## resolve constraints.txt anew from pyproject.toml
	@UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(BIN)/uv pip compile --quiet --upgrade --extra dev --extra dashboards \
	  --no-header --no-annotate pyproject.toml -o constraints.txt
	@sed -i -E 's/^(torch==[0-9.]+)\+.*/\1/' constraints.txt

clean:  ## remove .venv (results in .tiltyard stay)
	rm -rf $(VENV)
