"""What the pages say is there is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import recbole_dynamicpo

ROOT = Path(__file__).parents[1]
PACKAGE = Path(recbole_dynamicpo.__file__).parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_the_drawing_holds_every_module_once_and_no_other() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawing = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    assert drawing is not None
    drawn, folder = [], ""
    for line in drawing[1].splitlines():
        opened = re.match(r"  (\w+/) ", line)
        folder = opened[1] if opened else "" if re.match(r"\w", line) else folder
        drawn += [folder + name for name in re.findall(r"\b\w+\.py\b", line)]
    places = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    # An installed package holds flows and properties, which stand beside it in the checkout.
    present = {path.as_posix() for path in places if path.parts[0] not in ("flows", "properties")}
    assert sorted(drawn) == sorted(path for path in present if not path.endswith("/__init__.py"))


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_named_files_exist(page: Path) -> None:
    """A path in backticks with a folder in it, or the dotted name of a module and what is in it."""
    text = page.read_text(encoding="utf-8")
    folders = "benchmarks|docker|examples|flows|properties|scripts|tests|docs|" + "|".join(
        path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"
    )
    paths = re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", text)
    assert [path for path in paths if not ((ROOT / path).exists() or (PACKAGE / path).exists())] == []
    modules = re.findall(rf"`((?:{folders})\.(?!json`)\w+)(?:\.\w+)*`", text)
    missing = [name for name in modules if not (PACKAGE / f"{name.replace('.', '/')}.py").is_file()]
    assert missing == []
