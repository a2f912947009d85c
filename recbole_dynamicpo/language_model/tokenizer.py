"""A backbone's tokenizer, for who needs no weights, and whether prompts and titles can be written with it.

A title is scored behind a prompt that was tokenized without it. That is right only where the tokens of the
whole are those of its parts, with nothing between them and nothing that the model does not know.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import AdapterError, BackboneError, short
from ..storage import sha256_file, sha256_json

logger = logging.getLogger(__name__)

# Texts that end and titles that begin as the shipped templates and catalogues do.
_PROMPTS = ("Titles:\n- Heat (1995)\n- Alien\n\nThe next title is:", "A, B\nAnswer:")
_TITLES = ("The Godfather (1972)", "2001: A Space Odyssey", "Élan", "X", "'Til There Was You")
# Ends a text as a prompt may; what a tokenizer puts before its first text is then put before this.
_ANCHOR = ":"
# By which a folder is known to hold a tokenizer.
_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
# What makes a tokenizer, of every kind.
_ALL_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)


def load_tokenizer(place: str, name: str) -> Any:
    """Return the tokenizer at ``place``, a folder or a hub id.

    Args:
        place: what ``resolve_backbone`` made of the name.
        name: of the backbone, for the error.

    Raises:
        BackboneError: there is no usable tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # what a damaged file raises there is not documented
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackboneError(f"backbone '{name}': its tokenizer cannot be loaded ({reason})") from error


def tokenizer_digest(place: str) -> str:
    """Return the SHA-256 over the tokenizer's files at ``place``, a folder or a hub id that was loaded."""
    folder = Path(place)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(place, local_files_only=True, allow_patterns=list(_ALL_FILES)))
    files = sorted({path for pattern in _ALL_FILES for path in folder.glob(pattern)})
    return sha256_json({path.name: sha256_file(path) for path in files})


def title_tokens(tokenizer: Any, title: str) -> list[int]:
    """Return the tokens of a space and a title behind a prompt; special tokens in it are spelled out."""
    return text_tokens(tokenizer, f" {title}")


