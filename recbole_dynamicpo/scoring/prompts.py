"""Prompt templates: history and candidate titles in, text out.

A template file holds one or more templates, separated by lines that consist of ``---``. The first
one is what evaluation uses. Placeholders: ``{history}`` and ``{candidates}`` (titles, one a line
behind a dash, or on one line as ``{history:, }`` with the separator behind the colon),
``{num_history}`` and ``{num_candidates}``. A separator ``\\n`` is a line break. Which template a row gets
is the caller's choice: nothing here is random. The template files of the method's authors are read as they
are: one template a line, in which ``[HistoryHere]`` and ``[CansHere]`` stand for titles with commas between.

A prompt ends without white space and a completion starts with a space, so that prompt and title
fall into the tokens that the model itself would write. The published code ends its prompt with a
line break and writes the title right behind it.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import DataError, SettingsError, nearest

_PLACEHOLDER = re.compile(r"\{(\w+)(?::([^}\n]*))?\}")
_KNOWN = ("history", "candidates", "num_history", "num_candidates")
_SEQUENCE = re.compile(r"(.*)\{history:([^}\n]+)\}", re.DOTALL)
# The authors' placeholders, as ours.
_THEIRS = {"[HistoryHere]": "{history:, }", "[CansHere]": "{candidates:, }"}
_SEPARATOR = re.compile(r"^---[ \t]*$", re.MULTILINE)


class Templates:
    """The templates of one file.

    Args:
        texts: template texts, at least one; trailing white space is cut.
        source: where they came from, for messages.

    Raises:
        DataError: no template, an unknown placeholder, or no place for the history.
    """

    def __init__(self, texts: list[str], source: str = "templates") -> None:
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"{source}: got {str(texts)[:80]}, wanted a list of texts")
        self.texts = [text.strip() for text in texts if text.strip()]
        self.source = source
        if not self.texts:
            raise DataError(f"{source}: got no template, wanted at least one non-empty text")
        for number, text in enumerate(self.texts, start=1):
            names = [match.group(1) for match in _PLACEHOLDER.finditer(text)]
            for name in names:
                if name not in _KNOWN:
                    raise DataError(
                        f"{source}, template {number}: unknown placeholder {{{name}}}; "
                        f"wanted some of {', '.join(_KNOWN)}{nearest(name, _KNOWN)}"
                    )
            if "history" not in names:
                raise DataError(f"{source}, template {number}: {{history}} is missing")

    def __len__(self) -> int:
        return len(self.texts)

    def sequence(self, template: int = 0) -> tuple[str, str] | None:
        """Return the head and the separator of a template that shows the history last, and nothing else.

        Such a prompt goes on as its history does: a title behind it is one more title of the sequence.
        None for any other template.
        """
        found = _SEQUENCE.fullmatch(self.texts[template % len(self.texts)])
        if found is None or not found[1].strip() or _PLACEHOLDER.search(found[1]):
            return None
        return found[1].rstrip(), _separator(found[2])

    def render(self, history: list[str], candidates: list[str], template: int = 0) -> str:
        """Return the prompt text; ``template`` is taken modulo the number of templates."""
        lists = {"history": history, "candidates": candidates}

        def fill(match: re.Match[str]) -> str:
            name, separator = match.groups()
            if name.startswith("num_"):
                return str(len(lists[name.removeprefix("num_")]))
            titles = lists[name]
            if separator is not None:
                return _separator(separator).join(titles)
            return "\n".join(f"- {title}" for title in titles)

        return _PLACEHOLDER.sub(fill, self.texts[template % len(self.texts)]).rstrip()


def _separator(written: str) -> str:
    return written.replace("\\n", "\n")


def load_templates(name: str, folder: Path) -> Templates:
    """Load the templates called ``name`` in ``folder``, or the file that ``name`` is the path of.

    Raises:
        SettingsError: there is no such template or file.
        DataError: the file is not UTF-8 or holds no usable template.
    """
    shipped = {path.stem: path for path in folder.glob("*.txt")}
    path = shipped.get(name, Path(name))
    try:
        there = path.is_file()
    except OSError:  # such as a text that is too long for a path
        there = False
    if not there:
        raise SettingsError(
            f"prompt: got '{name}', wanted one of {', '.join(sorted(shipped))} "
            f"or the path of a template file{nearest(name, shipped)}"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SettingsError(f"prompt: {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    return Templates(_as_ours(text) if "[HistoryHere]" in text else _SEPARATOR.split(text), str(path))


def _as_ours(text: str) -> list[str]:
    """Return the templates of a file of the authors' form."""
    for theirs, ours in _THEIRS.items():
        text = text.replace(theirs, ours)
    return text.splitlines()
