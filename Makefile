# Every target but `setup` runs inside .venv, which `setup` makes.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed

# One thread: what runs here is small. Two threads gain little on an idle machine, are many times slower on a busy one
# (where they spin), and four times slower where those that wait are told to sleep (OMP_WAIT_POLICY=PASSIVE).
export OMP_NUM_THREADS ?= 1

# Tests run in so many processes at once (pytest-xdist); those of test-slow one after the other.
WORKERS ?= 2

.PHONY: setup demo test test-slow lint embedded clean

setup: $(STAMP)

# A machine with its own torch keeps it: .venv then sees the machine's packages. Elsewhere torch comes first and by
# version, because what the other packages would pull in is the build for CUDA, several GB.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv \
	  $$($(PYTHON) -c "import torch" 2>/dev/null && echo --system-site-packages)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/selectron demo --output demo-output

test: $(STAMP) lint
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks recipes
	$(BIN)/ruff format --check src tests benchmarks recipes
	$(BIN)/mypy

# Makes the embedded model and pool again from a list of SMILES (about an hour on 2 cores).
embedded: $(STAMP)
	$(BIN)/python recipes/embedded/make.py

clean:
	rm -rf .venv build dist demo-output
