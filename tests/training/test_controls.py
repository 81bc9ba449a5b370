"""Two controls of a training.

On a market without an edge it must learn nothing and trade next to nothing; on a market with a planted edge it must
learn which way the price moves.
"""

import pytest

from crypto_lstm.commands.demo import DEMO_CANDLES, DEMO_CONFIG, DEMO_EDGE, DEMO_SEED
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.training.trainer import train

pytestmark = pytest.mark.usefixtures("bare_trainings")


def run(edge: float, folder) -> object:
    candles = synthetic_candles(DEMO_CANDLES, seed=DEMO_SEED, edge=edge)
    config = DEMO_CONFIG.replace(epochs=3, sequence_length=30, lstm_units=(16, 8))
    return train(candles, config, folder / "run", tensorboard=False, ledger=folder / "ledger.jsonl")


@pytest.fixture(scope="module")
def run_without_edge(tmp_path_factory):
    return run(0.0, tmp_path_factory.mktemp("fair"))


@pytest.fixture(scope="module")
def run_with_edge(tmp_path_factory):
    return run(DEMO_EDGE, tmp_path_factory.mktemp("planted"))


def test_nothing_is_learnt_on_a_market_without_an_edge(run_without_edge):
    judgement = run_without_edge.judgement
    assert judgement.intervals["balanced_accuracy"].low is not None, "the part is too short for an interval"
    assert judgement.finding == "nothing" and not judgement.learnt and not judgement.pays
    assert "has learnt nothing beyond chance" in judgement.verdict
    assert len(judgement.model.simulation.trades) <= 20


def test_a_planted_edge_is_learnt_and_holds_on_test_data(run_with_edge):
    judgement = run_with_edge.judgement
    assert judgement.learnt, judgement.verdict
    assert judgement.intervals["log_loss_gain"].is_above(0.0)
    low = judgement.intervals["balanced_accuracy"].low
    assert low - judgement.chance > 0.02, f"margin {low - judgement.chance:.3f} of the interval's lower end"
    assert "has learnt which way the price moves" in judgement.verdict
