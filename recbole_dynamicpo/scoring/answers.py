"""The answers that a model writes, greedily, behind the prompts that the likelihood evaluation scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from ..errors import DataError
from .batches import PromptRow

if TYPE_CHECKING:
    from .scorer import Scorer

ANSWER_TOKENS = 20  # the paper's; a longer title is cut off and can no longer be named


@torch.no_grad()
def write_answers(
    scorer: Scorer, rows: Sequence[PromptRow], *, batch_size: int = 16, progress: bool = True
) -> list[str]:
    """Return the greedy continuation of each row's prompt, at most ``ANSWER_TOKENS`` tokens, as text.

    The prompts are those that the likelihood evaluation scores, cut to ``max_length`` in the same way.
    Rows of similar length share a batch; prompts are padded on the left.

    Args:
        scorer: the policy that speaks and the collator that writes its prompts.
        rows: with the candidates as completions, which decide how much of the prompt fits.
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
    policy = scorer.policy
    policy.eval()
    with tqdm(total=len(rows), desc="generate", unit=" rows", disable=None if progress else True) as bar:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            for index, answer in zip(chosen, _continue(scorer, [rows[i] for i in chosen]), strict=True):
                answers[index] = answer
            bar.update(len(chosen))
    return answers


def _continue(scorer: Scorer, rows: list[PromptRow]) -> list[str]:
    """Decode one batch."""
    from transformers import GenerationConfig

    tokenizer = scorer.collator.tokenizer
    batch = scorer.collator(rows)
    width = int(batch.prompt_length.max())
    # The collator pads on the right; each row is turned until its last token stands at the end.
    place = (torch.arange(width) - (width - batch.prompt_length)[:, None]) % width
    mask = torch.arange(width) >= (width - batch.prompt_length)[:, None]
    end = tokenizer.eos_token_id
    settings = GenerationConfig(
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        num_beams=1,
        eos_token_id=end,
        pad_token_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    model = scorer.policy.peft
    device = next(model.parameters()).device
    written = model.generate(
        input_ids=batch.prompt[:, :width].gather(1, place).to(device),
        attention_mask=mask.long().to(device),
        generation_config=settings,
    )
    texts: list[str] = tokenizer.batch_decode(
        written[:, width:].cpu(), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return texts
