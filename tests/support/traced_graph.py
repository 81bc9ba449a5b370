"""Read from a traced train step which bytes the loops of a recurrent model keep for the backward pass.

It is the independent source for the formulas of `crypto_lstm.memory`, and it estimates any Keras model with
recurrent loops.

Measured memory scatters: operations run in parallel, the allocator rounds up, and each reading costs a process. The
bytes that a recurrent layer keeps can be read instead, to the byte and without running a step. TensorFlow traces
the train step into a graph. In the graph a Keras layer is a `While` loop. Each timestep pushes the tensors that the
backward pass will need to lists (`TensorListPushBack`), and a second loop pops them (`TensorListPopBack`). The
bytes are the sizes of the pushed tensors times the number of timesteps. This sum must be corrected for three
reasons:

- Not every push is run. No operation uses the gradient with respect to the first layer's input. So TensorFlow
  removes the pops that only this gradient would read, and then the pushes.
- Several pushes may be of one buffer: a weight that is the same in each timestep, or a state that is also the start
  of the next timestep.
- `fit` traces with an unknown batch size, unless every batch is known to be full. The backward pass then reads some
  tensors only for their shape, and keeps them for that.

So the step is traced with an unknown batch size, and tensors that are not needed are left out by the rule of
TensorFlow.

Some layers can't be read. An unrolled layer has no loop, cuDNN keeps a reserve space with no published layout, and
XLA and eager steps have no such lists. They raise `UnsupportedMemoryError`; their memory is not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from crypto_lstm.memory import (
    FLOAT32_BYTES,
    LOW_MEMORY_PARTS,
    OPTIMIZER_SLOTS,
    PARALLEL_ITERATIONS,
    LayerMemory,
    LoopKind,
    MemoryEstimate,
    UnsupportedMemoryError,
    assemble_estimate,
    keras_layer_peak,
    low_memory_layer_peak,
    low_memory_step_bytes,
)
from crypto_lstm.utils.base_memory import find_base_memory
from crypto_lstm.utils.checks import is_whole_number
from crypto_lstm.utils.system import MB

if TYPE_CHECKING:
    import keras

MEASURE = "measure this model instead"


def _unsupported_error(expected: str, got: str, remedy: str) -> UnsupportedMemoryError:
    return UnsupportedMemoryError(f"expected {expected}, got {got}: {remedy}")


def _require_traceable(model: keras.Model, batch_size: int) -> None:
    """Raise `UnsupportedMemoryError` for a model without a traced train step, before anything is traced."""
    import keras

    if not is_whole_number(batch_size, 1):
        remedy = "pass the number of windows of one step"
        raise _unsupported_error("batch_size to be a whole number of at least 1", repr(batch_size), remedy)
    if not isinstance(model, keras.Model):
        raise _unsupported_error("a Keras model", type(model).__name__, "pass a keras.Model")
    name = f"model '{model.name}'"
    if not model.built:
        remedy = "give it a keras.Input, or call model.build(input_shape)"
        raise _unsupported_error("a built model", f"{name} without weights", remedy)
    if not model.compiled:
        remedy = "call model.compile(...), which decides how the step is run"
        raise _unsupported_error("a compiled model", f"{name}, which was never compiled", remedy)
    if model.run_eagerly or model.jit_compile:
        how = "run_eagerly=True" if model.run_eagerly else "jit_compile=True (XLA)"
        remedy = "compile it with jit_compile=False, run_eagerly=False"
        raise _unsupported_error("a train step run as a TensorFlow graph", f"{name} with {how}", remedy)


# ---------------------------------------------------------------- the traced step
# The model's own forward pass is traced in training mode, then the gradient of all its outputs with respect to its
# trainable weights. Loss and optimizer are left out: they change nothing in a loop. Without them no target shape must
# be guessed and no optimizer be built. Keras records the losses of a call on the layers; these records are restored.


def _make_input_specs(model: keras.Model, batch_size: int) -> Any:
    """A `TensorSpec` for each input, in the model's own structure, with an unknown batch size as in `fit`."""
    import keras

    if getattr(model, "inputs", None):
        inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
        return keras.tree.map_structure(lambda tensor: _make_spec(tensor, model, batch_size), inputs)
    shape = (model.get_build_config() or {}).get("input_shape")
    if shape is None or not all(n is None or isinstance(n, int) for n in shape):
        remedy = "give it one input tensor, or create it with keras.Model(inputs, outputs)"
        raise _unsupported_error("a model whose input shape is known", f"'{model.name}' with inputs {shape}", remedy)
    return _make_spec(keras.KerasTensor((None, *shape[1:])), model, batch_size)


