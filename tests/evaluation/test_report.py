"""A report is one harmless page: complete, well-formed, the same for the same input, and it names what is missing."""

import dataclasses
import hashlib
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from crypto_lstm.config import Config
from crypto_lstm.data.labels import make_labels
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.evaluation.judgement import Answers, fit_policy, judge
from crypto_lstm.evaluation.record import decode_record, encode_record, make_record, tabulate_months
from crypto_lstm.evaluation.report import (
    RECORD_FILE,
    REPORT_FILE,
    ReportError,
    ReportSource,
    describe_report,
    list_sections,
    read_report_source,
    write_page,
    write_report,
)
from crypto_lstm.storage.arrays import decode_npz
from crypto_lstm.storage.manifest import IntegrityError
from crypto_lstm.storage.verified import atomic_file

CONFIG = Config(
    timeframe="1h", sequence_length=12, future_window=24, long_tp_pct=2, long_sl_pct=1, short_tp_pct=2, short_sl_pct=1
)
BALANCED = (1 / 3, 1 / 3, 1 / 3)
HOSTILE = "\x1b[2J<script>alert(1)</script>\u202e\"'&$x$</svg></style>\u2028--><img src=http://a.b/c.png>"
SECTIONS = ["verdict", "trades", "equity", "reliability", "months", "metrics", "confusion", "rivals", "folds", "luck"]
SECTIONS += ["cautions", "training", "memory", "settings", "origin"]
HISTORY = {"loss": [1.1, 1.0], "val_loss": [1.2, 1.1], "accuracy": [0.3, 0.4], "val_accuracy": [0.4, 0.3]}
MEMORY = [{"epoch": 0, "peak_mb": 370.5}, {"epoch": 1, "peak_mb": None}]
FOLDS = [{"fold": 1, "test_from": "2024-01-01", "net_pct": 1.25}, {"fold": 2, "test_from": HOSTILE, "net_pct": None}]


@pytest.fixture(scope="module")
def market():
    candles = synthetic_candles(8000, seed=3, timeframe="1h")
    outcomes = make_labels(candles, CONFIG)
    return candles, outcomes.iloc[:4000], outcomes.iloc[4100:5500], outcomes.iloc[5600:]


def answer(part: pd.DataFrame, skill: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).dirichlet([4, 4, 4], size=len(part))
    return (1 - skill) * noise + skill * np.eye(3)[part["label"]]


def make_source(market, skill=0.2, rows=None, change=None, rival="logistic regression", **facts) -> ReportSource:
    """The source of answers of this skill on the test part, or on its first rows; `change` changes the decisions."""
    candles, training, validation, test = market
    test = test.iloc[:rows]
    prior = np.bincount(training["label"], minlength=3) / len(training)
    fit = fit_policy(answer(validation, skill, 1), validation, training, BALANCED, prior, CONFIG)
    answers = Answers.from_policy("network", answer(test, skill), fit.policy)
    if change is not None:
        answers = dataclasses.replace(answers, decisions=change(answers.decisions))
    others = [Answers.from_policy(rival, answer(test, 0.1, 2), fit.policy)]
    judgement = judge("test", candles, test, answers, CONFIG, others, [f"a caution {HOSTILE}"], random_runs=100)
    record = make_record(judgement, candles, test["label"].to_numpy(), answers, CONFIG)
    known = {"calibration": fit.calibration.as_dict(), "versions": {"python": "3"}, "crypto_lstm": "0.1.0"}
    made = ReportSource.from_judgement(judgement, CONFIG, record, **{**known, **facts})
    return dataclasses.replace(made, history=HISTORY, memory=MEMORY)


@pytest.fixture(scope="module")
def source(market):
    return make_source(market)


