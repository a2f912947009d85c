"""What newer Pythons lack is supplied before RecBole is imported; what is there stays as it is."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import numpy as np
import pytest

from recbole_dynamicpo.host.compat import prepare


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))


def test_ray_is_stood_in_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)
    known: dict[str, Any] = {**sys.modules}
    prepare()
    from ray import tune  # as RecBole's quick_start says

    with pytest.raises(ImportError, match=r"ray\.tune\.report: RecBole's search needs ray"):
        tune.report()
    assert set(sys.modules) - set(known) == {"ray", "ray.tune"}
    for name in ("ray", "ray.tune"):
        monkeypatch.delitem(sys.modules, name)


def test_names_that_numpy_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {"float_", "complex_", "unicode_", "bool8"} & set(vars(np)):
        monkeypatch.delattr(np, name)
    monkeypatch.setattr(np, "__version__", "2.4.1")
    monkeypatch.setattr(np, "complex_", "kept", raising=False)
    prepare()
    names = vars(np)
    assert (names["float_"], names["unicode_"], names["bool8"]) == (np.float64, np.str_, np.bool_)
    assert names["complex_"] == "kept"
    for name in ("float_", "unicode_", "bool8"):
        delattr(np, name)


def test_an_old_numpy_and_a_ray_that_is_there_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    if "float_" in vars(np):
        monkeypatch.delattr(np, "float_")
    monkeypatch.setattr(np, "__version__", "1.26.4")
    monkeypatch.setitem(sys.modules, "ray", "there")
    prepare()
    assert "float_" not in vars(np)
    assert sys.modules["ray"] == "there"
