"""The oldest releases that setup.cfg allows, as pip's constraints: python scripts/floors.py [PACKAGE ...]"""

from __future__ import annotations

import configparser
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.cfg"
# Those whose next or last release is likeliest to be different.
PACKAGES = ("torch", "transformers", "peft", "prefect", "mlflow")


def floors(packages: Sequence[str], setup: Path = SETUP) -> Iterator[str]:
    """Yield ``name==version`` of each package's lower bound.

    Raises:
        SystemExit: a package is not required, or has no lower bound.
    """
    config = configparser.ConfigParser()
    config.read(setup, encoding="utf-8")
    required = config["options"]["install_requires"].splitlines()
    for package in packages:
        bounds = [line for line in required if re.match(rf"{re.escape(package)}\s*[<>=!~]", line)]
        lowest = [found for line in bounds for found in re.findall(r">=\s*([\w.]+)", line)]
        if len(lowest) != 1:
            got = "; ".join(bounds) or "nothing"
            raise SystemExit(f"{setup.name}: {package}: got {got}, wanted one line with >=")
        yield f"{package}=={lowest[0]}"


if __name__ == "__main__":
    print("\n".join(floors(sys.argv[1:] or PACKAGES)))
