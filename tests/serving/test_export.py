"""A merged export is a plain model: the same log-probabilities, without peft and without this package."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_dynamicpo import load_recommender
from recbole_dynamicpo.cli import main
from recbole_dynamicpo.scoring.batches import PromptRow
from recbole_dynamicpo.serving.export import grammar
from recbole_dynamicpo.storage import load_json

from ..helpers.saved_recommender import TITLES, write_recommender


@pytest.mark.parametrize("priors", [None, ["popularity"]])
def test_the_same_log_probabilities_in_plain_transformers(
    priors: list[str] | None, tiny_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = write_recommender(tmp_path / "kept", tiny_backbone, priors=priors)
    assert main(["export", "--model", str(folder), "--merged", str(tmp_path / "merged")]) == 0
    assert "a model of transformers" in capsys.readouterr().out
    recommender = load_recommender(folder)
    row = PromptRow(["Bear", "Delta"], ["Canyon", "Ember"], ["Canyon", "Ember"])
    ours = recommender.scorer([row])[0]
    (prompt,) = recommender.scorer.collator.prompt_ids([row], [200])

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokens = load_json(tmp_path / "merged" / "catalogue_tokens.json")
    assert [line["title"] for line in tokens["titles"]] == list(dict.fromkeys(TITLES))
    assert next(line["ids"] for line in tokens["titles"] if line["title"] == "Amber") == ["3", "5"]
    of_title = {line["title"]: line["tokens"] for line in tokens["titles"]}
    assert {line[-1] for line in of_title.values()} == {tokens["terminator"]}
    for title, wanted in zip(row.completions, ours.tolist(), strict=True):
        ids = torch.tensor([[*prompt, *of_title[title]]])
        with torch.no_grad():
            logps = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
        found = logps.gather(1, ids[0, len(prompt) :, None]).sum().item()
        assert found == pytest.approx(wanted, abs=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("Bear").input_ids

    assert len({path.stat().st_mode for path in (tmp_path / "merged").iterdir()}) == 1


def test_a_place_that_cannot_be_taken_is_named_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    for place, said in ((taken, "exists; wanted a new folder"), (taken / "new", "cannot be made (Not a dir")):
        assert main(["export", "--model", "nowhere", "--merged", str(place)]) == 2
        assert f"{place}: " in (told := capsys.readouterr().err)
        assert said in told


def texts_of(rules: str) -> list[str]:
    """Return the texts of a grammar, read letter by letter as its readers do."""
    head, body = rules.removesuffix("\n").split("::= ", 1)
    assert head == "root "
    found = re.findall(r'"((?:[^"\\]|\\.)*)"(?:\n  \| |$)', body)
    return [re.sub(r"\\(x..|.)", lambda m: codecs.decode(m[0], "unicode_escape"), text) for text in found]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_a_grammar_has_any_texts(texts: list[str]) -> None:
    rules = grammar(texts)
    assert texts_of(rules) == texts
    assert not set(map(chr, (*range(10), *range(11, 32), 127))) & set(rules)


@pytest.mark.parametrize(("priors", "end"), [(None, ""), (["popularity"], "\n")])
def test_decoding_is_held_to_the_catalogue_by_the_files_alone(
    priors: list[str] | None, end: str, tiny_backbone: Path, tmp_path: Path
) -> None:
    """As many beams as titles give all of them, in the order of their log-probabilities; greedily one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "merged"
    folder = write_recommender(tmp_path / "kept", tiny_backbone, priors=priors)
    assert main(["export", "--model", str(folder), "--merged", str(out)]) == 0
    kept = load_json(out / "catalogue_tokens.json")
    titles = kept["titles"]
    assert [line["text"] for line in titles] == [f" {line['title']}{end}" for line in titles]
    assert texts_of((out / "catalogue.gbnf").read_text()) == [line["text"] for line in titles]
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    prompt = tokenizer("Seen: Bear", return_tensors="pt").input_ids
    width, end_of_text = prompt.shape[1], tokenizer.eos_token_id
    for line in titles:
        tokens = tokenizer(f"Seen: Bear{line['text']}").input_ids[width:]
        assert tokens == line["tokens"][: None if end else -1]

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        written = ids[width:].tolist()
        done = len(written)
        fit = [line["tokens"] for line in titles if line["tokens"][:done] == written]
        return [tokens[done] for tokens in fit if len(tokens) > done] or [end_of_text]

    held = {"prefix_allowed_tokens_fn": allowed, "pad_token_id": end_of_text}
    many = {"num_beams": len(titles), "num_return_sequences": len(titles), "length_penalty": 0.0}
    found = model.generate(prompt, **held, **many)
    by_tokens = {tuple(line["tokens"]): line["title"] for line in titles}
    logps = {}
    for tokens, title in by_tokens.items():
        ids = torch.cat([prompt, torch.tensor([tokens])], dim=1)
        with torch.no_grad():
            each = model(ids).logits[0, width - 1 : -1].log_softmax(dim=-1)
        logps[title] = each.gather(1, ids[0, width:, None]).sum().item()
    order = [by_tokens[written(row, width, kept["terminator"])] for row in found.tolist()]
    assert order == sorted(logps, key=lambda title: -logps[title])
    (greedy,) = model.generate(prompt, **held, do_sample=False).tolist()
    assert written(greedy, width, kept["terminator"]) in by_tokens


def written(row: list[int], start: int, terminator: int) -> tuple[int, ...]:
    """Return what was written behind a prompt, up to and with the terminator."""
    return tuple(row[start : row.index(terminator, start) + 1])
