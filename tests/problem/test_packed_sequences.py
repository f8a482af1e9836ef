"""A pass without a mask asks the device for nothing, and other callers find packed rows as ever."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bif.language.linear_loss import chunked_next_token
from bif.losses import next_token
from bif.problem.functional import ItemFunction
from language_cases import model
from small_problems import integers

pytest.importorskip("transformers", reason="the extra `lm` is not installed")


class Asked(TorchDispatchMode):
    """Counts the times that the host reads a number of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.times += "_local_scalar_dense" in str(function)
        return function(*arguments, **(named or {}))


def neox() -> Any:
    network: Any = model("neox")
    network.config._attn_implementation = "sdpa"
    return network.eval()


@pytest.mark.parametrize("loss", [chunked_next_token, next_token])
def test_the_host_reads_nothing_in_a_pass_and_a_step(loss):
    network, batch = neox(), {"input_ids": integers(300, 3, 16, seed=0)}
    first = loss(network, batch)  # the chunked one looks at the head
    with Asked() as asked:
        again = loss(network, batch)
        again.sum().backward()
    assert torch.equal(again, first) and asked.times == 0
    with Asked() as asked:
        network(input_ids=batch["input_ids"], use_cache=False)
    assert asked.times > 0  # else transformers no longer looks, and `packed_sequences` can go


def test_packed_rows_of_other_callers_are_found_as_before():
    network, ids = neox(), integers(300, 1, 12, seed=1)
    chunked_next_token(network, {"input_ids": ids})
    positions = torch.cat([torch.arange(7), torch.arange(5)]).unsqueeze(0)
    packed = network(input_ids=ids, position_ids=positions, use_cache=False).logits
    alone = network(input_ids=ids[:, 7:], use_cache=False).logits
    torch.testing.assert_close(packed[:, 7:], alone, rtol=0, atol=1e-10)


def test_the_compiled_pass_is_one_graph_with_the_causal_kernel():
    network, batch = neox(), {"input_ids": integers(300, 2, 8, seed=2)}
    expected = ItemFunction(network, chunked_next_token)(batch)
    causal = []

    def look(graph, _):
        nodes = [n for n in graph.graph.nodes if "scaled_dot_product" in str(n.target)]
        causal.extend(n.kwargs["is_causal"] and n.kwargs["attn_mask"] is None for n in nodes)
        return graph

    compiled = torch.compile(
        ItemFunction(network, chunked_next_token), backend=look, dynamic=False, fullgraph=True
    )
    torch.testing.assert_close(compiled(batch), expected, rtol=0, atol=1e-10)
    assert causal == [True, True]
