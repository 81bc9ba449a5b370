"""What the loops of a recurrent model keep for the backward pass, read from its traced train step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

from crypto_lstm.memory import AHEAD_STEPS, BUILT_MB, FLOAT, LOW_MEMORY_PARTS, OPTIMIZER_SLOTS, LayerMemory, LoopKind, MemoryEstimate, UnsupportedMemoryError, assemble_estimate, low_memory_layer_peak, low_memory_step_bytes, keras_layer_peak
from crypto_lstm.utils.system import MB

if TYPE_CHECKING:
    import keras


def _unsupported(expected: str, got: str, remedy: str) -> UnsupportedMemoryError:
    return UnsupportedMemoryError(f"expected {expected}, got {got}: {remedy}")


def _check(model: keras.Model, batch_size: int) -> None:
    """Raise `UnsupportedMemoryError` for what has no traced train step, before anything is traced."""
    import keras

    if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1:
        raise _unsupported("batch_size to be a whole number of at least 1", repr(batch_size), "pass the windows of one step")
    if not isinstance(model, keras.Model):
        raise _unsupported("a Keras model", type(model).__name__, "pass a keras.Model")
    where = f"model '{model.name}'"
    if not model.built:
        raise _unsupported("a built model", f"{where} without weights", "give it a keras.Input, or call model.build(input_shape)")
    if not model.compiled:
        raise _unsupported("a compiled model", f"{where} never compiled", "call model.compile(...): it decides how the step is run")
    if model.run_eagerly or model.jit_compile:
        how = "run_eagerly=True" if model.run_eagerly else "jit_compile=True (XLA)"
        raise _unsupported("a train step run as a TensorFlow graph", f"{where} with {how}", "compile it with jit_compile=False, run_eagerly=False")


def _input_specs(model: keras.Model, batch_size: int) -> Any:
    """A `TensorSpec` for each input of the model, in the model's own structure, of unknown batch size as `fit` has it."""
    import keras
    import tensorflow as tf

    def spec(tensor: Any) -> tf.TensorSpec:
        batch, *rest = tensor.shape
        if None in rest:
            remedy = f"name the sequence length, as in keras.Input(({', '.join('60' if n is None else str(n) for n in rest)}))"
            raise _unsupported("inputs whose shape is known but for the batch", f"{tuple(tensor.shape)} in model '{model.name}'", remedy)
        if batch not in (None, batch_size):
            raise _unsupported(f"batches of {batch}, as model '{model.name}' fixes them", str(batch_size), f"pass batch_size={batch}")
        return tf.TensorSpec((batch, *rest), tensor.dtype)

    if getattr(model, "inputs", None):
        return keras.tree.map_structure(spec, model.inputs[0] if isinstance(model, keras.Sequential) else model.input)
    shape = (model.get_build_config() or {}).get("input_shape")
    if shape is None or not all(n is None or isinstance(n, int) for n in shape):
        remedy = "give it one input tensor, or make it with keras.Model(inputs, outputs)"
        raise _unsupported("a model whose input shape is known", f"'{model.name}' of inputs {shape}", remedy)
    return spec(keras.KerasTensor((None, *shape[1:])))


def _trace(model: keras.Model, specs: Any) -> Any:
    """The graph of forward and backward pass; the model is as before."""
    import keras
    import tensorflow as tf

    def step(inputs: Any) -> tuple[list[Any], list[Any]]:
        with tf.GradientTape() as tape:
            returned = keras.tree.flatten(model(inputs, training=True)) + list(model.losses)
        variables = [v.value for v in model.trainable_variables]
        return returned, [gradient for gradient in tape.gradient(returned, variables) if gradient is not None]

    parts = model._flatten_layers()
    notes = [(list(part._losses), set(part._loss_ids)) for part in parts]
    try:
        return tf.function(step, autograph=False).get_concrete_function(specs).graph
    finally:
        for part, (losses, ids) in zip(parts, notes, strict=True):
            part._losses[:], part._loss_ids = losses, ids


_LOOPS = ("While", "StatelessWhile")
_SHAPE_ONLY = ("Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike", "TensorListLength", "TensorListElementShape")


