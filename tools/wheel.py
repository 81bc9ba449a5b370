"""Build sdist and wheel, check them with twine, and use the wheel in two new environments.

In the first, with the extra `train`, `doctor`, a training of two epochs and `predict` run. In the second, without an
extra, a bot decides (`tools/bot.py`).

    wheel.py             link the requirements of the wheel, and theirs, from the environment of this Python
    wheel.py --download  install them with pip instead, which takes a minute longer
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

from bot import create_environment, decide_alone, measure_size_mb, run
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SMALL = """
    timeframe=1h sequence_length=12 future_window=24 lstm_units=8,4 dense_units=4 batch_size=64 epochs=2
    long_tp_pct=2 short_tp_pct=2 long_sl_pct=2 short_sl_pct=2
"""
MAKE_CANDLES = """
from crypto_lstm.data.synthetic import synthetic_candles

synthetic_candles(5000, seed=3, timeframe="1h").to_parquet("candles.parquet")
"""


def build(place: Path) -> tuple[Path, Path]:
    """The wheel and the sdist; the wheel is built from the sdist, and twine checks both."""
    run(sys.executable, "-m", "build", "--outdir", place / "dist", ROOT, cwd=ROOT)
    (wheel,) = (place / "dist").glob("*.whl")
    (sdist,) = (place / "dist").glob("*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist, cwd=place)
    return wheel, sdist


def create_linked_environment(path: Path, wheel: Path) -> Path:
    """A new environment with the wheel, and with links to the packages that it requires and to no others.

    Fails where a required package is not installed here, or has another version than required.
    """
    environment = create_environment(path, ["--no-deps", wheel])
    packages = next((environment / "lib").glob("python*/site-packages"))
    (installed,) = Distribution.discover(name="crypto_lstm", path=[str(packages)])
    waiting, linked = list_requirements(installed, "train"), set[tuple[str, str]]()
    while waiting:
        requirement = waiting.pop()
        found = distribution(requirement.name)
        assert requirement.specifier.contains(found.version, prereleases=True), (str(requirement), found.version)
        for extra in ("", *requirement.extras):
            if (canonicalize_name(requirement.name), extra) not in linked:
                linked.add((canonicalize_name(requirement.name), extra))
                waiting += list_requirements(found, extra)
                link_files(found, packages)
    return environment


def list_requirements(package: Distribution, extra: str) -> list[Requirement]:
    """What a package requires on this system, with an extra of it or without (an empty text)."""
    found = [Requirement(text) for text in package.requires or []]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": extra})]


def link_files(package: Distribution, packages: Path) -> None:
    """Link the files of an installed package into another folder of packages; leaves out commands.

    Compiled modules are linked too, else the new environment would compile all of TensorFlow again.
    """
    for file in package.files or []:
        target = packages / file
        source = Path(str(file.locate()))
        if ".." not in file.parts and source.exists() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)


def train_and_predict(wheel: Path, place: Path, download: bool) -> str:
    """Install the wheel with the extra `train`, and run `doctor`, `train` and `predict`; returns a sentence."""
    if download:
        environment = create_environment(place / "env", [f"{wheel}[train]"])
    else:
        environment = create_linked_environment(place / "env", wheel)
    command, python = environment / "bin" / "crypto-lstm", environment / "bin" / "python"
    words = ["--set", "lstm_units=8", "batch_size=64"]
    diagnosis = json.loads(run(command, "doctor", "--json", *words, cwd=place))
    assert diagnosis["healthy"], diagnosis
    run(python, "-c", MAKE_CANDLES, cwd=place)
    candles = ["--candles", "candles.parquet", "--json"]
    trained = json.loads(run(command, "train", *candles, "--output", "run", "--set", *SMALL.split(), cwd=place))
    assert trained["epochs_run"] == 2, trained
    answers = json.loads(run(command, "predict", *candles, "--model", "run", cwd=place))
    assert answers["last"]["decision"] in trained["classes"], answers
    done = f"installed, doctor found no fault, trained 2 epochs, {answers['rows']} decisions"
    return f"{done}; the whole installation: {measure_size_mb(environment):,.0f} MB" if download else done


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        wheel, sdist = build(place)
        print(f"{wheel.name} and {sdist.name}: {train_and_predict(wheel, place, '--download' in sys.argv[1:])}")
        print(decide_alone(wheel, place))


if __name__ == "__main__":
    main()