def _make_spec(tensor: Any, model: keras.Model, batch_size: int) -> Any:
    import tensorflow as tf

    batch, *rest = tensor.shape
    if None in rest:
        example = ", ".join("60" if n is None else str(n) for n in rest)
        raise _unsupported_error(
            "inputs whose shape is known except for the batch",
            f"{tuple(tensor.shape)} in model '{model.name}'",
            f"set the sequence length, as in keras.Input(({example}))",
        )
    if batch not in (None, batch_size):
        expected = f"batches of {batch}, as fixed in model '{model.name}'"
        raise _unsupported_error(expected, str(batch_size), f"pass batch_size={batch}")
    return tf.TensorSpec((batch, *rest), tensor.dtype)


def _trace_step(model: keras.Model, specs: Any) -> Any:
    """The graph of forward and backward pass. The model is not changed."""
    import keras
    import tensorflow as tf

    def step(inputs: Any) -> tuple[list[Any], list[Any]]:
        with tf.GradientTape() as tape:
            outputs = keras.tree.flatten(model(inputs, training=True)) + list(model.losses)
        variables = [variable.value for variable in model.trainable_variables]
        gradients = tape.gradient(outputs, variables)
        return outputs, [gradient for gradient in gradients if gradient is not None]

    layers = model._flatten_layers()
    records = [(list(layer._losses), set(layer._loss_ids)) for layer in layers]
    try:
        return tf.function(step, autograph=False).get_concrete_function(specs).graph
    finally:
        for layer, (losses, ids) in zip(layers, records, strict=True):
            layer._losses[:] = losses
            layer._loss_ids = ids


# ---------------------------------------------------------------- the tensors that are needed
# TensorFlow runs the operations that its results need, and no others. The same rule is followed here tensor by
# tensor: from the gradients and the operations with side effects back through the graph. A loop is repeated until
# nothing is added: a tensor from which a needed output is made in the body becomes a needed input, and in a loop that
# input is the output of the previous timestep. Only the needed inputs lead on, out of the loop. Tensors that are read
# only for their shape can be followed or not. The difference is the memory that is kept only for shapes.

_LOOPS = ("While", "StatelessWhile")
_SHAPE_ONLY = ("Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike", "TensorListLength", "TensorListElementShape")


class _Loop(NamedTuple):
    """A `While` of the graph and its needed parts: numbers of its variables, tensors of its body."""

    op: Any
    body: Any
    variables: set[int]
    tensors: set[Any]


def _find_roots(graph: Any) -> list[Any]:
    """The inputs of operations with side effects: a graph is run for them besides its results."""
    operations = (op for op in graph.get_operations() if op.op_def.is_stateful and op.type not in _LOOPS)
    return [tensor for op in operations for tensor in op.inputs]