class _Loop(NamedTuple):
    """A `While` of the graph, and what of it is needed: numbers of its variables, tensors of its body."""

    op: Any
    body: Any
    variables: set[int]
    tensors: set[Any]


def _roots(graph: Any) -> list[Any]:
    """What a graph is run for besides its results: the inputs of operations with side effects."""
    operations = (op for op in graph.get_operations() if op.op_def.is_stateful and op.type not in _LOOPS)
    return [tensor for op in operations for tensor in op.inputs]


def _needed(
    graph: Any,  # a FuncGraph
    wanted: Sequence[Any],  # its tensors that someone reads
    loops: dict[str, _Loop],  # is filled: the loops by name
    shapes: bool,  # whether a tensor that is only asked for its shape counts as read
) -> set[Any]:  # references of the tensors that have to be computed
    """Follow the wanted tensors and the side effects back to what they are made from."""
    found: set[Any] = set()
    pending = [*wanted, *_roots(graph)]
    waiting: dict[str, Any] = {}  # loops, until nothing else is left: each is passed round as a whole
    asked: dict[str, set[int]] = {}  # outputs of each loop
    while pending or waiting:
        if not pending:
            name, op = waiting.popitem()
            loops[name] = _needed_of_loop(graph, op, asked[name], shapes)
            pending = [op.inputs[number] for number in loops[name].variables]
            continue
        tensor = pending.pop()
        if tensor.ref() in found:
            continue
        found.add(tensor.ref())
        if tensor.op.type in _LOOPS:
            asked.setdefault(tensor.op.name, set()).add(tensor.value_index)
            waiting[tensor.op.name] = tensor.op
        elif shapes or tensor.op.type not in _SHAPE_ONLY:
            pending += tensor.op.inputs
    return found


def _needed_of_loop(graph: Any, op: Any, outputs: set[int], shapes: bool) -> _Loop:
    """What a loop needs so that these outputs come out of it and it ends."""
    body, condition = (graph._get_function(op.get_attr(name).name).graph for name in ("body", "cond"))
    ends = _needed(condition, condition.outputs, {}, shapes)
    variables = outputs | {number for number, tensor in enumerate(condition.inputs) if tensor.ref() in ends}
    while True:
        tensors = _needed(body, [body.outputs[number] for number in variables], {}, shapes)
        more = {number for number, tensor in enumerate(body.inputs) if tensor.ref() in tensors} - variables
        if not more:
            return _Loop(op, body, variables, tensors)
        variables = variables | more


_SAME_BUFFER = ("Identity", "StopGradient", "EnsureShape", "Reshape", "ExpandDims", "Squeeze")


def _origin(body: Any, tensor: Any) -> Any | None:
    """The tensor of the body whose buffer this one is, in this timestep or an earlier one; None if all timesteps share it."""
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


def _bytes(tensor: Any, batch_size: int, batch_axis: int = 0) -> int:
    """Bytes of a tensor, one dimension of which may be the batch."""
    sizes = tensor.shape.as_list() if tensor.shape.rank is not None else [None, None]
    if None in sizes[:batch_axis] + sizes[batch_axis + 1 :]:
        remedy = "fix the shapes in its cell, all but the batch"
        raise _unsupported("tensors whose shape is known but for the batch", f"{tensor.shape} for {tensor.name}", remedy)
    return math.prod(batch_size if size is None else size for size in sizes) * int(tensor.dtype.size)


def _kept(loop: _Loop, batch_size: int) -> dict[Any, int]:
    """Bytes of one timestep that are pushed and needed, by the reference of the tensor whose buffer it is."""
    kept = {}
    for number in loop.variables:
        push = loop.body.outputs[number].op
        if push.type != "TensorListPushBack":
            continue
        pushed, origin = push.inputs[1], _origin(loop.body, push.inputs[1])
        if origin is not None and not (pushed.dtype.is_integer and pushed.shape.rank in (0, 1)):
            kept[origin.ref()] = _bytes(pushed, batch_size)
    return kept


