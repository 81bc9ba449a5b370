# make demo         set everything up in .venv and show the whole thing on a synthetic market
# make test         set everything up and run every check
# make lab          JupyterLab on the notebooks
# make notebooks    clean and export the notebooks, make README.md from nbs/index.ipynb
# make bot          run a strategy of `crypto-lstm freqtrade` in freqtrade, against an exchange on this machine
# make docs         the documentation site in _docs, from notebooks and docstrings; open _docs/index.html
# make browser      JupyterLab, the site and a report in a real browser (Chromium); pictures in build/browser
# make mutants      delete and change guards of the code that saves and loads; a test must fail each time: hours
#
# Measurements, each of which writes to benchmarks/results (`python -m benchmarks` lists more):
# make bench               speed and memory beside Keras, PyTorch and NumPy: about 15 minutes
# make bench-growth        growth with windows, batch, timesteps and candles: half an hour
# make bench-gpu           Keras against ours on a GPU; without one it prints that
# make bench-reliability   kills, disk errors, changed bytes, attacks, NaN, beside plain Keras: about an hour
# make bench-memory        forecasts of memory against 40 measured trainings: more than an hour
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
TORCH := .venv-torch/.ready
FREQTRADE := .venv-freqtrade/.ready-2026.9
DOCS := .venv-docs/.ready
BROWSER := .venv/.browser

.PHONY: setup demo test bot lab notebooks mutants docs browser
.PHONY: bench bench-growth bench-gpu bench-memory bench-reliability bench-trust
setup: $(READY)

$(READY): settings.ini setup.py
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); \
		sys.exit(None if ok else "expected Python 3.11, 3.12 or 3.13, got " + sys.version.split()[0] + \
		": give another one, make PYTHON=python3.12 ...")'
	@echo "setting up .venv: this takes a few minutes the first time"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS="ignore:Editable installation" $(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $(READY)

demo: setup
	$(BIN)/crypto-lstm demo
	@echo "The command is in .venv: type  source .venv/bin/activate  before these."

test: setup
	$(BIN)/python tools/check.py

$(FREQTRADE):
	$(PYTHON) -m venv .venv-freqtrade
	.venv-freqtrade/bin/python -m pip install --quiet "freqtrade[hyperopt]==2026.9" onnxruntime
	@touch $(FREQTRADE)

# a copy is built: the checks may build the package in this folder at the same time
bot: setup $(FREQTRADE)
	@rm -rf build/bot && mkdir -p build/bot
	@cp -r crypto_lstm setup.py setup.cfg settings.ini MANIFEST.in README.md CHANGELOG.md LICENSE build/bot
	.venv-freqtrade/bin/python -m pip install --quiet ./build/bot
	.venv-freqtrade/bin/python -m pip install --quiet --no-deps --force-reinstall ./build/bot
	$(BIN)/python tools/freqtrade_check.py

lab: setup
	$(BIN)/jupyter lab nbs

notebooks: setup
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	$(BIN)/python tools/fold.py
	$(BIN)/python tools/readme.py

$(DOCS): settings.ini
	$(PYTHON) -m venv .venv-docs
	sed -n 's/^docs_requirements = //p' settings.ini | xargs .venv-docs/bin/python -m pip install --quiet
	@touch $(DOCS)

docs: $(DOCS)
	.venv-docs/bin/python tools/docs.py

$(BROWSER): $(READY)
	sed -n 's/^browser_requirements = //p' settings.ini | xargs $(BIN)/python -m pip install --quiet
	@touch $(BROWSER)

browser: $(BROWSER) $(DOCS)
	$(BIN)/python tools/browser.py

$(TORCH):
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python -m pip install --quiet torch==2.13.0 numpy
	@touch $(TORCH)

bench: setup $(TORCH)
	$(BIN)/python -m benchmarks speed

bench-growth: setup $(TORCH)
	$(BIN)/python -m benchmarks growth

bench-gpu: setup
	$(BIN)/python -m benchmarks gpu

bench-memory: setup
	$(BIN)/python -m benchmarks memory

bench-reliability bench-trust: setup
	$(BIN)/python -m benchmarks reliability

mutants: setup
	$(BIN)/mutmut run
	$(BIN)/mutmut results
	$(BIN)/python tools/mutants.py