def _find_needed(
    graph: Any,  # a FuncGraph
    wanted: Sequence[Any],  # tensors of it that are read
    loops: dict[str, _Loop],  # is filled: the loops by name
    with_shapes: bool,  # whether a tensor that is read only for its shape counts as needed
) -> set[Any]:  # references of the needed tensors
    """Follow the wanted tensors and the side effects back to the tensors from which they are made."""
    found: set[Any] = set()
    pending = [*wanted, *_find_roots(graph)]
    waiting: dict[str, Any] = {}  # loops that are handled when nothing else is pending
    outputs: dict[str, set[int]] = {}  # needed outputs of each loop
    while pending or waiting:
        if not pending:
            name, op = waiting.popitem()
            loops[name] = _find_needed_in_loop(graph, op, outputs[name], with_shapes)
            pending = [op.inputs[number] for number in loops[name].variables]
            continue
        tensor = pending.pop()
        if tensor.ref() in found:
            continue
        found.add(tensor.ref())
        if tensor.op.type in _LOOPS:
            outputs.setdefault(tensor.op.name, set()).add(tensor.value_index)
            waiting[tensor.op.name] = tensor.op
        elif with_shapes or tensor.op.type not in _SHAPE_ONLY:
            pending += tensor.op.inputs
    return found


def _find_needed_in_loop(graph: Any, op: Any, outputs: set[int], with_shapes: bool) -> _Loop:
    """The parts of a loop that are needed for these outputs and for its end."""
    body, condition = (graph._get_function(op.get_attr(name).name).graph for name in ("body", "cond"))
    ends = _find_needed(condition, condition.outputs, {}, with_shapes)
    variables = outputs | {number for number, tensor in enumerate(condition.inputs) if tensor.ref() in ends}
    while True:
        tensors = _find_needed(body, [body.outputs[number] for number in variables], {}, with_shapes)
        needed = {number for number, tensor in enumerate(body.inputs) if tensor.ref() in tensors}
        if needed <= variables:
            return _Loop(op, body, variables, tensors)
        variables = variables | needed


# ---------------------------------------------------------------- the tensors that a Keras loop keeps
# A push counts if it is needed. Pushed tensors of one buffer count once. A tensor that passes through the loop
# unchanged, or a weight that is read in it, costs nothing. The state of the previous timestep is the new state of
# that timestep, on another list. A slice of the input list belongs to that list. Integers without a batch (counters,
# shapes) are a few bytes and left out.

_SAME_BUFFER = ("Identity", "StopGradient", "EnsureShape", "Reshape", "ExpandDims", "Squeeze")


def _find_buffer(body: Any, tensor: Any) -> Any | None:
    """The tensor of the body with the same buffer, in this or an earlier timestep; None if all timesteps share it."""
    numbers = {given.ref(): number for number, given in enumerate(body.inputs)}
    passed = set()
    while tensor.ref() not in passed:
        passed.add(tensor.ref())
        if tensor.ref() in numbers:
            tensor = body.outputs[numbers[tensor.ref()]]
        elif tensor.op.type in _SAME_BUFFER:
            tensor = tensor.op.inputs[0]
        else:
            return None if tensor.op.type in ("Const", "ReadVariableOp") else tensor
    return None


def _tensor_bytes(tensor: Any, batch_size: int, batch_axis: int = 0) -> int:
    """Bytes of a tensor. Only the dimension of the batch may be unknown."""
    sizes = tensor.shape.as_list() if tensor.shape.rank is not None else [None, None]
    if None in sizes[:batch_axis] + sizes[batch_axis + 1 :]:
        raise _unsupported_error(
            "tensors whose shape is known except for the batch",
            f"{tensor.shape} for {tensor.name}",
            "fix the shapes in its cell, except for the batch",
        )
    return math.prod(batch_size if size is None else size for size in sizes) * int(tensor.dtype.size)


def _pushed_bytes(loop: _Loop, batch_size: int) -> dict[Any, int]:
    """Bytes of one timestep that are pushed and needed, by the reference of the tensor with the buffer."""
    kept = {}
    for number in loop.variables:
        push = loop.body.outputs[number].op
        if push.type != "TensorListPushBack":
            continue
        pushed = push.inputs[1]
        buffer = _find_buffer(loop.body, pushed)
        is_counter = pushed.dtype.is_integer and pushed.shape.rank in (0, 1)
        if buffer is not None and not is_counter:
            kept[buffer.ref()] = _tensor_bytes(pushed, batch_size)
    return kept


