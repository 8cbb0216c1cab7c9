# Two commands do everything on a fresh machine: `make demo` and `make test`.
VENV ?= .venv
OUT ?= runs/demo
PYTHON ?= python3
BIN = $(VENV)/bin
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations=15

.DEFAULT_GOAL := help
.PHONY: help install demo test test-full format lint types docs faults

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

install: $(VENV)/.installed ## .venv with pinned versions of everything

# mmcv-lite asks for opencv-python, which needs the system's libGL; the headless wheel with the same module does not.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	$(BIN)/python -m pip uninstall --quiet --yes opencv-python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --force-reinstall --no-deps opencv-python-headless
	touch $@

demo: install ## from images to the report on handwritten digits, in 14 minutes on two cores
	$(BIN)/sslight demo $(OUT)

test: lint types docs ## lint, types, docs, and all tests but the slow ones
	$(PYTEST)

test-full: install ## all tests, the slow ones too: the whole evaluation matrix
	$(PYTEST) -m ''

format: install ## format the code and apply ruff's automatic fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: install ## ruff check and ruff format --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

types: install ## mypy over the product
	$(BIN)/mypy

# The variable silences mkdocs-material's notice about MkDocs 2.
docs: install ## build the site from docs/ and the code's tables into runs/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Kill, cut, fill, starve and feed garbage to every command, in the full numbers.
faults: install ## one table of what survived kills, cuts, full disks and garbage
	$(BIN)/python -m tests.faults
