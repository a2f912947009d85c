"""The rows of the next optimizer step, laid out by a thread while the device works on the present one.

Layout is the host's work alone: prompts are written, tokenized and packed, priors asked. It draws nothing and
looks at no weight, so that a step is the same to the last bit, whoever laid it out and when.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import NamedTuple, Protocol

import torch
from recbole.data.interaction import Interaction, cat_interactions
from torch import Tensor

from ..dataset.columns import TOKENS
from ..language_model.policy import Policy
from ..likelihoods.losses import LaidOut
from ..objectives.diagnostics import Diagnostics
from ..parallel import Processes, here
from ..scoring.token_budget import TokenBudget


class Learner(Protocol):
    """What takes steps: the model, as this package needs it.

    Attributes:
        stage: ``sft`` or ``preference``.
        policy: whose adapter learns.
        budget: of one pass.
        diagnostics: of the last preference pass.
        beta_counts: (BETA_BINS,) histogram of that pass's betas.
    """

    stage: str
    policy: Policy
    budget: TokenBudget
    diagnostics: Diagnostics | None
    beta_counts: Tensor

    def train(self, mode: bool = True) -> object:
        """Let dropout act."""

    def lay_out(self, interaction: Interaction) -> LaidOut:
        """Return a pass over rows, laid out on the host."""

    def losses_of(self, laid_out: LaidOut) -> Tensor:
        """Return the losses of a pass, with gradient."""


class _Layout(NamedTuple):
    passes: list[LaidOut]
    budget: int  # tokens of a pass when they were laid out


class Ready:
    """The rows of one optimizer step, and the passes over this process's share of them.

    Args:
        model: lays out.
        batches: of all processes.
        worker: lays out in the background, one thing at a time; None: when asked, in the present thread.
    """

    def __init__(
        self, model: Learner, batches: Sequence[Interaction], worker: ThreadPoolExecutor | None = None
    ) -> None:
        self.model, self.batches, self._worker = model, batches, worker
        self.layout: Future[_Layout] | None = None
        if worker is not None:
            self.layout = worker.submit(self._lay_out)

    def passes(self) -> list[LaidOut]:
        """Return the passes, laid out anew where the budget is another one by now.

        Raises:
            DynamicPOError: a row cannot be laid out; whoever did it, it is raised here.
        """
        if self._worker is None:
            return self._lay_out().passes
        if self.layout is None or self.layout.result().budget != self.model.budget.tokens:
            self.layout = self._worker.submit(self._lay_out)
        return self.layout.result().passes

    def _lay_out(self) -> _Layout:
        budget = self.model.budget.tokens
        parts = parts_of(own_share(self.batches, here()), self.model.budget)
        return _Layout([self.model.lay_out(part) for part in parts], budget)


class Ahead:
    """Lays out the step that comes next; used as a context, at whose end no thread is left.

    Args:
        model: lays out.
    """

    def __init__(self, model: Learner) -> None:
        self.model = model
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="layout")
        self._coming: Ready | None = None

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)

    def steps(self, batches: Iterable[Sequence[Interaction]]) -> Iterator[Ready]:
        """Yield each step's rows; while one is worked on, the next is being laid out."""
        for rows in batches:
            ready, self._coming = self._coming, Ready(self.model, rows, self._worker)
            if ready is not None:
                yield ready
        ready, self._coming = self._coming, None
        if ready is not None:
            yield ready

    def rest(self) -> None:
        """Return when nothing is being laid out, so that others may write prompts."""
        if self._coming is not None and self._coming.layout is not None:
            wait([self._coming.layout])


def own_share(batches: Sequence[Interaction], processes: Processes) -> Sequence[Interaction]:
    """Return the batches of this process's share of a step's rows, dealt by their tokens."""
    if processes.alone:
        return batches
    rows = batches[0] if len(batches) == 1 else cat_interactions(list(batches))
    own, most = processes.deal(rows[TOKENS].tolist()), max(map(len, batches))
    return [rows[torch.tensor(own[start : start + most])] for start in range(0, len(own), most)]


def parts_of(batches: Sequence[Interaction], budget: TokenBudget) -> list[Interaction]:
    """Return the rows of a step by passes.

    A batch is a pass, or several where it exceeds the budget; its rows are sorted by size. Where the budget
    is to be filled, batches say no more than how many rows there are: the largest rows come first, so that a
    lack of memory shows at once, and each pass has as many as fit.
    """
    if budget.fills and batches:
        rows = batches[0] if len(batches) == 1 else cat_interactions(list(batches))
        batches = [rows[rows[TOKENS].argsort(descending=True, stable=True)]]
    parts = []
    for batch in batches:
        groups = budget.split(batch[TOKENS].tolist())
        parts += [batch] if len(groups) == 1 else [batch[group] for group in groups]
    return parts