# ---------------------------------------------------------------- the lists of a loop
# A recurrent layer's loop reads its timesteps from a list that is made of the whole sequence, and writes its outputs to
# another list. The first list gives the number of timesteps. The weights that a loop reads identify its layer, since
# TensorFlow renames the loops. A layer has an input gradient if its backward loop makes a list for it.


def _find_list_maker(loop: _Loop, op: Any) -> Any:
    """The operation outside the loop that made the list which this operation of its body reads or writes."""
    numbers = {given.ref(): number for number, given in enumerate(loop.body.inputs)}
    number = numbers.get(op.inputs[0].ref())
    return None if number is None else loop.op.inputs[number].op


def _find_lists(loop: _Loop, operation: str, maker_type: str) -> dict[str, tuple[Any, Any]]:
    """The maker of each list and the operation of the loop that reads or writes it, by the maker's name."""
    lists = {}
    for op in loop.body.get_operations():
        if op.type == operation:
            maker = _find_list_maker(loop, op)
            if maker is not None and maker.type == maker_type:
                lists[maker.name] = (maker, op)
    return lists


def _find_sequences(loop: _Loop) -> list[Any]:
    """The sequences (timesteps, batch, ...) whose slices the loop reads, without masks."""
    read = _find_lists(loop, "TensorListGetItem", "TensorListFromTensor").values()
    return [maker.inputs[0] for maker, _ in read if maker.inputs[0].dtype.is_floating]


def _output_bytes(loop: _Loop, batch_size: int) -> int:
    import tensorflow as tf

    total = 0
    for maker, op in _find_lists(loop, "TensorListSetItem", "TensorListReserve").values():
        length = int(tf.get_static_value(maker.inputs[1]))
        total += length * _tensor_bytes(op.inputs[2], batch_size)
    return total


def _is_backward_loop(loop: _Loop) -> bool:
    return _reads_lists_of_a_loop(loop) or _has_pops(loop)


def _has_pops(loop: _Loop) -> bool:
    return any(op.type == "TensorListPopBack" for op in loop.body.get_operations())


def _reads_lists_of_a_loop(loop: _Loop) -> bool:
    """Whether an input is a list of another loop: of Keras' loop, or of a loop of `crypto_lstm.layers`."""
    return any(tensor.op.type in _LOOPS and tensor.dtype == "variant" for tensor in loop.op.inputs)


def _needs_input_gradient(loop: _Loop, loops: dict[str, _Loop]) -> bool:
    """Whether the backward loop that reads the lists of this one makes a needed list for the input's gradient."""
    outputs = {tensor.ref() for tensor in loop.op.outputs}
    for other in loops.values():
        if _is_backward_loop(other) and any(tensor.ref() in outputs for tensor in other.op.inputs):
            made = (op for op in other.body.get_operations() if op.type == "TensorListReserve")
            return any(op.outputs[0].ref() in other.tensors for op in made)
    return False


# ---------------------------------------------------------------- the loops of crypto_lstm.layers
# They push nothing. Their forward loop writes gates, cells and states to lists of known length, and the backward
# loop, which the layer makes itself, gets these lists. So the kept bytes are the inputs that both loops share: the
# lists that leave the one and enter the other, directly or as the layer's outputs, which are a copy of a list; and
# masks, weights and initial state. The input is left out: the layer before keeps it, or it is the windows.

_COPIES = (*_SAME_BUFFER, "Transpose", "TensorListStack")


def _follow_copies(tensor: Any) -> tuple[Any, bool]:
    """The original of a copy outside the loops, and whether timesteps and batch were transposed."""
    transposed = False
    while tensor.op.type in _COPIES:
        transposed = transposed or tensor.op.type == "Transpose"
        tensor = tensor.op.inputs[0]
    return tensor, transposed