def text_tokens(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text behind another; special tokens in it are spelled out.

    Some normalisers begin every text with a mark of their own, so it is not tokenized alone.
    """

    def plain(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return ids

    before, whole = plain(_ANCHOR), plain(f"{_ANCHOR}{text}")
    # Where the text swallows the anchor, it is tokenized alone; check_tokenizer sees whether that is right.
    return whole[len(before) :] if whole[: len(before)] == before else plain(text)


def warn_of_titles(tokenizer: Any, titles: Sequence[str], tokens: Sequence[Sequence[int]]) -> None:
    """Warn once where tokens lose a part of their titles: an unknown letter, case, an accent.

    Such titles are still told apart, or the catalogue is refused; but the model reads other texts. White
    space is not compared: WordPiece does not keep it.

    Args:
        tokenizer: a Hugging Face tokenizer.
        titles: any number.
        tokens: of ``title_tokens``, of each.
    """
    found = tokenizer.batch_decode([list(ids) for ids in tokens], clean_up_tokenization_spaces=False)
    pairs = zip(titles, found, strict=True)
    lost = [(title, text.strip()) for title, text in pairs if title.split() != text.split()]
    lost = [(title, text) for title, text in lost if "".join(title.split()) != "".join(text.split())]
    if lost:
        logger.warning(
            "the tokenizer does not keep %d of %d titles whole, such as '%s', of which it makes '%s'",
            len(lost), len(titles), *lost[0],
        )  # fmt: skip


def check_tokenizer(tokenizer: Any, name: str, rows: int) -> None:
    """See whether a tokenizer can write prompts and titles for a model.

    Args:
        tokenizer: a Hugging Face tokenizer.
        name: of the backbone, for messages.
        rows: of the model's input embedding.

    Raises:
        BackboneError: it has no end-of-sequence token, ends every text with a special token, writes tokens
            that the embedding does not have, or writes parts otherwise than the whole.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise BackboneError(f"backbone '{name}': its tokenizer has no end-of-sequence token")
    _check_known(tokenizer, name, rows, end)
    for prompt in _PROMPTS:
        with_special, plain = (
            tokenizer(prompt).input_ids,
            tokenizer(prompt, add_special_tokens=False).input_ids,
        )
        if not plain or with_special[-1] != plain[-1]:
            last = tokenizer.convert_ids_to_tokens(with_special[-1:])
            raise BackboneError(
                f"backbone '{name}': its tokenizer ends every text with {last}, so that nothing can follow a "
                "prompt; wanted one that does not (see add_eos_token in tokenizer_config.json, or the "
                "post_processor in tokenizer.json)"
            )
        for title in _TITLES:
            _check_parts(lambda text: tokenizer(text).input_ids, tokenizer, name, prompt, title)


def check_tokenizer_beside(folder: Path, tokenizer: Any, name: str) -> None:
    """See whether the tokenizer that lies beside an adapter, if one does, writes as its backbone's.

    Special tokens that one of them has more, such as one to pad with, are no difference: no text holds them.

    Args:
        folder: of the adapter.
        tokenizer: of the backbone, which is used.
        name: of the backbone, for messages.

    Raises:
        AdapterError: it writes otherwise, ends otherwise, or cannot be read.
    """
    if not any((folder / file).is_file() for file in _FILES):
        return
    try:
        beside = load_tokenizer(str(folder), name)
    except BackboneError as error:
        raise AdapterError(f"{folder}: the tokenizer beside the adapter cannot be read ({error})") from error

    special = {*tokenizer.all_special_tokens, *beside.all_special_tokens}

    def said(of: Any) -> dict[str, Any]:
        """Return what a tokenizer makes of texts, the end of a sequence, and all of its plain tokens."""
        plain = {token: number for token, number in of.get_vocab().items() if token not in special}
        written = {short(text): of(text).input_ids for text in (*_TITLES, *_PROMPTS)}
        return {**written, "the end of a sequence": of.eos_token_id, "its tokens": plain}

    got = said(beside)
    for what, wanted in said(tokenizer).items():
        if got[what] != wanted:
            raise AdapterError(
                f"{folder}: the tokenizer beside the adapter has {what} as {short(got[what])}, but that of "
                f"backbone '{name}' as {short(wanted)}; wanted the backbone that the adapter was trained on"
            )


def _check_known(tokenizer: Any, name: str, rows: int, end: int) -> None:
    if end >= rows:
        raise BackboneError(
            f"backbone '{name}': its end-of-sequence token '{tokenizer.eos_token}' has the id {end}, but its "
            f"embedding has {rows} rows; wanted a tokenizer that fits the model"
        )
    used = {token for prompt in _PROMPTS for token in tokenizer(prompt).input_ids}
    special = set(tokenizer.all_special_ids)
    known = (token for token in tokenizer.get_vocab().values() if token not in special)
    highest = max(*used, *known)
    if highest >= rows:
        raise BackboneError(
            f"backbone '{name}': its tokenizer writes ids up to {highest}, but its embedding has {rows} "
            "rows; wanted a tokenizer that fits the model"
        )


def _check_parts(
    encode: Callable[[str], list[int]], tokenizer: Any, name: str, prompt: str, title: str
) -> None:
    whole, parts = encode(f"{prompt} {title}"), [*encode(prompt), *title_tokens(tokenizer, title)]
    if whole != parts:
        raise BackboneError(
            f"backbone '{name}': its tokenizer writes '{prompt[-8:]} {title}' as "
            f"{tokenizer.convert_ids_to_tokens(whole)[-8:]}, but its parts as "
            f"{tokenizer.convert_ids_to_tokens(parts)[-8:]}; wanted one whose tokens of a prompt and of a "
            "title behind it are those of the whole"
        )
