# `make demo` needs Python 3.11 or newer and nothing else. Everything is installed into .venv.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
WORKERS ?= 2
BIN := .venv/bin

.PHONY: demo test test-slow lint install clean

demo: install
	$(BIN)/maskkit demo

# one thread per process: the processes share the cores
test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -m "not slow"

test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -m slow

lint: install
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

install: .venv/installed

.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv demo runs .pytest_cache .ruff_cache .hypothesis
