"""The gate's question answered in the asking process: a fresh one takes ten seconds to import everything."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from recbole_dynamicpo.errors import DynamicPOError
from recbole_dynamicpo.serving import gate

TimeoutExpired = subprocess.TimeoutExpired


def run(command: list[str], env: Mapping[str, str], **how: Any) -> subprocess.CompletedProcess[str]:
    """Stand in for ``subprocess.run``; ``gate.subprocess`` may be set to this module."""
    with mock.patch.dict(os.environ, env):
        try:
            gate.main(Path(command[-2]), Path(command[-1]))
        except DynamicPOError as error:
            return subprocess.CompletedProcess(command, 1, "", str(error))
    return subprocess.CompletedProcess(command, 0, "", "")
