"""Score the candidates of many prompts without gradient, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import NumericsError
from ..language_model.policy import Policy
from .batches import PromptRow
from .collate import Collator
from .token_budget import Shortage, TokenBudget, if_memory_allows

Found = TypeVar("Found")


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
        training = self.policy.training
        self.policy.eval()
        for chosen, found in in_passes(
            sizes, self.budget, lambda at: self._score([rows[i] for i in at], voices)
        ):
            for voice, logps in found.items():
                scores[voice][chosen, : logps.shape[1]] = logps
        self.policy.train(training)
        return scores

    def _score(self, rows: Sequence[PromptRow], voices: Sequence[str]) -> dict[str, Tensor] | None:
        """Return (B, C) scores of one batch; None where memory ran out and the budget shrank."""
        batch = self.collator(rows)
        present = batch.completion_length > 0
        found = speak(
            self.policy, voices, lambda _: self.policy.logps(batch, self.budget.tokens).cpu(),
            self.budget, self.policy.pass_size(batch),
        )  # fmt: skip
        if found is None:
            return None
        check_finite(found, present)
        return {voice: logps.masked_fill(~present, -torch.inf) for voice, logps in found.items()}


def in_passes(
    sizes: Sequence[int], budget: TokenBudget, score: Callable[[list[int]], Found | None]
) -> Iterator[tuple[list[int], Found]]:
    """Yield groups of rows, the longest first, with what is found of them.

    Args:
        sizes: (n,) tokens of each row, at least about.
        budget: of one pass.
        score: asked for some rows; None where memory ran out and the budget shrank, and the rows come again.
    """
    # The longest rows first, so that a lack of memory shows at once.
    left = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    while left:
        done = 0
        for group in budget.split([sizes[index] for index in left]):
            chosen = [left[place] for place in group]
            found = score(chosen)
            if found is None:
                break
            yield chosen, found
            done += len(chosen)
        left = left[done:]


def speak(
    policy: Policy,
    voices: Sequence[str],
    score: Callable[[str], Tensor],
    budget: TokenBudget,
    size: tuple[int, int],
) -> dict[str, Tensor] | None:
    """Return what each voice says of one batch; None where memory ran out and the budget shrank.

    Args:
        policy: speaks.
        voices: which; layers without an adapter run once for all of them.
        score: asked once a voice, while the policy speaks as that.
        budget: to shrink.
        size: into how many parts the batch could be split, and its padded tokens.

    Raises:
        torch.OutOfMemoryError: for a batch that cannot be split.
    """

    def in_turn() -> dict[str, Tensor]:
        found = {}
        with policy.same_batch():
            for voice in voices:
                with policy.speaking_as(voice):
                    found[voice] = score(voice)
        return found

    found = if_memory_allows(in_turn)
    if isinstance(found, Shortage):
        if not budget.shrink(*size, "out of memory"):
            raise found.error()
        return None
    budget.check(*size)
    return found


def check_finite(found: Mapping[str, Tensor], present: Tensor) -> None:
    """See that every log-probability is a number.

    Args:
        found: (B, C) of each voice.
        present: (B, C) where there is one.

    Raises:
        NumericsError: naming the voice.
    """
    for voice, logps in found.items():
        if not torch.isfinite(logps[present]).all():
            raise NumericsError(f"{voice}: log-probabilities are not finite in {len(present)} rows")