def _source(loop: _Loop, op: Any) -> Any:
    """The operation outside the loop that made the list which this operation of its body reads or writes."""
    numbers = {given.ref(): number for number, given in enumerate(loop.body.inputs)}
    number = numbers.get(op.inputs[0].ref())
    return None if number is None else loop.op.inputs[number].op


def _lists(loop: _Loop, operation: str, source: str) -> dict[str, tuple[Any, Any]]:
    """By name: the maker of each list, and the operation of the loop that reads or writes it."""
    made = ((_source(loop, op), op) for op in loop.body.get_operations() if op.type == operation)
    return {maker.name: (maker, op) for maker, op in made if maker is not None and maker.type == source}


def _sequences(loop: _Loop) -> list[Any]:
    """The sequences (timesteps, batch, ...) whose slices the loop reads, masks left out."""
    read = _lists(loop, "TensorListGetItem", "TensorListFromTensor").values()
    return [maker.inputs[0] for maker, _ in read if maker.inputs[0].dtype.is_floating]


def _output_bytes(loop: _Loop, batch_size: int) -> int:
    import tensorflow as tf

    written = _lists(loop, "TensorListSetItem", "TensorListReserve").values()
    return sum(int(tf.get_static_value(maker.inputs[1])) * _bytes(op.inputs[2], batch_size) for maker, op in written)


def _is_backward(loop: _Loop) -> bool:
    return _reads_lists_of_a_loop(loop) or any(op.type == "TensorListPopBack" for op in loop.body.get_operations())


def _reads_lists_of_a_loop(loop: _Loop) -> bool:
    """Whether it is given lists as another loop left them: accumulators of Keras' loop, or what that of `crypto_lstm.layers` kept."""
    return any(tensor.op.type in _LOOPS and tensor.dtype == "variant" for tensor in loop.op.inputs)


def _needs_input_gradient(loop: _Loop, loops: dict[str, _Loop]) -> bool:
    """Whether the backward loop that reads what this one pushed makes a needed list for the input's gradient."""
    mine = {tensor.ref() for tensor in loop.op.outputs}
    for other in loops.values():
        if _is_backward(other) and any(tensor.ref() in mine for tensor in other.op.inputs):
            made = (op for op in other.body.get_operations() if op.type == "TensorListReserve")
            return any(op.outputs[0].ref() in other.tensors for op in made)
    return False


_COPIES = (*_SAME_BUFFER, "Transpose", "TensorListStack")


def _copied_from(tensor: Any) -> tuple[Any, bool]:
    """What a tensor is a copy of, outside the loops, and whether timesteps and batch changed places."""
    turned = False
    while tensor.op.type in _COPIES:
        turned = turned or tensor.op.type == "Transpose"
        tensor = tensor.op.inputs[0]
    return tensor, turned


def _own_backward(loop: _Loop, loops: dict[str, _Loop]) -> _Loop | None:
    """The backward loop that reads what a loop of `crypto_lstm.layers` keeps; None for Keras' loops."""
    for other in loops.values():
        if any(op.type == "TensorListPopBack" for op in other.body.get_operations()):
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
    while reserved.type == "TensorListSetItem":  # elements that are there before the loop
        reserved = reserved.inputs[0].op
    element = written.inputs[2]
    return int(tf.get_static_value(reserved.inputs[1])) * _bytes(element, batch_size, element.shape.rank - 2)


def _shared(forward: _Loop, backward: _Loop, batch_size: int) -> dict[Any, int]:
    """Bytes that are kept between a loop and its own backward loop, by the reference of the tensor."""
    given = {origin.ref() for origin, turned in (_copied_from(forward.op.inputs[number]) for number in forward.variables) if not turned}
    kept = {}
    for number in backward.variables:
        origin, _ = _copied_from(backward.op.inputs[number])
        if origin.op.name == forward.op.name:
            kept[origin.ref()] = _list_bytes(forward, origin.value_index, batch_size)
        elif origin.ref() in given and origin.op.type not in ("Const", "ReadVariableOp"):
            kept[origin.ref()] = _bytes(origin, batch_size, origin.shape.rank - 2)
    return kept


