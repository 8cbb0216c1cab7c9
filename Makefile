# Two commands do everything on a fresh machine: `make demo` and `make test`.
VENV ?= .venv
OUT ?= runs/demo
PYTHON ?= python3
BIN = $(VENV)/bin
WORKERS ?= 2

.PHONY: install demo test test-full faults

install: $(VENV)/.installed

# mmcv-lite asks for opencv-python, which needs the system's libGL; the headless wheel with the same module does not.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	$(BIN)/python -m pip uninstall --quiet --yes opencv-python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --force-reinstall --no-deps opencv-python-headless
	touch $@

demo: install
	$(BIN)/sslight demo $(OUT)

test: install
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations=15

# Everything `make test` leaves out for time: the whole evaluation matrix.
test-full: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m '' -n $(WORKERS) --dist loadfile --durations=15

# Kill, cut, fill, starve and feed garbage to every command, in the full numbers; one table of what survived.
faults: install
	$(BIN)/python -m tests.faults
