"""The reader of traced train steps: its parts on small graphs, and its sums against formulas and runs.

The tests follow the sections of `tests/support/traced_graph.py`, where the reasoning stands.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from unittest.mock import patch

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from support import traced_graph
from support.traced_graph import trace_loops, trace_memory

from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config
from crypto_lstm.layers import LowMemoryLSTM, to_keras_model
from crypto_lstm.memory import LOW_MEMORY_PARTS, UnsupportedMemoryError

FLOAT = 4  # bytes


def build_stack(kind, units, inputs=5, timesteps=6, batch=None, **settings):
    """A compiled model of recurrent layers. On a machine with a GPU too it runs them as loops."""
    if kind in (layers.LSTM, layers.GRU):
        settings = {"use_cudnn": False, **settings}
    model = keras.Sequential([keras.Input((timesteps, inputs), batch_size=batch)])
    for number, width in enumerate(units):
        is_last = number == len(units) - 1
        model.add(kind(width, return_sequences=not is_last, name=f"layer_{number}", **settings))
    model.add(layers.Dense(3, dtype="float32"))
    model.compile("adam", "mse", jit_compile=False)
    return model


def build_compiled(*stack):
    """A compiled model of these layers."""
    model = keras.Sequential(list(stack))
    model.compile("adam", "mse", jit_compile=False)
    return model


def build_lstm(units, **settings):
    return layers.LSTM(units, use_cudnn=False, **settings)


def find_loops(model, batch):
    """The graph of a model's step and its loops by name."""
    loops = {}
    graph = traced_graph._trace_step(model, traced_graph._make_input_specs(model, batch))
    traced_graph._find_needed(graph, graph.outputs, loops, with_shapes=True)
    return graph, loops


def keras_lstm_bytes(batch, timesteps, inputs, units, *, dropout=False, recurrent=False, first=False):
    """Bytes that the loop of an LSTM layer of Keras keeps, float32, from its equations.

    For each timestep and window: four gates, the cell, its tanh and the state (7 per unit), and the input. With
    recurrent dropout four masked states more; with both dropouts four masked inputs; and for each timestep,
    whatever the batch, the slices of the weights. A dropped input is a tensor of its own. If the layer is not the
    first, the input list is kept too.
    """
    per_window = (11 if recurrent else 7) * units
    per_window += (4 if dropout and recurrent else 1) * inputs
    if dropout and not first:
        per_window += inputs
    weights = 4 * units * ((0 if first else inputs) + units) if recurrent else 0
    return FLOAT * timesteps * (batch * per_window + weights)


# ---------------------------------------------------------------- the parts, on small graphs


@pytest.fixture(scope="module")
def simple():
    """A model of one simple recurrent layer with 4 units, its graph and its loops."""
    model = build_stack(layers.SimpleRNN, (4,))
    return model, *find_loops(model, 2)


def test_a_keras_layer_is_one_loop_forward_and_one_backward(simple):
    _, graph, loops = simple
    assert sum("While" in op.type for op in graph.get_operations()) == 2
    assert sorted(traced_graph._is_backward_loop(loop) for loop in loops.values()) == [False, True]


def test_a_loop_needs_the_variables_from_which_its_outputs_and_its_end_are_made():
    @tf.function
    def loop_by_hand(x):
        def body(i, a, b, c):
            return i + 1, a * 2.0, a + 1.0, c * c

        return tf.while_loop(lambda i, a, b, c: i < 3, body, (0, x, x, x))[2]

    graph, loops = loop_by_hand.get_concrete_function(tf.TensorSpec((2,))).graph, {}
    traced_graph._find_needed(graph, graph.outputs, loops, with_shapes=True)
    (loop,) = loops.values()
    names = ["iterations", "most iterations", "i", "a", "b", "c"]  # the first two are TensorFlow's own
    # `b` is made from `a`, and the counter `i` ends the loop; `c` is made only from itself
    assert [names[number] for number in sorted(loop.variables)] == ["i", "a", "b"]


