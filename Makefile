# `make demo` and `make test` make what they need; nothing has to be installed first but Python and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV := $(shell command -v uv 2>/dev/null)

.PHONY: demo test test-fast test-slow check format clean

demo: $(STAMP)  ## data, transplant, two workers, evaluation, registration, pictures
	$(BIN)/fcn-pipeline run demo

test: test-fast  ## everything that needs no GPU and no minutes
	$(BIN)/pytest -m "ray and not slow and not gpu"

test-fast: $(STAMP)  ## those that start no Ray, two files at a time
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "not ray and not slow and not gpu"

test-slow: $(STAMP)  ## the rest of them: faults on a real Ray, some minutes each
	$(BIN)/pytest -m "slow and not gpu"

check: $(STAMP)  ## style, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Byte-compiled, because every Ray process imports torch.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifdef UV
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]'
else
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	$(BIN)/python -m pip install --quiet --compile -c constraints.txt -e '.[dev]'
endif
	touch $@

clean:
	rm -rf $(VENV) store build *.egg-info
