# `make demo` and `make test` need only Python 3.11+ and make: each sets up .venv first if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export MPLBACKEND := Agg

.PHONY: demo test check bench lock clean

demo: $(VENV)/ready
	$(BIN)/python -m experiments.d3m.d3m

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/ready .venv-bench/ready
	$(BIN)/python -m experiments.bench

$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

# PyTorch, for the side-by-side benchmarks alone.
.venv-bench/ready: experiments/bench/requirements.lock
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --requirement experiments/bench/requirements.lock
	touch $@

# Rewrites requirements.lock from pyproject.toml: exact versions, no addresses.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet '.[test]'
	.venv-lock/bin/python -m pip freeze --exclude d3mjax | grep -v ' @ ' > requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf $(VENV) .venv-bench .pytest_cache .ruff_cache
