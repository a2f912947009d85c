"""A traced model as plain data: a list of tensor operations that are known to be harmless.

``torch.export`` traces; its own files are not used, since reading one unpickles and evaluates texts of the
file. Here a node is JSON, an operation is looked up in a list of names, and nothing else can be called.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

# Operations on tensors and on sizes that a graph may hold; none reads a file, a variable or the clock.
OPERATIONS = frozenset(
    {
        "_to_copy", "abs", "add", "add_", "addmm", "alias", "all", "amax", "amin", "any", "arange",
        "argmax", "argsort", "avg_pool2d", "baddbmm", "bitwise_and", "bitwise_not", "bitwise_or", "bmm",
        "cat", "chunk", "clamp", "clamp_min", "clone", "constant_pad_nd", "contiguous", "conv1d",
        "conv2d", "cos", "cumsum", "detach", "detach_", "div", "div_", "dropout", "einsum", "elu",
        "embedding", "eq", "erf", "exp", "expand", "expand_as", "fft_irfft", "fft_rfft", "flatten",
        "flip", "full", "full_like", "gather", "ge", "gelu", "group_norm", "gru", "gt", "index",
        "index_select", "layer_norm", "le", "leaky_relu", "lift_fresh", "lift_fresh_copy", "linear",
        "log", "log_softmax", "logical_and", "logical_not", "logical_or", "lstm", "lt", "masked_fill",
        "masked_fill_", "matmul", "max", "max_pool1d", "max_pool2d", "maximum", "mean", "min",
        "minimum", "mm", "mul", "mul_", "narrow", "ne", "neg", "new_full", "new_ones", "new_zeros",
        "norm", "ones", "ones_like", "pad", "permute", "pow", "reciprocal", "relu", "relu_", "repeat",
        "repeat_interleave", "reshape", "rsqrt", "rsub", "scalar_tensor",
        "scaled_dot_product_attention", "scatter", "scatter_", "scatter_add", "scatter_add_", "select",
        "select_scatter", "sigmoid", "silu", "sin", "slice", "slice_scatter", "softmax", "softplus",
        "sort", "split", "split_with_sizes", "sqrt", "squeeze", "stack", "sub", "sub_", "sum",
        "sym_size", "t", "tanh", "to", "topk", "transpose", "tril", "triu", "true_divide", "type_as",
        "unbind", "unfold", "unsqueeze", "view", "view_as", "where", "zeros", "zeros_like",
    }
)  # fmt: skip
_SIZES = {
    call.__name__: call
    for call in (operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv)
}
_RESULTS = ("Tensor", "List[Tensor]", "int", "SymInt")
_CHECKS = ("_assert", "sym_constrain")  # nodes that compute nothing
# Values that JSON does not have, by the name of their kind.
_KINDS: dict[str, type] = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}

Node = dict[str, Any]


class ForeignOperationError(ValueError):
    """A graph has an operation that is not in the list."""


def trace(module: nn.Module, example: Sequence[Tensor]) -> tuple[list[Node], dict[str, Tensor]]:
    """Return the nodes of a module's forward pass, and its tensors by name.

    Args:
        module: in evaluation mode; returns one tensor.
        example: its arguments, whose first dimension may have any size.

    Raises:
        ForeignOperationError: it does something else than ``OPERATIONS``.
        Exception: ``torch.export`` cannot follow it.
    """
    rows = tuple({0: torch.export.Dim.DYNAMIC} for _ in example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of recurrent layers, which are found as they were
        program = torch.export.export(module, tuple(example), dynamic_shapes=rows)
    graph, signature = program.graph, program.graph_signature
    for node in reversed(graph.nodes):
        if node.op == "call_function" and any(mark in str(node.target) for mark in _CHECKS):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    held = {
        **signature.inputs_to_parameters, **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }  # fmt: skip
    values = {**dict(module.named_buffers()), **program.constants, **program.state_dict}
    nodes: list[Node] = []
    place: dict[fx.Node, int] = {}
    arguments = iter(range(len(example)))
    for node in graph.nodes:
        if node.op == "output":
            (result,) = node.args[0]
            return [*nodes, {"result": place[result]}], {
                name: values[name].detach().cpu().contiguous().clone() for name in set(held.values())
            }
        if node.op == "placeholder":
            own: Node = {"tensor": held[node.name]} if node.name in held else {"input": next(arguments)}
        else:
            own = {
                "op": _name_of(node.target),
                "args": [_plain(value, place) for value in node.args],
                "kwargs": {key: _plain(value, place) for key, value in node.kwargs.items()},
            }
        place[node] = len(nodes)
        nodes.append(own)
    raise ForeignOperationError("no result")


def run(nodes: Sequence[Node], tensors: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """Return what the nodes compute of some inputs, on the CPU.

    Raises:
        ForeignOperationError: a node that ``trace`` does not write.
    """
    found: list[Any] = []
    for node in nodes:
        if "tensor" in node:
            found.append(tensors[node["tensor"]])
        elif "input" in node:
            found.append(inputs[node["input"]])
        elif "result" in node:
            result = found[node["result"]]
            if isinstance(result, Tensor):
                return result
            break
        else:
            call = _operation(node["op"])
            args = [_value(one, found) for one in node["args"]]
            found.append(call(*args, **{key: _value(one, found) for key, one in node["kwargs"].items()}))
    raise ForeignOperationError("no result")


def _name_of(target: Any) -> str:
    """Return an operation's name, which ``_operation`` finds it by."""
    name = target.__name__ if target in _SIZES.values() else str(target).removeprefix("aten.")
    _operation(name)
    return name


def _operation(name: Any) -> Any:
    if name in _SIZES:
        return _SIZES[name]
    packet, _, overload = str(name).partition(".")
    if packet in OPERATIONS and overload in getattr(torch.ops.aten, packet).overloads():
        found = getattr(getattr(torch.ops.aten, packet), overload)
        if all(str(returned.type) in _RESULTS for returned in found._schema.returns):
            return found
    raise ForeignOperationError(f"operation {name}")


def _plain(value: Any, place: Mapping[fx.Node, int]) -> Any:
    """Return an argument as JSON has it."""
    if isinstance(value, fx.Node):
        return {"node": place[value]}
    if isinstance(value, list | tuple):
        return [_plain(one, place) for one in value]
    if isinstance(value, torch.device):
        return {"device": "cpu"}
    for kind, known in _KINDS.items():
        if isinstance(value, known):
            return {kind: str(value).removeprefix("torch.")}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ForeignOperationError(f"argument {value!r}")


def _value(plain: Any, found: Sequence[Any]) -> Any:
    """Return what ``_plain`` was given."""
    if isinstance(plain, list):
        return [_value(one, found) for one in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, name),) = plain.items()
    if kind == "node":
        return found[name]
    if kind == "device":
        return torch.device("cpu")
    value = getattr(torch, str(name), None)
    if kind not in _KINDS or not isinstance(value, _KINDS[kind]):
        raise ForeignOperationError(f"argument {plain!r}")
    return value
