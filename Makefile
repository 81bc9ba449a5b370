# make demo    set everything up in .venv and show the whole thing on a synthetic market
# make test    set everything up and run every check
# make lab     JupyterLab on the notebooks
# make notebooks    clean and export the notebooks, make README.md from nbs/index.ipynb
# make bench   speed and memory, measured on this machine beside peers
# make bench-trust   kills, failing disks, changed bytes, attacks, NaN, beside plain Keras: about an hour
# make bench-memory   forecasts of memory against 40 measured trainings: more than an hour
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test lab notebooks bench bench-memory bench-trust
setup: $(READY)

$(READY): settings.ini setup.py
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); sys.exit(None if ok else "Python 3.11, 3.12 or 3.13 is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@echo "setting up .venv: this takes a few minutes the first time"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $(READY)

demo: setup
	$(BIN)/crypto-lstm demo

test: setup
	$(BIN)/python tools/check.py

lab: setup
	$(BIN)/jupyter lab nbs

notebooks: setup
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	$(BIN)/python tools/readme.py

bench: setup
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/candles.py
	$(BIN)/python benchmarks/feeding.py
	$(BIN)/python benchmarks/memory.py --quick

bench-memory: setup
	$(BIN)/python benchmarks/memory.py

bench-trust: setup
	$(BIN)/python benchmarks/trust.py
