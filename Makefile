# make demo   everything on a fresh machine: environment, a real network on real data, table, files, report in out/
# make test   the test suite          make check  the same after ruff and mypy, and which lines no test reaches
# make bench  every claim measured    make lock   the lock files made again from this environment
# make check-matrix  another Python, the oldest torch, a bare environment

PYTHON ?= python3
BIN := .venv/bin

test check: export PYTHONDONTWRITEBYTECODE =  # where it is set, every process of the tests would compile all modules anew

.PHONY: demo test check check-matrix bench lock format clean

demo: .venv/ready
	$(BIN)/enxuto demo --out out || [ $$? -eq 3 ]  # 3: a goal was missed, and the table says so

test: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist worksteal -p tools.lines

check-matrix: .venv/dev
	$(BIN)/python tools/matrix.py

bench: .venv/dev
	$(BIN)/python bench/all.py

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: .venv/dev
	$(BIN)/python tools/lock.py

# torch comes first, so that nothing pulls another one
.venv/ready: requirements.lock constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

.venv/dev: .venv/ready requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.lock
	touch $@

clean:
	rm -rf .venv .matrix out .pytest_cache .mypy_cache .ruff_cache