def test_a_simple_layer_keeps_its_input_and_its_state(simple):
    # h = tanh(x W + h_before U + b): the gradient needs x and h_before for the weights, and h for tanh.
    # h_before is h of the previous timestep, so a batch of 2 with 5 inputs and 4 units keeps 2 x 5 and 2 x 4 floats
    model, _, loops = simple
    (forward,) = (loop for loop in loops.values() if not traced_graph._is_backward_loop(loop))
    assert sorted(traced_graph._pushed_bytes(forward, 2).values()) == [FLOAT * 2 * 4, FLOAT * 2 * 5]
    assert [str(sequence.shape) for sequence in traced_graph._find_sequences(forward)] == ["(6, None, 5)"]
    assert traced_graph._output_bytes(forward, 2) == FLOAT * 2 * 4  # only the last timestep is returned
    assert not traced_graph._needs_input_gradient(forward, loops)
    (trace,) = trace_loops(model, 2)
    assert trace.kept_bytes == 6 * FLOAT * (2 * 5 + 2 * 4)
    assert trace.weight_bytes == FLOAT * (5 * 4 + 4 * 4 + 4)


def test_a_low_memory_layer_shares_lists_masks_weights_and_state_with_its_backward_loop():
    first_layer = LowMemoryLSTM(4, return_sequences=True, recurrent_dropout=0.3)
    model = build_compiled(keras.Input((6, 5)), first_layer, LowMemoryLSTM(3))
    graph, loops = find_loops(model, 2)
    found = [loops[op.name] for op in graph.get_operations() if op.name in loops]
    forward = [loop for loop in found if not traced_graph._is_backward_loop(loop) and "lstm" in loop.op.name]
    assert len(forward) == 2 * LOW_MEMORY_PARTS  # each layer has a loop for each part of the batch
    first, last = forward[0], forward[LOW_MEMORY_PARTS]
    first_backward, last_backward = (traced_graph._find_custom_backward_loop(loop, loops) for loop in (first, last))
    # gates, one more cell than timesteps, four masks of rows of 5 + 1 + 4, weights, the initial state
    expected = [6 * 4 * 4, 7 * 4, 4 * 10, 4 * 10 * 4, 4]
    kept = traced_graph._shared_bytes(first, first_backward, 1)
    assert sorted(kept.values()) == sorted(FLOAT * count for count in expected)
    # the last layer has one mask, and keeps its states too; of the first layer the joined outputs are kept
    expected = [6 * 4 * 3, 7 * 3, 6 * 3, 8, 4 * 8 * 3, 3]
    kept = traced_graph._shared_bytes(last, last_backward, 1)
    assert sorted(kept.values()) == sorted(FLOAT * count for count in expected)
    assert [str(copy.shape) for copy in traced_graph._find_time_first(first)] == ["(6, None, 5)"]
    copies = traced_graph._find_time_first(first_backward)
    assert len(copies) == 3  # input, outputs, and their gradient
    joined = [copy for copy in copies if traced_graph._find_joined_outputs(first, copy) is not None]
    assert [str(copy.shape) for copy in joined] == ["(6, None, 4)"]


# ---------------------------------------------------------------- against formulas


