"""The answers that a model writes, greedily, behind the prompts that the likelihood evaluation scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..errors import DataError
from ..parallel import here
from .batches import PromptRow

if TYPE_CHECKING:
    from .scorer import Scorer


def write_answers(
    scorer: Scorer,
    rows: Sequence[PromptRow],
    max_tokens: int,
    *,
    batch_size: int = 16,
    progress: bool = True,
) -> list[str]:
    """Return the greedy continuation of each row's prompt, at most ``max_tokens`` tokens, as text.

    The prompts are those that the likelihood evaluation scores, cut to ``max_length`` in the same way.
    Rows of similar length share a batch; prompts are padded on the left. The processes of a run take turns
    at the batches.

    Args:
        scorer: the policy that speaks and the collator that writes its prompts.
        rows: with the candidates as completions, which decide how much of the prompt fits.
        max_tokens: most tokens of an answer.
        batch_size: rows per batch.
        progress: show a bar that counts rows, where there is a terminal.

    Raises:
        DataError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise DataError(f"batch_size: got {batch_size}, wanted at least 1")
    sizes = [sum(map(len, [*row.history, *row.candidates])) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: (-sizes[index], index))
    answers = [""] * len(rows)
    policy, tokenizer, processes = scorer.policy, scorer.collator.tokenizer, here()
    progress = progress and processes.first
    policy.eval()
    with tqdm(total=len(rows), desc="generate", unit=" rows", disable=None if progress else True) as bar:
        for number, start in enumerate(range(0, len(order), batch_size)):
            chosen = order[start : start + batch_size]
            bar.update(len(chosen))
            if not processes.has_turn(number):
                continue
            written = policy.write(scorer.collator([rows[i] for i in chosen]), max_tokens)
            texts = tokenizer.batch_decode(
                written.cpu(), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            for index, text in zip(chosen, texts, strict=True):
                answers[index] = text
    return ["".join(texts) for texts in zip(*processes.gather(answers), strict=True)]
