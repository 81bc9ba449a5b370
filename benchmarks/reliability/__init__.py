"""Kills, disk errors, changed bytes, attacks and NaN against saved models and trainings, beside plain Keras."""

import sys

from benchmarks.paths import ROOT

# The fault injectors are those of the tests. They import each other as `support`, as pytest.ini sets it up.
sys.path.insert(0, str(ROOT / "tests"))