@pytest.mark.parametrize(
    ("units", "timesteps", "batch", "dropout", "recurrent"),
    [  # without dropout: the two layers of a bidirectional, below
        ((13,), 6, 11, 0.3, 0.3),
        ((9, 4), 1, 3, 0.3, 0.3),
        ((7, 5, 3), 20, 1, 0.0, 0.3),
        ((7, 5), 20, 1, 0.3, 0.0),
    ],
)
def test_keras_lstm_layers_keep_what_their_equations_need_to_the_byte(units, timesteps, batch, dropout, recurrent):
    model = build_stack(layers.LSTM, units, timesteps=timesteps, dropout=dropout, recurrent_dropout=recurrent)
    traces = trace_loops(model, batch)
    rates = {"dropout": dropout > 0, "recurrent": recurrent > 0}
    for number, (trace, inputs, width) in enumerate(zip(traces, (5, *units[:-1]), units, strict=True)):
        first, is_last = number == 0, number == len(units) - 1
        assert trace.kept_bytes == keras_lstm_bytes(batch, timesteps, inputs, width, **rates, first=first)
        assert trace.input_list_bytes == FLOAT * timesteps * batch * inputs
        assert trace.input_list_is_kept == (dropout == 0 or not first)
        assert trace.needs_input_gradient == (not first)
        assert trace.output_bytes == FLOAT * batch * width * (1 if is_last else timesteps)
        assert trace.weight_bytes == FLOAT * model.layers[number].count_params()


def test_a_fixed_batch_size_keeps_nothing_only_for_its_shape():
    # states under recurrent dropout and inputs that dropout copied are kept only for their shape;
    # if the model fixes its batch size, TensorFlow knows the shapes
    rates = {"dropout": 0.3, "recurrent_dropout": 0.3}
    free = trace_loops(build_stack(layers.LSTM, (9, 4), **rates), 3)
    fixed = trace_loops(build_stack(layers.LSTM, (9, 4), batch=3, **rates), 3)
    assert [trace.shape_only_bytes for trace in free] == [FLOAT * 6 * 3 * 9, FLOAT * 6 * 3 * (4 + 9)]
    assert [trace.shape_only_bytes for trace in fixed] == [0, 0]
    assert [trace.kept_bytes for trace in fixed] == [trace.kept_bytes - trace.shape_only_bytes for trace in free]


def test_loss_and_optimizer_change_nothing_in_the_loops():
    model = build_stack(layers.LSTM, (9, 4), dropout=0.3, recurrent_dropout=0.3)
    traced = sorted(trace.kept_bytes for trace in trace_loops(model, 3))
    model.optimizer.build(model.trainable_variables)
    specs = traced_graph._make_input_specs(model, 3), tf.TensorSpec((None, 3))
    graph = tf.function(lambda x, y: model.train_step((x, y))).get_concrete_function(*specs).graph
    loops = {}
    traced_graph._find_needed(graph, graph.outputs, loops, with_shapes=True)
    forward = [loop for loop in loops.values() if not traced_graph._is_backward_loop(loop)]
    assert sorted(6 * sum(traced_graph._pushed_bytes(loop, 3).values()) for loop in forward) == traced


def test_in_bfloat16_the_weights_are_cast_and_kept_at_each_timestep():
    # an element has two bytes, but with a small batch and wide layers the copies of the weights cost more than that
    # saves
    first, second = trace_loops(build_stack(layers.LSTM, (9, 4), dtype="mixed_bfloat16"), 3)
    assert first.kept_bytes == 2 * 6 * (3 * (7 * 9 + 5) + 4 * 9 * 9)
    assert second.kept_bytes == 2 * 6 * (3 * (7 * 4 + 9) + 4 * 4 * (9 + 4))
    assert first.weight_bytes == FLOAT * 4 * 9 * (5 + 9 + 1)


def test_a_gru_keeps_six_values_per_unit_and_its_input():
    # c = tanh(x + r s), h = z h_before + (1 - z) c: r, z, c, s, 1 - z and h_before
    first, second = trace_loops(build_stack(layers.GRU, (9, 4)), 3)
    assert first.kept_bytes == FLOAT * 6 * 3 * (6 * 9 + 5)
    assert second.kept_bytes == FLOAT * 6 * 3 * (6 * 4 + 9)