def _find_custom_backward_loop(loop: _Loop, loops: dict[str, _Loop]) -> _Loop | None:
    """The backward loop that reads the lists of a loop of `crypto_lstm.layers`; None for Keras' loops."""
    for other in loops.values():
        if _has_pops(other):
            continue
        if any(tensor.op.name == loop.op.name and tensor.dtype == "variant" for tensor in other.op.inputs):
            return other
    return None


def _list_bytes(loop: _Loop, number: int, batch_size: int) -> int:
    """Bytes of a list that a loop fills."""
    import tensorflow as tf

    written, reserved = loop.body.outputs[number].op, loop.op.inputs[number].op
    while written.type in _SAME_BUFFER:
        written = written.inputs[0].op
    while reserved.type == "TensorListSetItem":  # elements that are set before the loop
        reserved = reserved.inputs[0].op
    element = written.inputs[2]
    length = int(tf.get_static_value(reserved.inputs[1]))
    return length * _tensor_bytes(element, batch_size, element.shape.rank - 2)


def _shared_bytes(forward: _Loop, backward: _Loop, batch_size: int) -> dict[Any, int]:
    """Bytes that are kept between a loop and its custom backward loop, by the reference of the tensor."""
    given = set()
    for number in forward.variables:
        original, transposed = _follow_copies(forward.op.inputs[number])
        if not transposed:
            given.add(original.ref())
    kept = {}
    for number in backward.variables:
        original, _ = _follow_copies(backward.op.inputs[number])
        if original.op.name == forward.op.name:
            kept[original.ref()] = _list_bytes(forward, original.value_index, batch_size)
        elif original.ref() in given and original.op.type not in ("Const", "ReadVariableOp"):
            kept[original.ref()] = _tensor_bytes(original, batch_size, original.shape.rank - 2)
    return kept


def _find_joined_outputs(loop: _Loop, copy: Any) -> Any | None:
    """The outputs of a loop joined with those of the loops beside it, if this copy was split from them."""
    part, _ = _follow_copies(copy)
    if part.op.type != "SplitV":
        return None
    whole, _ = _follow_copies(part.op.inputs[0])
    if whole.op.type != "ConcatV2":
        return None
    has_output = any(_follow_copies(joined)[0].op.name == loop.op.name for joined in whole.op.inputs)
    return whole if has_output else None


def _find_time_first(loop: _Loop) -> list[Any]:
    """The sequences that a loop of `crypto_lstm.layers` reads, as copies with the timesteps first."""
    inputs = [loop.op.inputs[number] for number in sorted(loop.variables)]
    return [tensor for tensor in inputs if tensor.op.type == "Transpose"]


# ---------------------------------------------------------------- the loops of a model


@dataclass(frozen=True)
class LoopTrace:
    """Bytes that the loop of a recurrent layer, or its loops side by side, keep for the backward pass of one step."""

    layer: str  # name of the recurrent layer; in a Bidirectional the name of one of its two layers
    steps: int  # timesteps
    kept_bytes: int  # all that is kept, over all timesteps, each buffer once
    # the part of it whose values are never read: not kept if the batch size is fixed, freed early otherwise
    shape_only_bytes: int
    input_list_bytes: int  # the list of input slices: timesteps x batch x inputs
    input_list_is_kept: bool  # whether that list is kept for the backward pass and so is a part of kept_bytes
    needs_input_gradient: bool  # whether the layer sends a gradient to the layers before it
    output_bytes: int  # its outputs: timesteps x batch x units, or batch x units of the last timestep
    weight_bytes: int  # its trainable weights
    masked_states: bool  # whether it has recurrent dropout
    # gradients of its weights that one iteration of the backward loop makes;
    # for a loop of `crypto_lstm.layers` all bytes of such an iteration
    gradient_bytes: int
    low_memory: bool = False  # whether it is a loop of `crypto_lstm.layers`
    # for such a loop: sequences that its backward loop reads with the timesteps first, and the list of the input's
    # gradient
    copies_bytes: int = 0


