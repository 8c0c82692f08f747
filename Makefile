# `make demo` needs Python 3.11 or newer and nothing else. Everything is installed into .venv; `make test-oldest` has
# an environment of its own, .venv-oldest.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
WORKERS ?= 2
BIN := .venv/bin
OLDEST_BIN := .venv-oldest/bin
# what runs with the oldest dependencies: fast tests of what leans on them most
OLDEST_TESTS := tests/geometry tests/test_prediction.py tests/test_targets.py tests/test_torch_free.py \
	tests/data/formats tests/decode tests/checkpoints tests/cli tests/zoo/test_eva.py tests/models/test_segnet.py \
	tests/models/test_faster_rcnn.py

.PHONY: browser demo docs notebooks test test-slow test-oldest runtime-test lint tables support install clean

demo: install
	$(BIN)/maskkit demo

# one thread per process: the processes share the cores. Each begins with half of the tests in their order, so that
# what the tests of a file share is made once
test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not slow"

test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -m slow

# the lower bounds of pyproject.toml, to the letter
test-oldest: .venv-oldest/installed
	OMP_NUM_THREADS=1 $(OLDEST_BIN)/pytest -n $(WORKERS) -m "not slow" $(OLDEST_TESTS)

# what runs exported files, in an environment without PyTorch: predict, eval, a size and a time
runtime-test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/test_runtime.py -m slow -s

# Chromium for the tests of the page of `maskkit serve`; where it cannot be installed, those tests are skipped
browser:
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && test -e /etc/debian_version && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 || \
		echo "Chromium cannot be installed here: tests of the page are skipped"

lint: install
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

# the site in docs/_build/html, from the pages of docs/, the cards of the zoo and the docstrings; warnings are errors
docs: install
	rm -rf docs/_build
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -b html -q -W --keep-going -j auto docs docs/_build/html

# the notebooks with what they print and draw, kept in them
notebooks: install
	$(BIN)/python docs/extensions/run_notebooks.py

# docs/models.md and the table of methods in the README, from the cards of the zoo
tables: install
	$(BIN)/python -m maskkit.zoo.tables

# docs/support.md, from the tests that all methods share
support: install
	MASKKIT_THOROUGH=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) tests/models -k Test --junitxml .pytest_cache/support.xml
	$(BIN)/python -m tests.support .pytest_cache/support.xml

install: .venv/installed

.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --editable ".[dev]"
	touch $@

# on Python 3.11 where it can be had: newer ones have no wheels of some of the oldest versions, and get the next
.venv-oldest/installed: pyproject.toml | install
	rm -rf .venv-oldest
	$(BIN)/uv venv --quiet --python 3.11 .venv-oldest || $(BIN)/uv venv --python $(BIN)/python .venv-oldest
	$(BIN)/uv pip install --python $(OLDEST_BIN)/python --resolution lowest-direct --only-binary :all: \
		--no-binary maskkit --editable ".[log,test]"
	touch $@

clean:
	rm -rf .venv .venv-oldest demo runs docs/_build docs/generated .pytest_cache .ruff_cache .hypothesis