def test_a_simple_layer_with_dropout_keeps_the_dropped_input_and_for_its_shape_the_input_list():
    first, second = trace_loops(build_stack(layers.SimpleRNN, (9, 4), dropout=0.3), 3)
    assert first.kept_bytes == FLOAT * 6 * 3 * (9 + 5)
    assert second.kept_bytes == FLOAT * 6 * 3 * (4 + 9 + 9)
    assert second.shape_only_bytes == FLOAT * 6 * 3 * 9


def test_the_two_layers_of_a_bidirectional_have_a_loop_each():
    both = layers.Bidirectional(build_lstm(9, return_sequences=True))
    model = build_compiled(keras.Input((6, 5)), both, build_lstm(4), layers.Dense(3))
    forward, backward, last = trace_loops(model, 3)
    assert (forward.layer[:12], backward.layer[:13]) == ("forward_lstm", "backward_lstm")
    assert forward.kept_bytes == backward.kept_bytes == keras_lstm_bytes(3, 6, 5, 9, first=True)
    assert last.kept_bytes == keras_lstm_bytes(3, 6, 18, 4)


def test_a_layer_behind_an_embedding_sends_back_a_gradient():
    model = build_compiled(keras.Input((6,), dtype="int32"), layers.Embedding(20, 5), build_lstm(9))
    (trace,) = trace_loops(model, 3)
    assert (trace.needs_input_gradient, trace.kept_bytes) == (True, keras_lstm_bytes(3, 6, 5, 9))


def test_a_frozen_first_layer_keeps_nothing():
    model = build_stack(layers.LSTM, (9, 4))
    model.layers[0].trainable = False
    model.compile("adam", "mse")
    assert [trace.kept_bytes for trace in trace_loops(model, 3)] == [0, keras_lstm_bytes(3, 6, 9, 4, first=True)]


def test_a_masking_layer_adds_its_masks():
    model = build_compiled(keras.Input((6, 5)), layers.Masking(), build_lstm(9))
    assert trace_loops(model, 3)[0].kept_bytes > keras_lstm_bytes(3, 6, 5, 9, first=True)


# ---------------------------------------------------------------- against a run
# The graph gives the bytes that would be kept; TensorFlow's log of allocations gives those that were kept. A new
# process trains five models for a step each. The tensors of a loop that are alive when the first tensor of its
# backward loop is made are those that it kept. They may be fewer than in the trace by one timestep, whose states are
# the zeros from which the loop starts, and by the tensors that are kept only for their shape: the backward loop
# empties its lists as soon as it can, up to 32 timesteps ahead of its computations.

MODELS = {
    "simple": ("SimpleRNN", {}),
    "gated": ("GRU", {}),
    "long": ("LSTM", {}),
    "half": ("LSTM", {"dtype": "mixed_bfloat16"}),
    "dropped": ("LSTM", {"dropout": 0.3, "recurrent_dropout": 0.3}),
}
CHILD = """
import json, sys, keras, numpy as np, tensorflow as tf
x, y = np.ones((64, 16, 8), "float32"), np.ones((64, 3), "float32")
for name, (kind, settings) in json.loads(sys.argv[1]).items():
    layer = getattr(keras.layers, kind)(16, name=name, **settings)
    model = keras.Sequential([keras.Input((16, 8)), layer, keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    model.fit(tf.data.Dataset.from_tensors((x, y)).unbatch().batch(64), verbose=0)
"""
FORWARD = re.compile(r"\w+/([a-z]+)_?\d*/(while/body|TensorArrayUnstack/TensorListFromTensor)")
BACKWARD = re.compile(r"gradient_tape/\w+/([a-z]+)_?\d*/while/.*while_grad")


def read_number(key, line):
    found = re.search(rf"{key}: (\d+)", line)
    return int(found[1]) if found else 0


