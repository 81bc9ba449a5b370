"""A policy travels with the model: every way to a decision applies the same one, and a damaged one is refused."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from crypto_lstm.architecture import build_model
from crypto_lstm.commands.main import main
from crypto_lstm.config import CLASSES, Config
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import prepare
from crypto_lstm.inference.bundle import BundleError, load_bundle, save_bundle, verify_bundle
from crypto_lstm.inference.calibration import Calibration
from crypto_lstm.inference.onnx_file import OnnxFileError, decode_onnx_file, encode_onnx_file, export_onnx
from crypto_lstm.inference.policy import DecisionPolicy
from crypto_lstm.inference.predictor import Predictor
from crypto_lstm.inference.rule import TradeRule
from crypto_lstm.storage.manifest import MANIFEST, encode_manifest
from crypto_lstm.training.saved_run import load_run, predict_candles

CONFIG = Config(timeframe="1h", sequence_length=12, future_window=24, lstm_units=(8, 4), dense_units=(4,))
CANDLES = synthetic_candles(1600, seed=3, timeframe="1h")
CLOSE = CANDLES["date"].iloc[-1] + pd.Timedelta(hours=1)
CALIBRATION = Calibration((1 / 3, 1 / 3, 1 / 3), (0.3, 0.35, 0.35), temperature=1.3, biases=(0.1, -0.2, 0.1))
RULE = TradeRule(
    "expected_value",
    ((-0.5, -0.1, 1.0), (1.2, 0.35, -0.5)),
    cost_pct=0.2,
    margin_pct=0.04,
    class_shares=(0.3, 0.35, 0.35),
)
POLICY = DecisionPolicy(CALIBRATION, RULE)
FIGURES = ["short", "hold", "long", "expected_long", "expected_short"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A bundle and an ONNX file of a network with random weights and a policy."""
    place = tmp_path_factory.mktemp("policy")
    model, rng = build_model(CONFIG), np.random.default_rng(0)
    for variable in model.trainable_weights:
        variable.assign(rng.normal(0, 0.6, variable.shape))
    run = SimpleNamespace(config=CONFIG, model=model, data=prepare(CANDLES, CONFIG), policy=POLICY)
    save_bundle(run, place / "bundle")
    bundle = load_bundle(place / "bundle")
    export_onnx(bundle, place / "model.onnx")
    return SimpleNamespace(place=place, bundle=bundle, onnx=place / "model.onnx", run=run)


@pytest.fixture
def predictor(files):
    return Predictor.load(files.onnx)


# ---------------------------------------------------------------- every way to a decision


def test_every_file_carries_the_policy(files, predictor):
    assert POLICY == files.bundle.policy == predictor.policy == load_run(files.place / "bundle").policy
    assert verify_bundle(files.place / "bundle").ok
    assert "expected return above 0.04 % after costs of 0.2 %" in str(predictor)


def test_decide_update_and_predict_agree_to_the_bit(files, predictor):
    """Three ways with one network: the newest candle of a history, one candle after the other, and a whole table."""
    table = pd.DataFrame(predictor.predict(CANDLES))
    live = Predictor.load(files.onnx).warm_up(CANDLES[:-30], now=CLOSE)
    for row in range(-30, 0):
        decision = live.update(CANDLES.iloc[row].to_dict(), now=CLOSE, max_age_candles=40)
        expected = table.iloc[row]
        assert decision.action == expected["decision"]
        assert list(decision.probabilities.values()) == expected[FIGURES[:3]].tolist()
        assert list(decision.expected_pct.values()) == expected[FIGURES[3:]].tolist()
    assert live.decide(CANDLES, now=CLOSE) == decision
    assert set(table["decision"]) == set(CLASSES), "a class is never decided for: the test is weak"


def test_a_run_decides_as_its_bundle_does(files):
    loaded = load_run(files.place / "bundle")
    table, decision = loaded.predict(CANDLES), files.bundle.decide(CANDLES, now=CLOSE)
    pd.testing.assert_frame_equal(table, predict_candles(loaded.model, loaded.scaler, CONFIG, CANDLES, POLICY))
    assert decision.action == table["decision"].iloc[-1]
    figures = [*decision.probabilities.values(), *decision.expected_pct.values()]
    np.testing.assert_allclose(figures, table[FIGURES].iloc[-1].to_numpy(float), rtol=0, atol=1e-6)
    by_policy = POLICY.choose_rows(files.bundle.probabilities(CANDLES))
    np.testing.assert_allclose(
        table[FIGURES], np.column_stack([by_policy[name] for name in FIGURES]), rtol=0, atol=1e-6
    )


def test_onnxruntime_decides_as_keras_does(files, predictor):
    by_onnx = pd.DataFrame(predictor.predict(CANDLES))
    by_keras = load_run(files.place / "bundle").predict(CANDLES)
    np.testing.assert_allclose(by_onnx[FIGURES], by_keras[FIGURES], rtol=0, atol=2e-6)
    differ = by_onnx["decision"] != by_keras["decision"]
    best = by_onnx.loc[differ, FIGURES[3:]].max(axis=1)
    assert (np.abs(best - RULE.margin_pct) < 1e-5).all(), "they differ where it is not a matter of rounding"


