# `make test` and `make demo` work on a fresh machine: they create the virtual environment and install what they need.
VENV ?= .venv
PYTHON ?= python3
RUN = $(VENV)/bin/python
# One test process a core, each with one thread.
TEST_IN_PARALLEL = OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses auto --dist worksteal
INSTALLED = $(VENV)/.installed
CONFORMANCE = .cache/conformance

.PHONY: help install test test-slow demo demo-quick lint format conformance test-core test-lowest app test-app
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(INSTALLED): pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable ".[dev]"
	touch $@

install: $(INSTALLED) ## Create the virtual environment (done by the other targets when needed)

test: $(INSTALLED) ## Run the test suite
	$(TEST_IN_PARALLEL)

test-slow: $(INSTALLED) ## Run the tests that take minutes
	$(RUN) -m pytest -m slow

demo: $(INSTALLED) ## Pre-train on the bundled images and show what was learned; DEMO_FLAGS="--seed 1" and the like go along
	$(RUN) examples/demo.py --output_dir outputs/demo $(DEMO_FLAGS)

demo-quick: $(INSTALLED) ## The same with a few steps, to see that everything runs
	$(RUN) examples/demo.py --output_dir outputs/demo-quick --quick

lint: $(INSTALLED) ## Check style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(INSTALLED) ## Repair style where ruff can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

conformance: $(INSTALLED) ## Run Transformers' own common tests, from the source package of the installed version
	$(RUN) tests/conformance/assemble.py $(CONFORMANCE)
	PYTHONPATH=$(CONFORMANCE) $(TEST_IN_PARALLEL) tests/conformance

# The core alone, in an environment of its own: no torchvision, none of the extras.
test-core: ## Run the tests that need the core dependencies alone
	test -x $(VENV)-core/bin/python || $(PYTHON) -m venv $(VENV)-core
	$(VENV)-core/bin/python -m pip install --quiet "torch==2.13.0" --editable . pytest
	$(VENV)-core/bin/python -m pytest tests/core

# Warnings of old versions are their own.
test-lowest: ## Run core and parity tests with the lowest versions that pyproject.toml allows; PYTHON=python3.10 for its lowest
	test -x $(VENV)-lowest/bin/python || $(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet uv
	$(VENV)-lowest/bin/uv pip compile --quiet --python $(VENV)-lowest/bin/python --resolution lowest-direct \
		--extra train --extra figures --output-file $(VENV)-lowest/lowest.txt pyproject.toml
	$(VENV)-lowest/bin/python -m pip install --quiet --requirement $(VENV)-lowest/lowest.txt pytest
	$(VENV)-lowest/bin/python -m pip install --quiet --no-deps --editable .
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest --override-ini filterwarnings=default \
		tests/core tests/test_parity.py tests/conversion

# The app has an environment of its own too: Gradio wants an older Pillow.
$(VENV)-app/.installed: pyproject.toml
	test -x $(VENV)-app/bin/python || $(PYTHON) -m venv $(VENV)-app
	$(VENV)-app/bin/python -m pip install --quiet "torch==2.13.0" --editable ".[app]"
	touch $@

app: $(VENV)-app/.installed ## Look at the checkpoint that ships in a browser; APP_FLAGS="--model FOLDER" and the like go along
	$(VENV)-app/bin/python app/app.py $(APP_FLAGS)

test-app: $(VENV)-app/.installed ## Use the app in a headless Chromium, which has to be installed
	$(VENV)-app/bin/python -m pip install --quiet pytest playwright
	$(VENV)-app/bin/python -m pytest tests/app