def kept_in_a_run(log):
    """Bytes of floats by layer that are alive when its backward loop begins.

    They were made by its forward loop, or for its input list.
    """
    alive, kept, running = {}, {}, set()
    for line in log.splitlines():
        if "__LOG_MEMORY__" not in line:
            continue
        named = re.search(r'kernel_name: "([^"]*)"', line)
        name = named[1] if named else ""
        forward, backward = FORWARD.search(name), BACKWARD.search(name)
        # the last change from forward to backward counts: constants of both come early
        if backward and backward[1] in running:
            kept[backward[1]] = sum(size for layer, size in alive.values() if layer == backward[1])
            running.remove(backward[1])
        elif forward and not backward:
            running.add(forward[1])
        identity = read_number("allocation_id", line)
        if "MemoryLogTensorDeallocation" in line:
            alive.pop(identity, None)
        elif "MemoryLogTensorAllocation" in line and re.search("DT_B?FLOAT", line) and not backward:
            alive.setdefault(identity, (forward and forward[1], read_number("requested_bytes", line)))
    return kept


def test_a_run_keeps_what_the_trace_says():
    environment = {
        **os.environ,
        "TF_CPP_VMODULE": "log_memory=2",
        "TF_CPP_MIN_LOG_LEVEL": "0",
        "TF_CPU_ALLOCATOR_USE_BFC": "1",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    command = [sys.executable, "-c", CHILD, json.dumps(MODELS)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    measured = kept_in_a_run(done.stderr)
    for name, (kind, settings) in MODELS.items():
        model = build_stack(getattr(layers, kind), (16,), inputs=8, timesteps=16, **settings)
        (trace,) = trace_loops(model, 64)
        lowest = (trace.kept_bytes - trace.shape_only_bytes) * 15 // 16
        assert lowest <= measured[name] <= trace.kept_bytes, name


# ---------------------------------------------------------------- the model is not changed


def read_state(model):
    """Everything that a trace could change, as text: weights, optimizer, metrics, losses, counters of names, seeds."""
    from keras.src.backend.common import global_state

    names = dict(global_state.get_global_attribute("object_name_uids"))
    values = [(v.path, np.asarray(v.value).tolist()) for v in model.variables + model.optimizer.variables]
    numpy_seed = [str(part) for part in np.random.get_state()]
    seeds = random.getstate(), numpy_seed, str(tf.random.get_global_generator().state)
    metrics = [metric.name for metric in model.metrics]
    policy = keras.config.dtype_policy()
    return str((values, model.optimizer.built, metrics, model.losses, names, seeds, policy))


def build_stateful():
    """A model with everything that changes in a call: dropout, a recorded loss, normalization, a kept state."""
    keras.utils.set_random_seed(1)
    settings = {"dropout": 0.3, "recurrent_dropout": 0.3, "activity_regularizer": "l2", "stateful": True}
    model = build_compiled(
        keras.Input((6, 5), batch_size=3),
        layers.BatchNormalization(),
        build_lstm(4, **settings),
        layers.Dropout(0.3),
        layers.Dense(3),
    )
    model(np.ones((3, 6, 5), "float32"), training=True)  # records a loss
    return model


def test_a_trace_changes_nothing_of_the_model():
    model = build_stateful()
    before = read_state(model)
    assert len(trace_loops(model, 3)) == 1
    assert read_state(model) == before


def test_a_traced_model_trains_as_one_that_was_not_traced():
    windows, targets = np.random.default_rng(0).normal(size=(6, 6, 5)), np.zeros((6, 3))
    losses = []
    for is_traced in (False, True):
        model = build_stateful()
        if is_traced:
            trace_loops(model, 3)
        keras.utils.set_random_seed(2)
        losses.append(model.fit(windows, targets, batch_size=3, verbose=0).history["loss"])
    assert losses[0] == losses[1]


# ---------------------------------------------------------------- refused models


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, "2", None])
def test_a_batch_size_that_is_not_a_whole_number_of_at_least_1_is_refused(simple, batch_size):
    expected = f"expected batch_size to be a whole number of at least 1, got {batch_size!r}: pass"
    with pytest.raises(UnsupportedMemoryError, match=re.escape(expected)):
        trace_loops(simple[0], batch_size)