def test_the_reason_of_a_decision_names_its_expected_return(files):
    decision = files.bundle.decide(CANDLES, now=CLOSE)
    assert "after costs" in decision.reason and set(decision.expected_pct) == {"LONG", "SHORT"}
    json.dumps(decision.as_dict(), allow_nan=False)


# ---------------------------------------------------------------- damaged and missing policies


def change(path: tuple[str, ...], value: object) -> dict:
    """The values of the policy with one of them changed."""
    values = json.loads(json.dumps(POLICY.as_dict()))
    place = values
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return values


DAMAGED = {
    "a list": ([1], "a decision policy has calibration and rule"),
    "one part": ({"rule": None}, "a decision policy has calibration and rule"),
    "temperature of zero": (change(("calibration", "temperature"), 0), "temperature must be in"),
    "temperature of text": (change(("calibration", "temperature"), "1"), "temperature must be in"),
    "prior above 1": (change(("calibration", "prior"), [1, 1, 1]), "prior must be class shares"),
    "two biases": (change(("calibration", "biases"), [0, 0]), "biases must be three finite numbers"),
    "calibration as a number": (change(("calibration",), 3), "calibration"),
    "another rule": (change(("rule", "kind"), "always"), "kind"),
    "a cost of text": (change(("rule", "cost_pct"), "free"), "cost_pct"),
    "a negative cost": (change(("rule", "cost_pct"), -1), "cost_pct"),
    "one side": (change(("rule", "mean_returns"), [[1, 2, 3]]), "mean_returns"),
    "a margin that is true": (change(("rule", "margin_pct"), True), "margin_pct"),
    "an unknown field": (change(("rule", "hook"), "os.system"), "a rule has kind"),
}


def forge_bundle(files, place, change_facts) -> object:
    """A copy of the bundle with changed facts and a consistent manifest."""
    target = shutil.copytree(files.place / "bundle", place / "bundle")
    manifest = json.loads((target / MANIFEST).read_text())
    change_facts(manifest["facts"])
    (target / MANIFEST).write_bytes(encode_manifest({key: value for key, value in manifest.items() if key != "seal"}))
    return target


def forge_onnx(files, place, change_facts) -> object:
    """A copy of the ONNX file with changed facts, without a manifest."""
    facts, config, arrays = decode_onnx_file(files.onnx.read_bytes(), "model.onnx")
    change_facts(facts)
    kept = {name: item for name, item in facts.items() if name not in ("schema", "version", "config")}
    target = place / "model.onnx"
    target.write_bytes(encode_onnx_file(config, arrays, kept))
    return target


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_policy_is_refused_and_its_field_is_named(name, files, tmp_path):
    values, message = DAMAGED[name]
    for error, forge, load in ((BundleError, forge_bundle, load_bundle), (OnnxFileError, forge_onnx, Predictor.load)):
        with pytest.raises(error, match="its decision policy is not valid") as caught:
            load(forge(files, tmp_path, lambda facts: facts.update(policy=values)))
        assert message in str(caught.value)


@pytest.fixture(scope="module")
def plain(files, tmp_path_factory):
    """The same files as an earlier version wrote them: without the fact."""
    place = tmp_path_factory.mktemp("plain")
    bundle = load_bundle(forge_bundle(files, place, lambda facts: facts.pop("policy")))
    return SimpleNamespace(bundle=bundle, onnx=forge_onnx(files, place, lambda facts: facts.pop("policy")))


def test_a_file_without_a_policy_decides_by_the_most_likely_class(files, plain):
    assert Predictor.load(plain.onnx).policy == plain.bundle.policy == DecisionPolicy()
    table = pd.DataFrame(Predictor.load(plain.onnx).predict(CANDLES))
    chosen = np.array(CLASSES)[table[FIGURES[:3]].to_numpy().argmax(axis=1)]
    assert (chosen == table["decision"]).all() and table[FIGURES[3:]].isna().all(axis=None)
    np.testing.assert_allclose(table[FIGURES[:3]], files.bundle.probabilities(CANDLES), rtol=0, atol=1e-5)
    for decision in (plain.bundle.decide(CANDLES, now=CLOSE), Predictor.load(plain.onnx).decide(CANDLES, now=CLOSE)):
        assert decision.action == table["decision"].iloc[-1] and decision.expected_pct is None
        assert "highest probability" in decision.reason


@pytest.mark.parametrize("has_policy", [True, False])
def test_predict_writes_null_for_an_unknown_expected_return(has_policy, files, plain, tmp_path, capsys):
    CANDLES.to_feather(tmp_path / "candles.feather")
    model = files.onnx if has_policy else plain.onnx
    assert main(["predict", "--model", str(model), "--candles", str(tmp_path / "candles.feather"), "--json"]) == 0

    def refuse(text: str) -> None:
        raise AssertionError(f"JSON has no {text}")

    last = json.loads(capsys.readouterr().out, parse_constant=refuse)["last"]
    assert [isinstance(last[name], float) for name in FIGURES[3:]] == [has_policy] * 2
    assert [last[name] is None for name in FIGURES[3:]] == [not has_policy] * 2
