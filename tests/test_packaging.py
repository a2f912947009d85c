"""What a plain pip install has to hold: every setting file and template, without the checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_every_module_and_property_file(tmp_path: Path) -> None:
    source = tmp_path / "source"  # building writes beside the sources
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(tmp_path), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    properties = [path.relative_to(ROOT) for path in (ROOT / "properties").rglob("*") if path.is_file()]
    assert len(properties) > 10
    assert {f"recbole_dynamicpo/{path.as_posix()}" for path in properties} <= inside
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recbole_dynamicpo").rglob("*.py")}
    assert len(modules) > 80
    assert modules == {
        name
        for name in inside
        if name.startswith("recbole_dynamicpo/")
        and name.endswith(".py")
        and not name.startswith(("recbole_dynamicpo/flows/", "recbole_dynamicpo/properties/"))
    }
    assert "recbole_dynamicpo/py.typed" in inside
    flows = {f"recbole_dynamicpo/flows/{path.name}" for path in (ROOT / "flows").iterdir() if path.is_file()}
    assert "recbole_dynamicpo/flows/prefect.yaml" in flows
    assert flows <= inside


def test_the_settings_page_lists_every_setting() -> None:
    import dataclasses

    from recbole_dynamicpo.settings import Settings

    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    missing = [item.name for item in dataclasses.fields(Settings) if f"| `{item.name}` = " not in text]
    assert missing == []
