# make demo    set everything up in .venv and show the whole thing on a synthetic market
# make test    set everything up and run every check
# make lab     JupyterLab on the notebooks
# make notebooks    clean and export the notebooks, make README.md from nbs/index.ipynb
# make bench   speed and memory, measured on this machine beside peers, PyTorch too: about 15 minutes, writes benchmarks/RESULTS.md
# make bench-growth   how each grows: windows, batch, timesteps, candles; its tables join benchmarks/RESULTS.md
# make bench-gpu   stock Keras against ours on a GPU; without one it says so
# make bench-trust   kills, failing disks, changed bytes, attacks, NaN, beside plain Keras: about an hour
# make bench-memory   forecasts of memory against 40 measured trainings: more than an hour
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
TORCH := .venv-torch/.ready

.PHONY: setup demo test lab notebooks bench bench-growth bench-gpu bench-memory bench-trust
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

$(TORCH):
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python -m pip install --quiet torch==2.13.0 numpy
	@touch $(TORCH)

bench: setup $(TORCH)
	$(BIN)/python benchmarks/bench.py

bench-growth: setup $(TORCH)
	$(BIN)/python benchmarks/bench.py --only growth

bench-gpu: setup
	$(BIN)/python benchmarks/gpu.py

bench-memory: setup
	$(BIN)/python benchmarks/memory.py

bench-trust: setup
	$(BIN)/python benchmarks/trust.py
