"""Score the candidates of many prompts without gradient, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import NumericsError
from ..language_model.policy import Policy
from .batches import PromptRow
from .collate import Collator
from .token_budget import Shortage, TokenBudget, if_memory_allows


class Scorer:
    """Log-probabilities of titles under the policy, the reference or the bare backbone.

    Args:
        policy: what speaks.
        collator: writes and tokenizes the prompts.
        budget: of one forward pass.
    """

    def __init__(self, policy: Policy, collator: Collator, budget: TokenBudget) -> None:
        self.policy = policy
        self.collator = collator
        self.budget = budget

    def __call__(self, rows: Sequence[PromptRow], voice: str = "policy") -> Tensor:
        """Return what ``in_voices`` returns for one voice."""
        return self.in_voices(rows, [voice])[voice]

    @torch.no_grad()
    def in_voices(self, rows: Sequence[PromptRow], voices: Sequence[str]) -> dict[str, Tensor]:
        """Return each voice's (B, C) summed log-probabilities in nats, -inf where there is no completion.

        Rows of similar length share a forward pass, so a score may differ in the last bits with the
        rows around it; the order of the result is the order of ``rows``.

        Raises:
            NumericsError: a log-probability is not finite.
        """
        most = max(len(row.completions) for row in rows)
        kept = torch.promote_types(self.policy.backbone.dtype, torch.float32)
        scores = {voice: torch.full((len(rows), most), -torch.inf, dtype=kept) for voice in voices}
        sizes = [self.collator.title_tokens(row) for row in rows]
        # The longest rows first, so that a lack of memory shows at once.
        left = sorted(range(len(rows)), key=lambda index: (-sizes[index], index))
        training = self.policy.training
        self.policy.eval()
        while left:
            chosen = [left[place] for place in self.budget.split([sizes[index] for index in left])[0]]
            found = self._score([rows[index] for index in chosen], voices)
            if found is not None:
                for voice, logps in found.items():
                    scores[voice][chosen, : logps.shape[1]] = logps
                left = left[len(chosen) :]
        self.policy.train(training)
        return scores

    def _score(self, rows: Sequence[PromptRow], voices: Sequence[str]) -> dict[str, Tensor] | None:
        """Return (B, C) scores of one batch; None where memory ran out and the budget shrank."""
        batch = self.collator(rows)
        present = batch.completion_length > 0
        parts, tokens = self.policy.pass_size(batch)

        def score() -> dict[str, Tensor]:
            found = {}
            with self.policy.same_batch():
                for voice in voices:
                    with self.policy.speaking_as(voice):
                        found[voice] = self.policy.logps(batch, self.budget.tokens).cpu()
            return found

        found = if_memory_allows(score)
        if isinstance(found, Shortage):
            if not self.budget.shrink(parts, tokens, "out of memory"):
                raise found.error()
            return None
        self.budget.check(parts, tokens)
        for voice, logps in found.items():
            if not torch.isfinite(logps[present]).all():
                raise NumericsError(f"{voice}: log-probabilities are not finite in {len(rows)} rows")
        return {voice: logps.masked_fill(~present, -torch.inf) for voice, logps in found.items()}