class Page(HTMLParser):
    """Fails for tags that are not balanced; collects links, identifiers and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.links, self.names, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self._read(tag, attributes)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self._read(tag, attributes)

    def _read(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("href", "src", "srcset", "action", "xlink:href")]
        self.names += [value for name, value in attributes if name == "id"]
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def require_sound_page(text: str) -> Page:
    """Fail for a page that is not well-formed, runs something, or refers to something outside of it."""
    page = Page(text)
    assert not {"script", "iframe", "object", "embed", "link", "img", "base", "form"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.names)
    assert len(page.names) == len(set(page.names))
    styles = "".join(re.findall(r'<style>.*?</style>|style="[^"]*"', text, re.DOTALL))
    assert "//" not in styles and "@import" not in styles and not re.search(r"url\((?!#)", styles)
    assert len(text.encode()) < 2 << 20
    assert not {character for character in text if not character.isprintable()} - {"\n"}
    return page


def test_a_page_has_every_section_and_refers_to_nothing_outside_of_it(source):
    whole = dataclasses.replace(source, folds=tuple(FOLDS))
    text = write_page(whole)
    page = require_sound_page(text)
    assert [section.name for section in list_sections(whole)] == SECTIONS
    assert set(SECTIONS) <= set(page.names)
    assert page.tags.count("svg") == 8 == text.count('role="img"') == text.count("aria-label=")
    for sentence in source.metadata["judgement"]["verdict"]:
        assert sentence in page.text
    assert page.text.index(source.metadata["judgement"]["verdict"][0]) < page.text.index("Equity")
    assert "prefers-color-scheme:dark" in text and "#0072b2" not in text and "currentColor" in text


def test_the_same_input_gives_the_same_bytes(source, market):
    assert write_page(source) == write_page(make_source(market))


def test_text_has_the_tables_in_80_columns(source):
    text = describe_report(dataclasses.replace(source, folds=tuple(FOLDS)))
    assert max(map(len, text.splitlines())) <= 80
    assert not {character for character in text if not character.isprintable()} - {"\n"}
    for word in ("Verdict", "total return (%)", "buy and hold", "logistic regression", "deflated Sharpe", "Folds"):
        assert word in text


def test_hostile_names_are_escaped_everywhere(market):
    hostile = make_source(market, rows=600, rival=HOSTILE, versions={HOSTILE: HOSTILE}, sha256={HOSTILE: HOSTILE})
    metadata = {**hostile.metadata, "pair": HOSTILE, "platform": HOSTILE, "interrupted": HOSTILE}
    metadata["config"] = {**metadata["config"], HOSTILE: HOSTILE}
    text = write_page(ReportSource(metadata, hostile.record, ({HOSTILE: HOSTILE},)))
    page = require_sound_page(text)
    assert "<script>alert(1)</script>" in page.text and "UNFINISHED" in page.text


def keep_none(decisions):
    return np.ones_like(decisions)


def keep_one(decisions):
    one = keep_none(decisions)
    one[5] = 2
    return one


def test_without_a_trade_the_report_says_so(market):
    source = make_source(market, change=keep_none)
    page = require_sound_page(write_page(source))
    assert "The rule made no trade." in page.text and page.tags.count("svg") == 7
    assert "too few trades to measure luck" in describe_report(source)


def test_one_trade_is_drawn(market):
    page = require_sound_page(write_page(make_source(market, change=keep_one)))
    assert "All trades" in page.text and page.tags.count("svg") == 8


def test_a_part_without_intervals_names_the_reason(market):
    source = make_source(market, rows=150)
    page = require_sound_page(write_page(source))
    assert "Without an interval: the part spans" in page.text and "unclear" in page.text
    assert "balanced accuracy" in describe_report(source)


def test_thousands_of_trades_are_thinned_and_the_page_stays_small(source):
    record = source.record
    trades = pd.concat([record.trades] * 40, ignore_index=True).sort_values("entry_time", ignore_index=True)
    text = write_page(ReportSource(source.metadata, dataclasses.replace(record, trades=trades)))
    page = require_sound_page(text)
    assert f"150 of {len(trades):,} trades, evenly spaced in their order" in page.text
    assert len(text) < 1.5 * len(write_page(source))


def test_months_multiply_to_the_total_return(source):
    months = tabulate_months(source.record)
    growth = np.prod(1 + months["model_pct"] / 100)
    total = source.metadata["judgement"]["simulation"]["figures"]["total_return_pct"]
    assert 100 * (growth - 1) == pytest.approx(total, abs=1e-3)
    assert months["trades"].sum() == len(source.record.trades)
    assert months["won"].sum() == (source.record.trades["net_pct"] > 0).sum()


def write_folder(folder, source, record=True) -> dict:
    """A folder as `train` writes it, with metadata and record only."""
    data = encode_record(source.record)
    (folder / RECORD_FILE).write_bytes(data)
    metadata = {**source.metadata, "crypto_lstm": "0.1.0"}
    if record:
        metadata["sha256"] = {"record": hashlib.sha256(data).hexdigest()}
    with atomic_file(folder / "metadata.json") as new:
        new.write_text(json.dumps(metadata))
    return metadata


def test_a_folder_gives_the_report_of_the_values_in_memory(source, tmp_path):
    metadata = write_folder(tmp_path, source)
    path = write_report(tmp_path)
    assert path == tmp_path / REPORT_FILE
    assert path.read_text(encoding="utf-8") == write_page(ReportSource(metadata, source.record))
    assert describe_report(read_report_source(tmp_path)) == describe_report(ReportSource(metadata, source.record))


def test_a_run_of_an_older_version_is_reported_without_pictures(source, tmp_path):
    write_folder(tmp_path, source, record=False)
    page = require_sound_page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "no record of the judgement, so there are no pictures" in page.text and "svg" not in page.tags
    bare = ReportSource({"crypto_lstm": "0", "config": CONFIG.as_dict(), "pair": "BTCUSDT"})
    assert "This run was not judged" in require_sound_page(write_page(bare)).text


@pytest.mark.parametrize("value", [None, 3, "text", [], {}, [None], {"a": [1]}])
def test_metadata_of_another_form_are_no_crash(source, value):
    judgement = source.metadata["judgement"]
    for name in judgement:
        changed = {**source.metadata, "judgement": {**judgement, name: value}}
        require_sound_page(write_page(ReportSource(changed)))
    for name in source.metadata:
        changed = ReportSource({**source.metadata, name: value})
        require_sound_page(write_page(changed))
        describe_report(changed)


def test_every_damaged_byte_of_the_record_is_noticed(source, tmp_path):
    write_folder(tmp_path, source)
    data = (tmp_path / RECORD_FILE).read_bytes()
    for place in np.linspace(0, len(data) - 1, 20).astype(int):
        changed = bytearray(data)
        changed[place] ^= 1
        (tmp_path / RECORD_FILE).write_bytes(bytes(changed))
        with pytest.raises(IntegrityError, match="expected sha256"):
            write_report(tmp_path)
    (tmp_path / RECORD_FILE).unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        write_report(tmp_path)
    assert not (tmp_path / REPORT_FILE).exists()


CHANGES = {
    "labels": lambda values: values + np.int8(3),
    "raw": lambda values: np.where(values > 0.5, np.float32("nan"), values),
    "probabilities": lambda values: values[:, :2],
    "decisions": lambda values: values.astype("int64"),
    "times": lambda values: values[::-1],
    "closes": lambda values: np.where(values > values.mean(), np.inf, values),
    "equity": lambda values: values[:1],
    "accounts": lambda values: values[::-1],
    "random_returns": lambda values: values[:, None],
    "trade_side": lambda values: values - np.int8(1),
    "trade_reason": lambda values: values + np.int8(5),
    "trade_net_pct": lambda values: values[:-1],
    "trade_entry_time": lambda values: values.astype("float64"),
    "labels ": lambda values: None,  # it is left out
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_forged_record_is_refused(source, name):
    arrays = decode_npz(encode_record(source.record), "judgement.npz")
    changed = CHANGES[name](arrays[name.strip()])
    if changed is None:
        del arrays[name.strip()]
    else:
        arrays[name] = changed
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    with pytest.raises(IntegrityError, match=f"is no record of a judgement.*{name.strip()}"):
        decode_record(buffer.getvalue(), "judgement.npz")


def test_damaged_metadata_and_other_folders_are_typed_errors(source, tmp_path):
    with pytest.raises(ReportError, match="is no finished run"):
        write_report(tmp_path)
    write_folder(tmp_path, source)
    file = tmp_path / "metadata.json"
    text = file.read_text()
    file.write_text(text.replace("verdict", "verdicu"))
    with pytest.raises(IntegrityError):
        write_report(tmp_path)
    (tmp_path / "metadata.json.manifest.json").unlink()
    file.write_text('{"a": 1}')
    with pytest.raises(IntegrityError, match="is no metadata of a run"):
        write_report(tmp_path)


def test_a_foreign_file_is_never_replaced(source, tmp_path):
    source = dataclasses.replace(source, record=None)
    foreign = tmp_path / "mine.html"
    foreign.write_text("mine")
    (tmp_path / "folder.html").mkdir()
    for path in (foreign, tmp_path / "folder.html"):
        with pytest.raises(ReportError, match="exists and is no report"):
            write_report(source, path)
    with pytest.raises(ReportError, match=r"must end in \.html"):
        write_report(source, tmp_path / "report.pdf")
    with pytest.raises(ReportError, match="expected the path of the report"):
        write_report(source)
    assert foreign.read_text() == "mine" and len(list(tmp_path.iterdir())) == 2
    assert write_report(source, tmp_path / "new" / "a.html") == write_report(source, tmp_path / "new" / "a.html")


def test_a_report_needs_no_tensorflow(source, tmp_path):
    write_folder(tmp_path, source)
    script = (
        "import sys; from crypto_lstm.commands.main import main; code = main(['report', sys.argv[1]]);"
        "print(sorted({'tensorflow', 'keras', 'sklearn'} & set(sys.modules))); sys.exit(code)"
    )
    words = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]"
