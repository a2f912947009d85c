"""Token tables of the collator. The tokenizer has one token per byte and 0 as end of sequence.

Printable ASCII is its code minus 32 ("A" = 33, ":" = 26, "," = 12); a space is 221, a line break 199.
"""

from __future__ import annotations

import logging

import pytest
import torch

from recbole_dynamicpo.errors import DataError
from recbole_dynamicpo.scoring.batches import PromptRow
from recbole_dynamicpo.scoring.collate import Collator
from recbole_dynamicpo.scoring.prompts import Templates

from ..conftest import make_tokenizer

A, B, C, D, X, Y = 33, 34, 35, 36, 56, 57
SPACE, COMMA, COLON, SEMICOLON, EOS = 221, 12, 26, 27, 0


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return make_tokenizer()


def collator(
    tokenizer: object, text: str = "{history:,}:", max_length: int = 99, max_history: int = 9
) -> Collator:
    return Collator(tokenizer, Templates([text]), max_length=max_length, max_history=max_history)


def row(history: str, completions: list[str], candidates: str = "") -> PromptRow:
    """A row whose history and candidate titles are single letters."""
    return PromptRow(list(history), list(candidates), completions)


def test_one_row(tokenizer: object) -> None:
    """The prompt ends with the colon, not with a space; the space is the title's first token."""
    batch = collator(tokenizer)([row("AB", ["X"])])
    assert batch.prompt.tolist() == [[A, COMMA, B, COLON]]
    assert batch.prompt_length.tolist() == [4]
    assert batch.completions.tolist() == [[[SPACE, X, EOS]]]
    assert batch.completion_length.tolist() == [[3]]


def test_ragged_rows_are_padded_on_the_right(tokenizer: object) -> None:
    batch = collator(tokenizer)([row("ABC", ["X", "XY"]), row("D", ["Y"])])
    assert batch.prompt.tolist() == [
        [A, COMMA, B, COMMA, C, COLON],
        [D, COLON, 0, 0, 0, 0],  # shorter prompt
    ]
    assert batch.prompt_length.tolist() == [6, 2]
    assert batch.completions.tolist() == [
        [[SPACE, X, EOS, 0], [SPACE, X, Y, EOS]],  # shorter title
        [[SPACE, Y, EOS, 0], [0, 0, 0, 0]],  # absent candidate
    ]
    assert batch.completion_length.tolist() == [[3, 4], [3, 0]]
    assert all(tensor.dtype == torch.int64 for tensor in batch)


def test_candidates_and_template_choice(tokenizer: object) -> None:
    templates = Templates(["{history:,}:", "{candidates:,};{history:,}:"])
    write = Collator(tokenizer, templates, max_length=99, max_history=9)
    batch = write([row("A", ["X"], "XY"), PromptRow(["A"], ["X", "Y"], ["X"], template=3)])
    assert batch.prompt.tolist() == [
        [A, COLON, 0, 0, 0, 0],
        [X, COMMA, Y, SEMICOLON, A, COLON],  # 3 modulo 2 is the second template
    ]


def test_prompt_and_title_meet_without_a_gap_or_a_double_space(tokenizer: object) -> None:
    """White space around the template is cut, so text and tokens of both parts simply join."""
    batch = collator(tokenizer, "Next after {history:,}: \n\n")([row("AB", ["X Y"])])
    ids = [*batch.prompt[0].tolist(), *batch.completions[0, 0].tolist()]
    assert tokenizer.decode(ids) == "Next after A,B: X Y<eos>"


def test_only_the_newest_history_is_shown(tokenizer: object) -> None:
    """max_history is no truncation: nothing is counted."""
    write = collator(tokenizer, max_history=2)
    assert write([row("ABCD", ["X"])]).prompt.tolist() == [[C, COMMA, D, COLON]]
    assert write.truncated_rows == 0


@pytest.mark.parametrize(
    ("max_length", "wanted", "truncated"),
    [
        (11, [A, COMMA, B, COMMA, C, COMMA, D, COLON], 0),  # 8 + 3 tokens of " X" and the end: just fits
        (10, [B, COMMA, C, COMMA, D, COLON], 1),  # a whole title goes, although one token would do
        (9, [B, COMMA, C, COMMA, D, COLON], 1),
        (8, [C, COMMA, D, COLON], 1),
        (5, [D, COLON], 1),
        (4, [COLON], 1),  # not one title of history fits
    ],
)
def test_the_oldest_history_goes_first(
    tokenizer: object, max_length: int, wanted: list[int], truncated: int
) -> None:
    write = collator(tokenizer, max_length=max_length)
    assert write([row("ABCD", ["X"])]).prompt.tolist() == [wanted]
    assert write.truncated_rows == truncated


