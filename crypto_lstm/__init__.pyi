"""Names of the front door for type checkers and completion; `__init__.py` imports them when they are used."""

from crypto_lstm.architecture import build_model as build_model
from crypto_lstm.builder import DualWindowLSTMBuilder as DualWindowLSTMBuilder
from crypto_lstm.callbacks import create_callbacks as create_callbacks
from crypto_lstm.config import Config as Config
from crypto_lstm.data.candle_report import check_candles as check_candles
from crypto_lstm.data.candles import read_candles as read_candles
from crypto_lstm.data.features import make_features as make_features
from crypto_lstm.data.labels import make_labels as make_labels
from crypto_lstm.data.synthetic import synthetic_candles as synthetic_candles
from crypto_lstm.data.windows import prepare as prepare
from crypto_lstm.evaluation.judgement import Judgement as Judgement
from crypto_lstm.evaluation.metrics import evaluate as evaluate
from crypto_lstm.gpu import setup_gpu_memory as setup_gpu_memory
from crypto_lstm.inference.bundle import load_bundle as load_bundle
from crypto_lstm.inference.bundle import save_bundle as save_bundle
from crypto_lstm.inference.decision import Decision as Decision
from crypto_lstm.inference.live import LiveRunner as LiveRunner
from crypto_lstm.inference.onnx_file import export_onnx as export_onnx
from crypto_lstm.inference.predictor import Predictor as Predictor
from crypto_lstm.inference.rule import TradeRule as TradeRule
from crypto_lstm.memory import estimate_memory as estimate_memory
from crypto_lstm.persistence import load_model as load_model
from crypto_lstm.persistence import save_model as save_model
from crypto_lstm.profiling.batch_size import max_batch_size as max_batch_size
from crypto_lstm.training.saved_run import load_run as load_run
from crypto_lstm.training.saved_run import predict_candles as predict_candles
from crypto_lstm.training.trainer import train as train
from crypto_lstm.utils.errors import CryptoLSTMError as CryptoLSTMError

__version__: str