def _find_recurrent_layers(model: keras.Model) -> list[Any]:
    import keras

    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.RNN) and layer.built]


def _find_sources(loop: _Loop) -> list[Any]:
    """The inputs of a loop, and the tensors from which its inputs without a batch, such as weights, are made."""
    sources = list(loop.op.inputs)
    for tensor in sources:  # the list grows
        if tensor.dtype.is_floating and tensor.shape.is_fully_defined():
            sources += tensor.op.inputs
    return sources


def _find_layer(loop: _Loop, graph: Any, recurrent: Sequence[Any]) -> Any:
    """The recurrent layer whose weights the loop reads."""
    outside = {inside.ref(): given for given, inside in graph.captures}
    read = {id(outside[tensor.ref()]) for tensor in _find_sources(loop) if tensor.ref() in outside}
    for layer in recurrent:
        if any(id(variable.value.handle) in read for variable in layer.variables):
            return layer
    remedy = "build the layer with keras.layers.RNN and a cell"
    raise _unsupported_error("every loop to belong to a recurrent Keras layer", f"the loop '{loop.op.name}'", remedy)


def _trace_low_memory_layer(
    parts: Sequence[_Loop],  # the loops of the layer, each for a part of the batch
    loops: dict[str, _Loop],
    layer: Any,
    batch_size: int,
) -> LoopTrace:
    """The trace of the loops that a layer of `crypto_lstm.layers` runs side by side."""
    bounds = [batch_size * part // len(parts) for part in range(len(parts) + 1)]
    steps, _, width = _find_time_first(parts[0])[0].shape
    units = layer.units
    row = width + 1 + units
    masks = next(tensor for tensor in parts[0].op.inputs if tensor.shape.rank == 3 and tensor.shape[-1] == row)
    kept: dict[Any, int] = {}
    inputs, copies, needs_input_gradient = 0, 0, False
    for loop, (low, high) in zip(parts, pairwise(bounds), strict=True):
        backward = _find_custom_backward_loop(loop, loops)
        if backward is None:
            got = f"'{loop.op.name}' of layer '{layer.name}' beside a loop of another kind"
            raise _unsupported_error("the loops of one layer side by side", got, MEASURE)
        given = (backward.op.inputs[number].op.type for number in backward.variables)
        needs_input_gradient |= "TensorListReserve" in given
        inputs += sum(_tensor_bytes(sequence, high - low, 1) for sequence in _find_time_first(loop))
        kept |= _shared_bytes(loop, backward, high - low)  # the weights are the same in all parts
        for copy in _find_time_first(backward):
            copies += _tensor_bytes(copy, high - low, 1)
            whole = _find_joined_outputs(loop, copy)
            if whole is not None:
                kept[whole.ref()] = _tensor_bytes(whole, batch_size)
    return LoopTrace(
        layer=layer.name,
        steps=steps,
        kept_bytes=sum(kept.values()),
        shape_only_bytes=0,
        input_list_bytes=inputs,
        input_list_is_kept=False,
        needs_input_gradient=needs_input_gradient,
        output_bytes=FLOAT32_BYTES * batch_size * units * (steps if layer.return_sequences else 1),
        weight_bytes=_weight_bytes(layer),
        masked_states=layer.cell.recurrent_dropout > 0,
        gradient_bytes=low_memory_step_bytes(batch_size, width, units, masks.shape[0]),
        low_memory=True,
        copies_bytes=copies + inputs * needs_input_gradient,
    )


def _trace_keras_loop(
    loop: _Loop, values: dict[str, _Loop], loops: dict[str, _Loop], layer: Any, batch_size: int
) -> LoopTrace:
    """The trace of one loop of Keras. `values` has the loops without the tensors that are read only for their shape."""
    sequences = _find_sequences(loop)
    if not sequences or any(op.type in _LOOPS for op in loop.body.get_operations()):
        got = f"the loop of layer '{layer.name}', which reads no sequence or contains loops"
        raise _unsupported_error("a loop over the timesteps of a sequence", got, MEASURE)
    steps = sequences[0].shape[0]
    kept = _pushed_bytes(loop, batch_size)
    for_values = _pushed_bytes(values[loop.op.name], batch_size) if loop.op.name in values else {}
    masked_states = getattr(layer.cell, "recurrent_dropout", 0.0) > 0
    gradient = _weight_bytes(layer)
    kernel = getattr(layer.cell, "recurrent_kernel", None)
    if masked_states and kernel is not None:
        slices = kernel.shape[1] // kernel.shape[0]  # each slice sends back a gradient of full size
        gradient += (slices - 1) * _variable_bytes(kernel)
    return LoopTrace(
        layer=layer.name,
        steps=steps,
        kept_bytes=steps * sum(kept.values()),
        shape_only_bytes=steps * sum(size for buffer, size in kept.items() if buffer not in for_values),
        input_list_bytes=sum(_tensor_bytes(sequence, batch_size, 1) for sequence in sequences),
        input_list_is_kept=any(buffer.deref().op.type == "TensorListGetItem" for buffer in kept),
        needs_input_gradient=_needs_input_gradient(loop, loops),
        output_bytes=_output_bytes(loop, batch_size),
        weight_bytes=_weight_bytes(layer),
        masked_states=masked_states,
        gradient_bytes=gradient,
    )


def _weight_bytes(layer: Any) -> int:
    return sum(_variable_bytes(variable) for variable in layer.trainable_variables)


def _variable_bytes(variable: Any) -> int:
    return int(math.prod(variable.shape) * variable.value.dtype.size)


def trace_loops(
    model: keras.Model,  # built and compiled; it is not changed
    batch_size: int,  # windows in a step
) -> tuple[LoopTrace, ...]:  # one for each call of a recurrent layer, in the order of the forward pass
    """Bytes that the loops of a model's recurrent layers keep for the backward pass, read from a trace; no step is run.

    The step is traced as in `fit`, with an unknown batch size. A layer that is called twice has two loops. The
    sizes are those of the tensors; an allocator rounds each of them up. Counters and shapes, a few bytes per
    timestep, are left out.

    Raises `UnsupportedMemoryError` for a model that is not built or not compiled, runs eagerly or under XLA, has no
    recurrent layer, has one without a loop (unrolled, cuDNN), or has a sequence length of None, and for a batch
    size that is not a whole number of at least 1.
    """
    _require_traceable(model, batch_size)
    recurrent = _find_recurrent_layers(model)
    if not recurrent:
        remedy = "estimate its memory from the outputs of its layers"
        raise _unsupported_error("a model with recurrent layers", f"'{model.name}' without a built one", remedy)
    graph = _trace_step(model, _make_input_specs(model, int(batch_size)))
    loops: dict[str, _Loop] = {}
    values: dict[str, _Loop] = {}
    _find_needed(graph, graph.outputs, loops, with_shapes=True)
    _find_needed(graph, graph.outputs, values, with_shapes=False)
    found = [loops[op.name] for op in graph.get_operations() if op.name in loops]
    forward = [loop for loop in found if not _is_backward_loop(loop)]
    layers = [_find_layer(loop, graph, recurrent) for loop in forward]
    _require_loops(graph, recurrent, layers)
    traces, position = [], 0
    while position < len(forward):
        loop, layer = forward[position], layers[position]
        if _find_custom_backward_loop(loop, loops) is None:
            traces.append(_trace_keras_loop(loop, values, loops, layer, int(batch_size)))
            position += 1
        else:
            parts = forward[position : position + LOW_MEMORY_PARTS]
            traces.append(_trace_low_memory_layer(parts, loops, layer, int(batch_size)))
            position += LOW_MEMORY_PARTS
    return tuple(traces)


def _require_loops(graph: Any, recurrent: Sequence[Any], found: Sequence[Any]) -> None:
    """Raise `UnsupportedMemoryError` for a recurrent layer without a loop in the graph."""
    for layer in recurrent:
        if any(layer is other for other in found):
            continue
        if layer.unroll:
            got, remedy = "is unrolled and has no formula", "create it with unroll=False"
        elif any(op.type.startswith("CudnnRNN") for op in graph.get_operations()):
            got, remedy = "runs in cuDNN and has no formula", "measure it, or create it with use_cudnn=False"
        else:
            got, remedy = "has no loop in the train step", "check that the model calls it and uses its output"
        raise _unsupported_error("every recurrent layer to run as a loop", f"layer '{layer.name}', which {got}", remedy)


# ---------------------------------------------------------------- the estimate of any model
# The estimate is assembled from the kept bytes as in `crypto_lstm.memory`. For the networks of this package it equals
# the closed form; for other networks there is no closed form.


def trace_memory(
    model: keras.Model,  # built and compiled; it is not changed
    batch_size: int,  # windows in a step
    base_mb: float | None = None,  # anonymous memory of the process with data and model; None: one without data
    loops: tuple[LoopTrace, ...] | None = None,  # of `trace_loops` for this model and batch size; None: traced here
) -> MemoryEstimate:  # all in MB of 2**20 bytes
    """Memory of a training step of any Keras model with recurrent loops, from its traced step; no step is run.

    Raises the `UnsupportedMemoryError` of `trace_loops`, and one for an optimizer whose slots are not known.
    """
    if loops is None:
        loops = trace_loops(model, batch_size)
    held = [_loop_memory(loop, is_last=number == len(loops) - 1) for number, loop in enumerate(loops)]
    item = 4 if model.compute_dtype == "float32" else 2
    for layer in model._flatten_layers():
        if type(layer).__name__ in ("Dense", "Dropout"):
            held.append(LayerMemory(layer.name, item * 2 * batch_size * layer.output.shape[-1] / MB))
    windows = sum(FLOAT32_BYTES * batch_size * math.prod(tensor.shape[1:]) for tensor in model.inputs)
    return assemble_estimate(
        batch_size,
        sum(math.prod(variable.shape) for variable in model.trainable_variables),
        tuple(held),
        slots=_optimizer_slots(model),
        windows_mb=windows / MB,
        loops=[LoopKind(loop.low_memory, loop.masked_states) for loop in loops],
        base_mb=find_base_memory().anonymous_mb if base_mb is None else base_mb,
        notes=["layers other than recurrent ones, Dense and Dropout"],
    )


def _loop_memory(loop: LoopTrace, is_last: bool) -> LayerMemory:
    """Memory of a loop, counted as in `crypto_lstm.memory`."""
    if loop.low_memory:
        return low_memory_layer_peak(
            loop.layer, loop.kept_bytes, loop.copies_bytes, loop.input_list_bytes, loop.gradient_bytes
        )
    beside = loop.input_list_bytes if loop.needs_input_gradient else 0
    if not is_last:
        beside += min(PARALLEL_ITERATIONS, loop.steps) * loop.output_bytes // loop.steps
    return keras_layer_peak(
        loop.layer, loop.kept_bytes, beside, loop.gradient_bytes, loop.steps, loop.masked_states
    )


def _optimizer_slots(model: keras.Model) -> int:
    optimizer = model.optimizer
    name = type(optimizer).__name__
    has_extra_slots = any(getattr(optimizer, extra, None) for extra in ("momentum", "amsgrad"))
    if name.lower() not in OPTIMIZER_SLOTS or has_extra_slots:
        expected = f"one of the optimizers {', '.join(OPTIMIZER_SLOTS)} without momentum or amsgrad"
        raise _unsupported_error(expected, name, MEASURE)
    return OPTIMIZER_SLOTS[name.lower()] + bool(optimizer.gradient_accumulation_steps)