def test_room_is_what_the_longest_title_of_the_row_leaves(tokenizer: object) -> None:
    """Row 1 scores "XYXY" (6 tokens) and keeps 10 - 6 = 4 tokens; row 2 scores "X" (3) and keeps 6."""
    write = collator(tokenizer, max_length=10)
    batch = write([row("ABC", ["X", "XYXY"]), row("ABC", ["X"])])
    assert batch.prompt_length.tolist() == [4, 6]
    assert write.truncated_rows == 1


def test_candidates_are_never_dropped(tokenizer: object) -> None:
    write = collator(tokenizer, "{history:,};{candidates:,}:", max_length=9)
    batch = write([row("ABC", ["X"], "XY")])
    assert batch.prompt.tolist() == [[C, SEMICOLON, X, COMMA, Y, COLON]]


def test_truncation_is_counted_and_said_once(tokenizer: object, caplog: pytest.LogCaptureFixture) -> None:
    write = collator(tokenizer, max_length=8)
    write([row("ABCD", ["X"]), row("AB", ["X"]), row("ABC", ["X"])])
    write([row("ABCD", ["X"])])
    assert write.truncated_rows == 3
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "max_length=8" in warnings[0].message


@pytest.mark.parametrize("history", ["ABC", "A", ""])
def test_a_row_that_cannot_fit(tokenizer: object, history: str) -> None:
    """ ";X,Y:" needs 5 tokens and max_length leaves 7 - 3 = 4; with no history there is nothing to drop."""
    write = collator(tokenizer, "{history:,};{candidates:,}:", max_length=7)
    with pytest.raises(
        DataError, match=r"2 candidates needs 5 tokens .* max_length=7 leaves 4; raise max_length or"
    ):
        write([row(history, ["X"], "XY")])


def test_title_tokens_are_made_once(tokenizer: object) -> None:
    """The tables that follow must not change the ones before."""
    calls: list[object] = []

    class Counting:
        eos_token_id = EOS

        def __call__(self, text: object, **options: object) -> object:
            calls.append(text)
            return tokenizer(text, **options)

    write = collator(Counting())
    first = write.title_ids("XY")
    assert first == [SPACE, X, Y, EOS]
    assert write.title_ids("XY") == first
    assert calls == [":", ": XY"]  # behind a colon, as behind a prompt
    again = write([row("A", ["XY", "XY"])]).completions.tolist()
    assert again == [[[SPACE, X, Y, EOS]] * 2]
    assert calls == [":", ": XY", ["A:"]]


def test_titles_outside_ascii_and_with_odd_spaces(tokenizer: object) -> None:
    """Nothing is normalised: decoding gives the title back."""
    for title in ["Amélie", "七人の侍", "A  B", "tab\there", "é", "50% {off}", "…"]:
        ids = collator(tokenizer).title_ids(title)
        assert tokenizer.decode(ids[:-1]) == " " + title
        assert ids[-1] == EOS


def test_token_ids_are_what_the_batch_holds(tokenizer: object) -> None:
    write = collator(tokenizer, max_length=50, max_history=2)
    prompts, completions = write.token_ids([row("ABC", ["X", "Y"]), row("A", ["X"])])
    batch = write([row("ABC", ["X", "Y"]), row("A", ["X"])])
    for index, ids in enumerate(prompts):
        assert batch.prompt[index, : batch.prompt_length[index]].tolist() == ids
        assert batch.completion_length[index].tolist()[: len(completions[index])] == list(
            map(len, completions[index])
        )
    assert prompts == write.token_ids([row("BC", ["X", "Y"]), row("A", ["X"])])[0]  # A is too old


def test_every_title_shown_keeps_its_room(tokenizer: object) -> None:
    """Whatever is scored, room is left for "XYXY" (6 tokens): the prompt of a row is always the same."""
    write = collator(tokenizer, "{history:,};{candidates:,}:", max_length=20)
    shown = ["X", "XYXY", "Y"]
    prompts = [
        write([PromptRow(list("ABCDE"), shown, scored)]).prompt.tolist()
        for scored in (["X"], ["XYXY"], ["Y", "X"], shown)
    ]
    assert prompts == [prompts[0]] * 4
    assert len(prompts[0][0]) <= 20 - 6


def test_the_limit_that_binds_is_named(tokenizer: object, caplog: pytest.LogCaptureFixture) -> None:
    templates = Templates(["{history:,};{candidates:,}:"])
    write = Collator(
        tokenizer, templates, max_length=9, max_history=9, limited_by="the backbone's sliding_window"
    )
    write([row("ABC", ["X"], "X")])
    assert "a prompt exceeds the backbone's sliding_window=9 tokens" in caplog.text
    with pytest.raises(
        DataError, match=r"backbone's sliding_window=9 leaves 6; lower num_candidates"
    ) as found:
        write([row("ABC", ["X"], "XYXY")])
    assert "raise max_length" not in str(found.value)
