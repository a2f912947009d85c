"""A traced module as plain data says what the module says, and nothing but tensor operations can be in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recbole_dynamicpo.retrievers.graph import OPERATIONS, ForeignOperationError, Node, run, trace


class Small(nn.Module):
    """Embeddings, a recurrence, a mask written in place, sizes as numbers, constants."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4, padding_idx=0)
        self.cell = nn.GRU(4, 4, batch_first=True)
        self.register_buffer("shift", torch.arange(4.0))

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        found, _ = self.cell(self.table(items))
        found = found.masked_fill_((items == 0)[:, :, None], -2.0)
        place = (lengths - 1).view(-1, 1, 1).expand(-1, -1, 4)
        last = found.gather(1, place).squeeze(1) + self.shift + torch.tensor([1.0, 0.0, 0.0, 2.0])
        return torch.cat([last, last.new_zeros(items.shape[0], 1)], dim=1).to(torch.float64)


def small() -> tuple[Small, list[Node], dict[str, Tensor]]:
    torch.manual_seed(0)
    module = Small().eval()
    example = (torch.tensor([[1, 2, 0], [3, 0, 0]]), torch.tensor([2, 1]))
    nodes, tensors = trace(module, example)
    return module, json.loads(json.dumps(nodes)), tensors


def test_the_graph_says_what_the_module_says_for_any_number_of_rows() -> None:
    module, nodes, tensors = small()
    for rows in (1, 2, 5):
        items = torch.randint(0, 7, (rows, 3))
        lengths = torch.randint(1, 4, (rows,))
        with torch.no_grad():
            found, wanted = run(nodes, tensors, (items, lengths)), module(items, lengths)
        assert found.dtype == wanted.dtype
        assert torch.allclose(found, wanted, atol=1e-6)


def test_by_hand() -> None:
    nodes = [
        {"input": 0}, {"tensor": "w"}, {"op": "mul.Tensor", "args": [{"node": 0}, {"node": 1}], "kwargs": {}},
        {"op": "sum.dim_IntList", "args": [{"node": 2}, [1]], "kwargs": {"dtype": {"dtype": "float64"}}},
        {"result": 3},
    ]  # fmt: skip
    found = run(nodes, {"w": torch.tensor([2.0, 3.0])}, [torch.tensor([[1.0, 1.0], [0.0, 4.0]])])
    assert found.tolist() == [5.0, 12.0]
    assert found.dtype == torch.float64


class Named(nn.Module):
    """Calls one function on its input."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.call = call

    def forward(self, items: Tensor) -> Any:
        return self.call(items)


def test_what_cannot_be_kept_is_refused_when_it_is_traced() -> None:
    with pytest.raises(ForeignOperationError, match="operation bincount"):
        trace(Named(lambda x: torch.bincount(x.flatten()).float()), [torch.ones(2, 3, dtype=torch.int64)])


@pytest.mark.parametrize(
    "name",
    ["from_file.default", "os.system", "__import__", "builtins.eval", "add", "add.", "save", "warn",
     "mm.out.x", "torch.ops.aten.add.Tensor", "eval", ""],
)  # fmt: skip
def test_no_other_operation_is_called(name: str) -> None:
    nodes = [{"input": 0}, {"op": name, "args": ["/tmp/x"], "kwargs": {}}, {"result": 1}]
    if name == "add":  # of sizes
        nodes[1]["args"] = [{"node": 0}, {"value": 1}]
    with pytest.raises(ForeignOperationError):
        run(nodes, {}, [torch.ones(1)])


@pytest.mark.parametrize("plain", [{"dtype": "load"}, {"layout": "hub"}, {"module": "os"}, {"dtype": 3}])
def test_no_other_value_is_looked_up(plain: dict[str, Any]) -> None:
    nodes = [{"input": 0}, {"op": "to.dtype", "args": [{"node": 0}, plain], "kwargs": {}}, {"result": 1}]
    with pytest.raises(ForeignOperationError, match="argument"):
        run(nodes, {}, [torch.ones(1)])


def test_a_graph_without_a_result_is_refused() -> None:
    with pytest.raises(ForeignOperationError, match="no result"):
        run([{"input": 0}], {}, [torch.ones(1)])


def test_listed_operations_are_torchs_and_take_no_name_of_a_file() -> None:
    """What takes a text takes a mode, never a place."""
    texts = set()
    for name in OPERATIONS:
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads():
            schema = getattr(packet, overload)._schema
            if any("Tensor" in str(returned.type) for returned in schema.returns):
                texts |= {argument.name for argument in schema.arguments if "str" in str(argument.type)}
    assert texts <= {
        "approximate",
        "rounding_mode",
        "mode",
        "equation",
        "reduce",
        "indexing",
        "padding",
        "norm",
    }