def test_a_batch_size_of_numpy_is_accepted(simple):
    assert trace_loops(simple[0], np.int64(2)) == trace_loops(simple[0], 2)


REFUSED = {
    "a name": (lambda: "model", "expected a Keras model, got str"),
    "not built": (lambda: keras.Sequential([build_lstm(4)]), "without weights: give it a keras.Input"),
    "not compiled": (
        lambda: keras.Sequential([keras.Input((6, 5)), build_lstm(4)]),
        "never compiled: call model.compile",
    ),
    "without recurrent layers": (
        lambda: build_compiled(keras.Input((6, 5)), layers.Flatten(), layers.Dense(3)),
        "expected a model with recurrent layers",
    ),
    "unknown sequence length": (
        lambda: build_compiled(keras.Input((None, 5)), build_lstm(4)),
        "set the sequence length, as in keras.Input((60, 5))",
    ),
    "another fixed batch": (lambda: build_stack(layers.LSTM, (4,), batch=3), "expected batches of 3"),
    "unrolled": (
        lambda: build_compiled(keras.Input((6, 5)), build_lstm(4, unroll=True)),
        "which is unrolled and has no formula: create it with unroll=False",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_without_readable_loops_is_refused(case):
    build, message = REFUSED[case]
    with pytest.raises(UnsupportedMemoryError, match=re.escape(message)):
        trace_loops(build(), 2)


@pytest.mark.parametrize("how", ["run_eagerly", "jit_compile"])
def test_a_step_that_is_not_a_graph_is_refused(how):
    model = keras.Sequential([keras.Input((6, 5)), layers.SimpleRNN(4)])
    model.compile("adam", "mse", **{"jit_compile": False, how: True})
    with pytest.raises(UnsupportedMemoryError, match=f"with {how}=True"):
        trace_loops(model, 2)


def test_a_layer_that_runs_in_cudnn_is_refused():
    with patch("keras.src.backend.tensorflow.rnn._is_gpu_available", return_value=True):  # as with a GPU
        model = build_compiled(keras.Input((6, 5)), layers.LSTM(4))
        with pytest.raises(UnsupportedMemoryError, match="runs in cuDNN and has no formula: measure it"):
            trace_loops(model, 2)


# ---------------------------------------------------------------- the estimate; against the closed form: test_memory.py


def test_any_recurrent_model_has_an_estimate_that_grows_with_the_batch():
    stack = layers.GRU(7, return_sequences=True), layers.GRU(4), layers.Dense(3)
    model = build_compiled(keras.Input((40, 5)), *stack)
    estimate = trace_memory(model, 16)
    assert [layer.layer.split("_")[0] for layer in estimate.activations] == ["gru", "gru", "dense"]
    assert trace_memory(model, 32).tensor_peak_mb > estimate.tensor_peak_mb


def test_an_optimizer_with_unknown_slots_is_refused():
    model = build_compiled(keras.Input((40, 5)), layers.GRU(4), layers.Dense(3))
    model.compile(keras.optimizers.SGD(momentum=0.9), "mse", jit_compile=False)
    expected = (
        "expected one of the optimizers adam, adamw, nadam, rmsprop, adagrad, sgd without momentum or amsgrad, got SGD"
    )
    with pytest.raises(UnsupportedMemoryError, match=expected):
        trace_memory(model, 16)


def test_the_default_network_keeps_less_than_half_of_what_it_keeps_in_keras_layers():
    config = Config(recurrent_dropout="per_sample")
    model = build_model(config)
    own = trace_loops(model, config.batch_size)
    in_keras = trace_loops(to_keras_model(model), config.batch_size)
    assert all(trace.low_memory for trace in own) and not any(trace.low_memory for trace in in_keras)
    assert 2 * sum(trace.kept_bytes for trace in own) < sum(trace.kept_bytes for trace in in_keras)