def _answers(loop: _Loop, copy: Any) -> Any | None:
    """The answers that a loop gave together with those beside it, where this copy was cut out of them."""
    cut, _ = _copied_from(copy)
    if cut.op.type != "SplitV":
        return None
    whole, _ = _copied_from(cut.op.inputs[0])
    mine = whole.op.type == "ConcatV2" and any(_copied_from(part)[0].op.name == loop.op.name for part in whole.op.inputs)
    return whole if mine else None


def _turned(loop: _Loop) -> list[Any]:
    """The sequences that a loop of `crypto_lstm.layers` reads, copied so that the timesteps come first."""
    return [loop.op.inputs[number] for number in sorted(loop.variables) if loop.op.inputs[number].op.type == "Transpose"]


@dataclass(frozen=True)
class LoopTrace:
    """What the loop of one recurrent layer, or the loops that it runs side by side, keep from the forward to the backward pass; all in bytes of one train step."""

    layer: str  # name of the recurrent layer; within a Bidirectional that of its two layers
    steps: int  # timesteps
    kept_bytes: int  # all that is kept, over all timesteps, each buffer once
    shape_only_bytes: int  # the part of it whose values nobody reads: not kept where the batch size is fixed, dropped early elsewhere
    input_list_bytes: int  # the list of input slices: timesteps x batch x inputs
    input_list_is_kept: bool  # whether that list is kept for the backward pass; it is then part of kept_bytes
    needs_input_gradient: bool  # whether a gradient leaves to what is before the layer
    output_bytes: int  # what it returns: timesteps x batch x units, or batch x units of the last timestep
    weight_bytes: int  # its trainable weights
    masked_states: bool  # whether it has recurrent dropout
    gradient_bytes: int  # gradients of its weights that one round of the backward loop makes, and of a lean loop all that such a round holds
    lean: bool = False  # whether it is a loop of `crypto_lstm.layers`
    copies_bytes: int = 0  # then: sequences that its backward loop reads with the timesteps first, and the list of the input's gradient


def _recurrent_layers(model: keras.Model) -> list[Any]:
    import keras

    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.RNN) and layer.built]


def _made_from(loop: _Loop) -> list[Any]:
    """What a loop is given, and what those of it that know no batch, as weights do, are made from."""
    given = list(loop.op.inputs)
    for tensor in given:  # grows
        if tensor.dtype.is_floating and tensor.shape.is_fully_defined():
            given += tensor.op.inputs
    return given


def _layer_of(loop: _Loop, graph: Any, recurrent: Sequence[Any]) -> Any:
    """The recurrent layer whose weights the loop reads."""
    outside = {inside.ref(): given for given, inside in graph.captures}
    read = {id(outside[tensor.ref()]) for tensor in _made_from(loop) if tensor.ref() in outside}
    for layer in recurrent:
        if any(id(v.value.handle) in read for v in layer.variables):
            return layer
    remedy = "make it of keras.layers.RNN and a cell"
    raise _unsupported("every loop to be of a recurrent Keras layer", f"the loop '{loop.op.name}'", remedy)


