"""Score the candidates of many prompts without gradient, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .batches import PromptRow
from .collate import Collator
from .errors import NumericsError
from .policy import Policy


class Scorer:
    """Log-probabilities of titles under the policy, the reference or the bare backbone.

    Args:
        policy: what speaks.
        collator: writes and tokenizes the prompts.
        tokens_per_batch: most padded tokens of one forward pass; a single row may exceed it.
    """

    def __init__(self, policy: Policy, collator: Collator, tokens_per_batch: int) -> None:
        self.policy = policy
        self.collator = collator
        self.tokens_per_batch = tokens_per_batch

    @torch.no_grad()
    def __call__(self, rows: Sequence[PromptRow], voice: str = "policy") -> Tensor:
        """Return (B, C) summed log-probabilities in nats, -inf where a row has fewer completions.

        Rows of similar length share a forward pass, so a score may differ in the last bits with the
        rows around it; the order of the result is the order of ``rows``.

        Raises:
            NumericsError: a log-probability is not finite.
        """
        most = max(len(row.completions) for row in rows)
        scores = torch.full((len(rows), most), -torch.inf)
        training = self.policy.training
        self.policy.eval()
        with self.policy.speaking_as(voice):
            for indices in self._batches(rows):
                batch = self.collator([rows[index] for index in indices])
                logps = self.policy.logps(batch).to("cpu", torch.float32)
                present = batch.completion_length > 0
                if not torch.isfinite(logps[present]).all():
                    raise NumericsError(f"log-probabilities are not finite in one of the rows {indices}")
                scores[indices, : logps.shape[1]] = logps.masked_fill(~present, -torch.inf)
        self.policy.train(training)
        return scores

    def _batches(self, rows: Sequence[PromptRow]) -> Iterator[list[int]]:
        """Yield row indices, the longest rows first, so that a lack of memory shows at once."""
        sizes = [self._tokens(row) for row in rows]
        order = sorted(range(len(rows)), key=lambda index: (-sizes[index], index))
        batch: list[int] = []
        for index in order:
            if batch and sizes[batch[0]] * (len(batch) + 1) > self.tokens_per_batch:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _tokens(self, row: PromptRow) -> int:
        """Return about how many tokens the row packs into; titles are tokenized only once."""
        shown = [*row.history[-self.collator.max_history :], *row.candidates, *row.completions]
        return sum(len(self.collator.title_ids(title)) for title in shown)
