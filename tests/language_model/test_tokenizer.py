"""Tokenizers whose prompts cannot be continued are refused at load; those with marks of their own are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_dynamicpo.errors import AdapterError, BackboneError
from recbole_dynamicpo.language_model.backbone import load_backbone
from recbole_dynamicpo.language_model.tokenizer import (
    check_tokenizer,
    check_tokenizer_beside,
    title_tokens,
    warn_of_titles,
)

from ..conftest import make_model, make_tokenizer


def metaspace(prepend: str = "always", *, normalizer: bool = False) -> Any:
    """Return a tokenizer of single characters that writes a space as a mark, as SentencePiece does."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<eos>", "<unk>", "▁", *map(chr, range(33, 127)), "\n", "É"]
    model = models.BPE({letter: i for i, letter in enumerate(letters)}, [], unk_token="<unk>")
    made = Tokenizer(model)
    if normalizer:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", unk_token="<unk>")


def with_template(single: str) -> Any:
    from tokenizers import processors

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<eos>", 0)]
    )
    return tokenizer


@pytest.mark.parametrize("single", ["$A <eos>", "<eos> $A <eos>", "$A <eos> <eos>"])
def test_a_tokenizer_that_ends_every_text_is_refused(single: str) -> None:
    with pytest.raises(
        BackboneError, match=r"'mine': its tokenizer ends every text with \['<eos>'\].*add_eos"
    ):
        check_tokenizer(with_template(single), "mine", 257)


def test_a_tokenizer_that_begins_every_text_is_fine() -> None:
    check_tokenizer(with_template("<eos> $A"), "mine", 257)


@pytest.mark.parametrize(
    "tokenizer",
    [
        metaspace(normalizer=True),
        metaspace("always"),
        metaspace("first"),
        metaspace("never"),
        make_tokenizer(),
    ],
    ids=["normalizer", "always", "first", "never", "bytes"],
)
def test_a_title_has_the_tokens_that_it_has_behind_a_prompt(tokenizer: Any) -> None:
    """A mark that every text begins with is no part of a title: the prompt has it already."""
    check_tokenizer(tokenizer, "mine", 257)
    whole = tokenizer("Next: Up <eos>", split_special_tokens=True).input_ids
    assert whole == tokenizer("Next:").input_ids + title_tokens(tokenizer, "Up <eos>")


@pytest.mark.parametrize(
    ("rows", "word"), [(0, "end-of-sequence token '<eos>' has the id 0"), (200, "ids up to 256")]
)
def test_an_embedding_that_is_too_small_is_named(rows: int, word: str) -> None:
    with pytest.raises(BackboneError, match=rf"'mine': .*{word}.* {rows} rows"):
        check_tokenizer(make_tokenizer(), "mine", rows)


def test_an_end_outside_the_embedding_is_named() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    with pytest.raises(BackboneError, match=r"end-of-sequence token '<end>' has the id 257, .* 257 rows"):
        check_tokenizer(tokenizer, "mine", 257)
    check_tokenizer(tokenizer, "mine", 258)


def test_a_special_token_that_nobody_writes_may_lie_outside() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    check_tokenizer(tokenizer, "mine", 257)


class Cased:
    """A tokenizer that writes a text otherwise the longer it is."""

    def __init__(self) -> None:
        self.inner = make_tokenizer()

    def __call__(self, text: str, **options: Any) -> Any:
        return self.inner(text.upper() if len(text) > 20 else text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_parts_that_are_not_the_whole_are_shown() -> None:
    with pytest.raises(BackboneError, match=r"'mine': its tokenizer writes .* but its parts as"):
        check_tokenizer(Cased(), "mine", 257)


def test_without_an_end_nothing_can_be_scored() -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(BackboneError, match="'mine': its tokenizer has no end-of-sequence token"):
        check_tokenizer(tokenizer, "mine", 257)


def test_it_is_asked_at_load(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    with_template("$A <eos>").save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="ends every text"):
        load_backbone(str(tmp_path))


def word_pieces() -> Any:
    """Return a tokenizer of lower-case letters that marks what goes on, as BERT's does."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [*map(chr, range(33, 65)), *map(chr, range(91, 127))]
    pieces = ["<eos>", "<unk>", *letters, *(f"##{letter}" for letter in letters)]
    model = models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>")
    made = Tokenizer(model)
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("tokenizer", "lost"),
    [
        (make_tokenizer(), ""),
        (metaspace(), ""),
        (word_pieces(), "does not keep 2 of 3 titles whole, such as '2001: A Space', of which it makes"),
    ],
    ids=["bytes", "sentencepiece", "wordpiece"],
)
def test_titles_that_tokens_do_not_keep_are_told(tokenizer: Any, lost: str, caplog: Any) -> None:
    """Of each family: bytes, a mark for a space, pieces of lower-case words."""
    titles = ["2001: A Space", "Élan <eos>", "x (1995)"]
    warn_of_titles(tokenizer, titles, [title_tokens(tokenizer, title) for title in titles])
    assert [lost in message for message in caplog.messages] == ([True] if lost else [])


def test_the_tokenizer_beside_an_adapter_writes_as_the_backbones(tmp_path: Path) -> None:
    """A token to pad with is no difference; a word more, another end, or a broken file is."""
    ours = make_tokenizer()
    check_tokenizer_beside(tmp_path, ours, "tiny")  # there is none
    beside = make_tokenizer()
    beside.add_special_tokens({"pad_token": "[PAD]"})
    beside.padding_side = "left"
    beside.save_pretrained(tmp_path)
    check_tokenizer_beside(tmp_path, ours, "tiny")
    beside.eos_token = "[PAD]"
    beside.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"has the end of a sequence as 257, but .* 'tiny' as 0; wanted"):
        check_tokenizer_beside(tmp_path, ours, "tiny")
    beside = make_tokenizer()
    beside.add_tokens(["Zanzibar"])
    beside.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="has its tokens as"):
        check_tokenizer_beside(tmp_path, ours, "tiny")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(AdapterError, match="beside the adapter cannot be read") as caught:
        check_tokenizer_beside(tmp_path, ours, "tiny")
    assert "\n" not in str(caught.value)