def _lean_trace(parts: Sequence[_Loop], loops: dict[str, _Loop], layer: Any, batch_size: int) -> LoopTrace:
    """One trace of the loops that a layer of `crypto_lstm.layers` runs side by side."""
    bounds = [batch_size * part // len(parts) for part in range(len(parts) + 1)]
    steps, _, width = _turned(parts[0])[0].shape
    units = layer.units
    masks = next(t for t in parts[0].op.inputs if t.shape.rank == 3 and t.shape[-1] == width + 1 + units)
    kept: dict[Any, int] = {}
    inputs, copies, needs_input_gradient = 0, 0, False
    for loop, size in zip(parts, (high - low for low, high in pairwise(bounds)), strict=True):
        backward = _own_backward(loop, loops)
        if backward is None:
            raise _unsupported("the loops of a layer side by side", f"'{loop.op.name}' of layer '{layer.name}' beside one of another kind", "measure this model instead")
        needs_input_gradient |= any(backward.op.inputs[number].op.type == "TensorListReserve" for number in backward.variables)
        inputs += sum(_bytes(sequence, size, 1) for sequence in _turned(loop))
        kept |= _shared(loop, backward, size)  # the weights are the same
        kept |= {whole.ref(): _bytes(whole, batch_size) for copy in _turned(backward) if (whole := _answers(loop, copy)) is not None}
        copies += sum(_bytes(copy, size, 1) for copy in _turned(backward))
    return LoopTrace(
        layer=layer.name,
        steps=steps,
        kept_bytes=sum(kept.values()),
        shape_only_bytes=0,
        input_list_bytes=inputs,
        input_list_is_kept=False,
        needs_input_gradient=needs_input_gradient,
        output_bytes=FLOAT * batch_size * units * (steps if layer.return_sequences else 1),
        weight_bytes=sum(map(_variable_bytes, layer.trainable_variables)),
        masked_states=layer.cell.recurrent_dropout > 0,
        gradient_bytes=low_memory_step_bytes(batch_size, width, units, masks.shape[0]),
        lean=True,
        copies_bytes=copies + inputs * needs_input_gradient,
    )


def _loop_trace(loop: _Loop, values: dict[str, _Loop], loops: dict[str, _Loop], layer: Any, batch_size: int) -> LoopTrace:
    sequences = _sequences(loop)
    if not sequences or any(op.type in _LOOPS for op in loop.body.get_operations()):
        got = f"the loop of layer '{layer.name}', which reads no sequence or has loops in it"
        raise _unsupported("a loop over the timesteps of a sequence", got, "measure this model instead")
    steps = sequences[0].shape[0]
    kept = _kept(loop, batch_size)
    kernel, masked = getattr(layer.cell, "recurrent_kernel", None), getattr(layer.cell, "recurrent_dropout", 0.0) > 0
    slices = kernel.shape[1] // kernel.shape[0] if masked and kernel is not None else 1  # each sends back a gradient of full size
    for_values = _kept(values[loop.op.name], batch_size) if loop.op.name in values else {}
    return LoopTrace(
        layer=layer.name,
        steps=steps,
        kept_bytes=steps * sum(kept.values()),
        shape_only_bytes=steps * sum(size for origin, size in kept.items() if origin not in for_values),
        input_list_bytes=sum(_bytes(sequence, batch_size, 1) for sequence in sequences),
        input_list_is_kept=any(origin.deref().op.type == "TensorListGetItem" for origin in kept),
        needs_input_gradient=_needs_input_gradient(loop, loops),
        output_bytes=_output_bytes(loop, batch_size),
        weight_bytes=sum(map(_variable_bytes, layer.trainable_variables)),
        masked_states=masked,
        gradient_bytes=sum(map(_variable_bytes, layer.trainable_variables)) + (slices - 1) * _variable_bytes(kernel),
    )


def _variable_bytes(variable: Any) -> int:
    return 0 if variable is None else int(math.prod(variable.shape) * variable.value.dtype.size)


def traced_loops(
    model: keras.Model,  # built and compiled; it stays as it is
    batch_size: int,  # windows in a step
) -> tuple[LoopTrace, ...]:  # one for each call of a recurrent layer, in the order in which they run forward
    """What the loops of a model's recurrent layers keep for the backward pass, read from a trace; no step is run.

    The step is traced as `fit` does it, with an unknown batch size. A layer that is called twice has two loops. All sizes are what the
    tensors need; an allocator rounds each of them up. Counters and shapes, some bytes for each timestep, are left out.
    Raises `UnsupportedMemoryError` for a model that is not built or not compiled, runs eagerly or under XLA, has no recurrent layer, or
    one without a loop (unrolled, cuDNN), or a sequence length of None, and for a batch size that is not a whole number of at least 1.
    """
    _check(model, batch_size)
    recurrent = _recurrent_layers(model)
    if not recurrent:
        remedy = "estimate its memory from its layers' outputs"
        raise _unsupported("a model with recurrent layers", f"'{model.name}' without any that is built", remedy)
    graph = _trace(model, _input_specs(model, int(batch_size)))
    loops: dict[str, _Loop] = {}
    values: dict[str, _Loop] = {}
    _needed(graph, graph.outputs, loops, shapes=True)
    _needed(graph, graph.outputs, values, shapes=False)
    forward = [loops[op.name] for op in graph.get_operations() if op.name in loops and not _is_backward(loops[op.name])]
    layers = [_layer_of(loop, graph, recurrent) for loop in forward]
    _check_loops(graph, recurrent, layers)
    traces, calls = [], iter(zip(forward, layers, strict=True))
    for loop, layer in calls:
        if _own_backward(loop, loops) is None:
            traces.append(_loop_trace(loop, values, loops, layer, int(batch_size)))
        else:  # and the loops beside it
            traces.append(_lean_trace([loop, *(other for other, _ in islice(calls, LOW_MEMORY_PARTS - 1))], loops, layer, int(batch_size)))
    return tuple(traces)


def _check_loops(graph: Any, recurrent: Sequence[Any], found: Sequence[Any]) -> None:
    """Raise `UnsupportedMemoryError` for a recurrent layer that has no loop in the graph."""
    for layer in recurrent:
        if any(layer is other for other in found):
            continue
        if layer.unroll:
            got, remedy = "is unrolled: its memory is not described", "make it with unroll=False"
        elif any(op.type.startswith("CudnnRNN") for op in graph.get_operations()):
            got, remedy = "runs in cuDNN: its memory is not described", "measure it, or make it with use_cudnn=False"
        else:
            got, remedy = "left no loop in the train step", "see that the model calls it and its output is used"
        raise _unsupported("every recurrent layer to run as a loop", f"layer '{layer.name}', which {got}", remedy)


def trace_memory(
    model: keras.Model,  # built and compiled; it stays as it is
    batch_size: int,  # windows in a step
    resident_mb: float | None = None,  # what the process holds with data loaded and model built; None: a process without data
) -> MemoryEstimate:  # all in MB of 2**20 bytes
    """Memory of a training step of any Keras model with recurrent loops, from its traced step; no step is run.

    Raises `UnsupportedMemoryError` for what `traced_loops` refuses and for an optimizer whose slots are not known.
    """
    loops = traced_loops(model, batch_size)
    plain = [layer for layer in model._flatten_layers() if type(layer).__name__ in ("Dense", "Dropout")]
    item = int(model.compute_dtype == "float32") * 2 + 2
    held = [_held(loop, number == len(loops) - 1) for number, loop in enumerate(loops)]
    held += [LayerMemory(layer.name, item * 2 * batch_size * layer.output.shape[-1] / MB) for layer in plain]
    inputs = [tensor.shape[1:] for tensor in model.inputs]
    return assemble_estimate(
        batch_size,
        sum(math.prod(v.shape) for v in model.trainable_variables),
        tuple(held),
        slots=_slots(model),
        windows_mb=sum(4 * batch_size * math.prod(shape) for shape in inputs) / MB,
        loops=[LoopKind(loop.lean, loop.masked_states) for loop in loops],
        resident_mb=BUILT_MB if resident_mb is None else resident_mb,
        notes=["layers other than recurrent ones, Dense and Dropout"],
    )


def _held(loop: LoopTrace, last: bool) -> LayerMemory:
    """What a loop holds, as `crypto_lstm.memory` counts it."""
    if loop.lean:
        return low_memory_layer_peak(loop.layer, loop.kept_bytes, loop.copies_bytes, loop.input_list_bytes, loop.gradient_bytes)
    beside = loop.input_list_bytes if loop.needs_input_gradient else 0
    if not last:
        beside += min(AHEAD_STEPS, loop.steps) * loop.output_bytes // loop.steps
    return keras_layer_peak(loop.layer, loop.kept_bytes, beside, loop.gradient_bytes, loop.steps, loop.masked_states)


def _slots(model: keras.Model) -> int:
    name = type(model.optimizer).__name__.lower()
    if name not in OPTIMIZER_SLOTS or any(getattr(model.optimizer, extra, None) for extra in ("momentum", "amsgrad")):
        raise _unsupported(f"an optimizer out of {', '.join(OPTIMIZER_SLOTS)}, plain", f"{type(model.optimizer).__name__}", "measure this model instead")
    return OPTIMIZER_SLOTS[name] + bool(model.optimizer.gradient_accumulation_steps)
