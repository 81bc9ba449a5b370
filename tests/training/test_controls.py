"""Two controls of a training.

On a market without an edge it must not beat the baselines; on a market with a planted edge it must.
"""

import pytest

from crypto_lstm.commands.demo import DEMO_CANDLES, DEMO_CONFIG, DEMO_EDGE, DEMO_SEED
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.training.trainer import train


def run(edge: float, folder) -> object:
    candles = synthetic_candles(DEMO_CANDLES, seed=DEMO_SEED, edge=edge)
    config = DEMO_CONFIG.replace(epochs=3, sequence_length=30, lstm_units=(16, 8))
    return train(candles, config, folder, tensorboard=False)


@pytest.fixture(scope="module")
def run_without_edge(tmp_path_factory):
    return run(0.0, tmp_path_factory.mktemp("fair") / "run")


@pytest.fixture(scope="module")
def run_with_edge(tmp_path_factory):
    return run(DEMO_EDGE, tmp_path_factory.mktemp("planted") / "run")


def test_a_model_does_not_beat_the_baselines_on_a_market_without_an_edge(run_without_edge):
    for evaluation in (run_without_edge.validation, run_without_edge.test):
        assert evaluation.intervals, "the part is too short for an interval"
        assert not any(evaluation.beats.values()) and not evaluation.learnt
        assert "nothing beats the baselines" in evaluation.verdict


def test_a_planted_edge_is_learnt_and_holds_on_test_data(run_with_edge):
    assert run_with_edge.test.learnt and run_with_edge.test.beats["log_loss"]
    low, _ = run_with_edge.test.intervals["balanced_accuracy"]
    best = max(baseline["balanced_accuracy"] for baseline in run_with_edge.test.baselines.values())
    assert low - best > 0.02, f"margin {low - best:.3f} of the interval's lower end"
    assert "beats the baselines beyond chance" in run_with_edge.test.verdict
