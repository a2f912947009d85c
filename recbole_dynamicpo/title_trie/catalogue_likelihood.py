"""The catalogue likelihood: log-probabilities of titles, normalised over what the catalogue allows.

    lp(y | x) = sum over the branching nodes on y's path of log softmax over the node's children of logit
    logit(child) = s (h . W[child] - c[child]) + sum over priors j of a_j log(mass_j(child) / mass_j(node))

It is the probability of y under decoding that is held to the catalogue, so that it sums to 1 over all
distinct titles, and neither length nor spelling of a title costs anything. With s = 1 and nothing else it is
the language model alone; with s = 0 and one prior of weight 1 it is that prior's own log-probability. In
between it is a product of experts, normalised exactly at each node.

Shape letters as in ``title_layout``: Q queries, C candidates, S states, E edges; D the width of a hidden
state, J priors. All may have leading dimensions, one entry for each row that shares the layout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .title_layout import ChildEdges, Layout, TitleSteps


class Mixture(nn.Module):
    """How much the language model and each prior have to say; both are trained.

    Args:
        scale: s.
        weights: (J,) a.
        centre: (E,) c, an untrained model's mean logits at all edges of the trie; None for nothing.
    """

    centre: Tensor

    def __init__(self, scale: float, weights: Sequence[float], centre: Tensor | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.weights = nn.Parameter(torch.tensor(list(weights), dtype=torch.float32))
        self.register_buffer("centre", torch.zeros(0) if centre is None else centre.float())

    def logits(self, products: Tensor, log_ratios: Tensor, edge: Tensor) -> Tensor:
        """Return (..., E) logits of children; see ``edge_logits``.

        Args:
            products: (..., E) of :func:`child_products`.
            log_ratios: (J, ..., E) of the priors.
            edge: (E,) of the trie.
        """
        scale, weights = self.scale.to(products.device), self.weights.to(products.device)
        return edge_logits(self.centred(products, edge), scale, weights, log_ratios)

    def centred(self, products: Tensor, edge: Tensor) -> Tensor:
        """Return (..., E) products without what the untrained model thinks of the (E,) edges of the trie."""
        return products - self.centre.to(products)[edge.to(products.device)] if len(self.centre) else products


def child_products(states: Tensor, weight: Tensor, edges: ChildEdges) -> Tensor:
    """Return (..., E) h . W[child token] for the children of each state's node, at least in float32.

    A plain output layer is all that this needs; other heads are asked by ``Policy.own_logits``.

    Args:
        states: (..., S, D) hidden states at the branching nodes.
        weight: (V, D) output layer; only rows of child tokens are read.
        edges: which children each state has.
    """
    wide = torch.promote_types(states.dtype, torch.float32)
    states = states.to(wide)
    groups, single, place = edges.products
    parts = [
        (states.index_select(-2, chosen) @ weight[tokens].to(wide).T).flatten(-2) for chosen, tokens in groups
    ]
    rows = weight[edges.token[single]].to(wide)
    parts.append((states.index_select(-2, edges.source[single]) * rows).sum(dim=-1))
    return torch.cat(parts, dim=-1).index_select(-1, place)


def edge_logits(products: Tensor, scale: Tensor, weights: Tensor, log_ratios: Tensor) -> Tensor:
    """Return (..., E) logits of children, from the language model and the priors.

    Args:
        products: (..., E) of the language model, c taken out.
        scale: () s, the weight of the language model.
        weights: (J,) a, those of the priors.
        log_ratios: (J, ..., E) log of the share of a node's mass that goes to each child, nats; of any
            floating type and on any device.
    """
    logits = scale * products
    for weight, log_ratio in zip(weights, log_ratios.to(products), strict=True):
        logits = logits + weight * log_ratio
    return logits


def segment_log_softmax(logits: Tensor, source: Tensor, states: int) -> Tensor:
    """Return (..., E) log softmax of ``logits`` over the edges of each state.

    No result is above 0, whatever the rounding, so that a prefix bounds every title below it.

    Args:
        logits: (..., E).
        source: (E,) int64 state of each edge.
        states: S.
    """
    lead = logits.shape[:-1]
    top = logits.new_full((*lead, states), -torch.inf)
    top = top.scatter_reduce(-1, source.expand_as(logits), logits.detach(), "amax")
    shifted = logits - top.index_select(-1, source)
    total = logits.new_zeros(*lead, states).index_add(-1, source, shifted.exp())
    return shifted - total.log().index_select(-1, source)


def title_logps(edge_logps: Tensor, steps: TitleSteps) -> Tensor:
    """Return (..., Q, C) sums along the paths of titles, nats; absent candidates get 0.

    Args:
        edge_logps: (..., E) of :func:`segment_log_softmax`.
        steps: which edges make up which title.
    """
    total = edge_logps.new_zeros(*edge_logps.shape[:-1], steps.queries * steps.candidates)
    total = total.index_add(-1, steps.title, edge_logps.index_select(-1, steps.edge))
    result: Tensor = total.unflatten(-1, (steps.queries, steps.candidates))
    return result


def catalogue_logps(logits: Tensor, layout: Layout) -> Tensor:
    """Return (..., Q, C) log-probabilities of the layout's titles in nats, from its (..., E) logits."""
    return title_logps(segment_log_softmax(logits, layout.edges.source, len(layout.source)), layout.steps)
