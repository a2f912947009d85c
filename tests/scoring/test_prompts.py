"""Prompt templates: what is filled in, what stays as it is, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_dynamicpo.errors import DataError, SettingsError
from recbole_dynamicpo.scoring.prompts import Templates, load_templates
from recbole_dynamicpo.settings import properties_folder

SHIPPED = sorted((properties_folder() / "prompts").rglob("*.txt"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{history}", "- A\n- B"),  # one title a line
        ("{history:, } then", "A, B then"),  # on one line, with the separator behind the colon
        ("{history:}", "AB"),  # an empty separator is one too
        ("{history: | } of {candidates:;}", "A | B of X;Y;Z"),
        ("{num_history} of {num_candidates}: {history:,}", "2 of 3: A,B"),
        ("{history:,} {history:;}", "A,B A;B"),  # twice is fine
        ("{ history } {} {history:,}", "{ history } {} A,B"),  # not a placeholder
        ("{{history:,}}", "{A,B}"),
    ],
)
def test_placeholders(text: str, wanted: str) -> None:
    assert Templates([text]).render(["A", "B"], ["X", "Y", "Z"]) == wanted


@pytest.mark.parametrize(
    "title", ["{history}", "{num_history}", "{unknown}", "50% {off", "a}b", r"\1 \g<0>", "$1"]
)
def test_titles_stay_as_they_are(title: str) -> None:
    """Titles are put in, never read for placeholders or escapes."""
    text = Templates(["{history:, } / {candidates:, }:"]).render([title, "B"], ["X", title])
    assert text == f"{title}, B / X, {title}:"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_any_title_is_put_in_unchanged(history: list[str], candidates: list[str]) -> None:
    text = Templates(["H {history:|} C {candidates:|} E"]).render(history, candidates)
    assert text == f"H {'|'.join(history)} C {'|'.join(candidates)} E"


def test_the_template_number_is_taken_modulo() -> None:
    templates = Templates(["a {history}", "b {history}", "c {history}"])
    assert len(templates) == 3
    assert [templates.render(["A"], [], number)[0] for number in range(5)] == list("abcab")
    assert templates.render(["A"], [])[0] == "a"


@pytest.mark.parametrize("separator", ["---", "---  ", "---\t"])
def test_several_templates_in_one_file(tmp_path: Path, separator: str) -> None:
    """Only a line of three dashes separates; empty parts count for nothing."""
    path = tmp_path / "own.txt"
    path.write_text(
        f"one {{history}} -- x\n{separator}\n\ntwo\n{{history:---}} y\n\n---\n\n", encoding="utf-8"
    )
    assert load_templates(str(path), tmp_path / "none").texts == [
        "one {history} -- x",
        "two\n{history:---} y",
    ]


def test_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_bytes("\ufeffone {history:,}\r\nend:\r\n---\r\ntwo {history}\r\n".encode())
    templates = load_templates("own", tmp_path)
    assert templates.texts == ["one {history:,}\nend:", "two {history}"]


@pytest.mark.parametrize(
    "text",
    ["Took:\n{history}\n", "Took: {history:, } \n\n", "Took:\n{history}"],
)
def test_a_prompt_ends_without_white_space(text: str) -> None:
    """The title brings the space along, also where the last thing in the prompt is an empty list."""
    templates = Templates([text])
    for history in (["A", "B"], []):
        prompt = templates.render(history, [])
        assert prompt == prompt.rstrip()


def test_an_unknown_placeholder_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"mine, template 2: unknown placeholder \{histroy\}.*mean 'history'"):
        Templates(["{history}", "{histroy:, }"], "mine")


def test_a_template_without_a_history_is_refused() -> None:
    with pytest.raises(DataError, match=r"mine, template 1: \{history\} is missing"):
        Templates(["{candidates}"], "mine")


@pytest.mark.parametrize("texts", [[], [""], [" \n", "\t"]])
def test_no_template(texts: list[str]) -> None:
    with pytest.raises(DataError, match="mine: got no template"):
        Templates(texts, "mine")


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    """0xE9 is a Latin-1 letter and no UTF-8."""
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9 {history}")
    with pytest.raises(DataError, match=r"latin\.txt: not UTF-8 text .*byte 3"):
        load_templates(str(path), tmp_path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("movie.txt", "book.txt"):
        (tmp_path / name).write_text("{history}", encoding="utf-8")
    with pytest.raises(
        SettingsError, match=r"prompt: got 'movies', wanted one of book, movie .*mean 'movie'"
    ):
        load_templates("movies", tmp_path)


def test_a_shipped_name_comes_before_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (shipped / "movie.txt").write_text("shipped {history}", encoding="utf-8")
    (tmp_path / "movie").write_text("local {history}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_templates("movie", shipped).texts == ["shipped {history}"]
    assert load_templates("./movie", shipped).texts == ["local {history}"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_loads(path: Path) -> None:
    """And shows every history title and candidate whole, in order, with nothing left to fill in."""
    templates = load_templates(path.stem, path.parent)
    assert len(templates) >= 1
    history, candidates = ["Alpha One", "Beta"], ["Gamma", "Delta (1999)", "Eta"]
    for number in range(len(templates)):
        text = templates.render(history, candidates, number)
        places = [text.index(title) for title in history]
        assert places == sorted(places)
        places = [text.index(title) for title in candidates if templates.sequence(number) is None]
        assert places == sorted(places)
        assert "{" not in text
        assert text == text.strip()


def test_something_is_shipped() -> None:
    assert {"neutral", "movie"} <= {path.stem for path in SHIPPED}


def test_a_sequence_ends_with_the_history() -> None:
    texts = [
        "Seen:{history:\\n}", "Seen: {history:; }", "Seen {num_history}:{history:,}", "{history:,}",
        "Of {candidates:,}, seen:{history:,}", "Seen:{history:,}!", "Seen:\n{history}",
    ]  # fmt: skip
    templates = Templates(texts)
    found = [templates.sequence(number) for number in range(len(texts))]
    assert found == [("Seen:", "\n"), ("Seen:", "; "), None, None, None, None, None]
    assert templates.render(["A", "B"], []) == "Seen:A\nB"


def test_a_file_of_the_authors_form_is_read_as_it_is(tmp_path: Path) -> None:
    """One template a line, their placeholders, a space at the end that no prompt keeps."""
    path = tmp_path / "music.txt"
    path.write_text("Heard: [HistoryHere]. Of [CansHere]. Answer: \n\n[CansHere]? After [HistoryHere]:\n")
    templates = load_templates(str(path), tmp_path)
    assert len(templates) == 2
    assert templates.render(["A", "B"], ["X", "Y"]) == "Heard: A, B. Of X, Y. Answer:"
    assert templates.render(["{history}"], ["X", "Y"], 1) == "X, Y? After {history}:"
