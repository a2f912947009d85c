"""The floors are what setup.cfg says, and not newer than what was tried."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import floors

ROOT = Path(__file__).parents[2]


def test_the_script_prints_constraints_of_the_five() -> None:
    done = subprocess.run([sys.executable, floors.__file__], capture_output=True, text=True, check=True)
    found = [Requirement(line) for line in done.stdout.splitlines()]
    assert [requirement.name for requirement in found] == list(floors.PACKAGES)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [line for line in setup["options"]["install_requires"].splitlines() if line and line[0] != "#"]
    mine = {requirement.name: requirement.specifier for requirement in map(Requirement, lines)}
    tried = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()[1:]
        if ";" not in line
    )
    for requirement in found:
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        assert pin.version in mine[requirement.name]
        assert {bound.version for bound in mine[requirement.name] if bound.operator == ">="} == {pin.version}
        assert Version(pin.version) <= Version(tried[requirement.name])


def test_comments_markers_and_names_within_names_are_no_trouble(tmp_path: Path) -> None:
    setup = tmp_path / "setup.cfg"
    setup.write_text(
        "[options]\ninstall_requires =\n    # torch>=1\n    torch-more>=9\n"
        "    torch >= 2.6, <3 ; python_version < '4'\n    peft>=0.20\n"
    )
    assert list(floors.floors(["peft", "torch"], setup)) == ["peft==0.20", "torch==2.6"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("mlflow>=3", "setup.cfg: torch: got nothing, wanted one line with >="),
        ("torch<3", "setup.cfg: torch: got torch<3, wanted one line with >="),
        ("torch>=2\n    torch>=3", "setup.cfg: torch: got torch>=2; torch>=3, wanted one line with >="),
    ],
)
def test_a_package_without_a_floor_is_named(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "setup.cfg").write_text(f"[options]\ninstall_requires =\n    {lines}\n")
    with pytest.raises(SystemExit) as stopped:
        list(floors.floors(["torch"], tmp_path / "setup.cfg"))
    assert str(stopped.value) == message


def test_the_weekly_workflow_makes_what_the_makefile_has() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "weekly.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    targets = job["strategy"]["matrix"]["target"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets == ["floors", "newest"]
    assert all(f"\n{target}:  ## " in makefile for target in targets)
    assert job["steps"][-1]["run"] == "make ${{ matrix.target }}"
