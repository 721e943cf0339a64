# The two commands: `make demo` and `make test`. Each sets up .venv by itself. `make quick` is for the edit loop.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Processes that run the tests side by side. Each takes up to 2 GiB of memory.
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal

# A third, optional command: `make serve` serves the demo at http://127.0.0.1:8000/ until Ctrl-C.
.PHONY: demo serve test tests quick lint clean

demo: $(INSTALLED)
	$(BIN)/mmn-fast demo --html mmn-fast-demo.html
	$(BIN)/python -m tests.golden.demo

serve: $(INSTALLED)
	$(BIN)/mmn-fast serve

# `lint` and `tests` run at the same time; a finding of either is shown and fails the command.
test: $(INSTALLED)
	$(MAKE) --no-print-directory --jobs=2 lint tests

tests: $(INSTALLED)
	$(PYTEST)

# Leaves out full-size models, Triton's interpreter, exports and other slow tests (see CONTRIBUTING.md).
quick: $(INSTALLED)
	$(PYTEST) -q -m "not full and not interpreter and not slow and not long"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	test -e mmn_fast/export || ln -s ../export mmn_fast/export # mypy looks for mmn_fast.export there
	$(BIN)/mypy

# The editable installation makes the tests run on this tree; changed sources compile the extension again.
$(INSTALLED): setup.py pyproject.toml constraints.txt CMakeLists.txt $(shell find csrc -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info mmn_fast/*.so
