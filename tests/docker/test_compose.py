"""compose.yaml and Dockerfile agree with the scripts, the page, the package and the constraints."""

from __future__ import annotations

import configparser
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from recbole_dynamicpo import __version__

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def in_checkout(path: str) -> Path:
    """Return what lies at a path of the image."""
    assert path.startswith("/app/"), path
    return ROOT / path.removeprefix("/app/")


def script_of(name: str) -> str:
    """Return the text of a service's script."""
    (path,) = SERVICES[name]["command"]
    return in_checkout(path).read_text(encoding="utf-8")


def listens(name: str) -> int:
    """Return the port where a service listens unless told otherwise, as its script says."""
    (port,) = re.findall(r"_PORT:-(\d+)\}", script_of(name))
    return int(port)


def test_the_services_are_those_of_the_page_and_each_has_a_script() -> None:
    assert list(SERVICES) == ["database", "mlflow", "prefect", "worker"]
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == list(SERVICES)
    scripts = {in_checkout(SERVICES[name]["command"][0]) for name in OURS}
    scripts |= {in_checkout(SERVICES[name]["healthcheck"]["test"][1]) for name in OURS}
    assert scripts == set((ROOT / "docker").iterdir())
    assert all(os.access(script, os.X_OK) for script in scripts)


def test_images_are_pinned_and_ours_is_this_version() -> None:
    assert {SERVICES[name]["image"] for name in OURS} == {f"recbole-dynamicpo:{__version__}"}
    (base,) = re.findall(r"^FROM (\S+)$", DOCKERFILE, re.MULTILINE)
    for image in (base, SERVICES["database"]["image"]):
        assert re.fullmatch(r"\w+:\d+(\.\d+)+(-[\w-]+)?", image), image
    python = re.findall(r"python:(\d+\.\d+\.\d+)", base)
    assert python[0] in SpecifierSet(SETUP["options"]["python_requires"])


def test_the_image_installs_the_versions_of_the_constraints_and_no_others() -> None:
    (install,) = re.findall(r"pip install .*", DOCKERFILE)
    (extra,) = re.findall(r"-c constraints\.txt '\.\[(\w+)\]'", install)
    constraints = dict(
        line.split(";")[0].strip().split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
    wanted = [line for line in SETUP["options.extras_require"][extra].splitlines() if line and line[0] != "#"]
    for line in [*wanted, "mlflow", "prefect"]:
        name, bounds = re.fullmatch(r"([\w-]+)(.*)", line).groups()
        assert constraints[name] in SpecifierSet(bounds)
    assert "==" not in DOCKERFILE


def test_what_the_image_copies_is_there_and_is_not_ignored() -> None:
    allowed = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = {
        name for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
    packages = {path.split(" = ")[1] for path in SETUP["options"]["package_dir"].split("\n") if path}
    assert packages <= copied


@pytest.mark.parametrize("name", OURS)
def test_a_service_is_asked_where_it_listens(name: str) -> None:
    command, script, address = SERVICES[name]["healthcheck"]["test"]
    assert (command, in_checkout(script).name) == ("CMD", "healthy.sh")
    assert urlsplit(address).port == listens(name)
    for published in SERVICES[name].get("ports", []):
        assert published == f"127.0.0.1:{listens(name)}:{listens(name)}"
        assert f"http://127.0.0.1:{listens(name)}" in PAGE


def test_nobody_else_can_ask() -> None:
    published = {name for name, service in SERVICES.items() if "ports" in service}
    assert published == {"mlflow", "prefect"}
    assert all("network_mode" not in service for service in SERVICES.values())


@pytest.mark.parametrize("name", OURS)
def test_addresses_lead_to_services(name: str) -> None:
    database = SERVICES["database"]["environment"]
    for key, value in SERVICES[name]["environment"].items():
        assert key in script_of(name) or key == "PREFECT_UI_API_URL"
        if "://" not in value or "127.0.0.1" in value:
            continue
        place = urlsplit(value.replace("${POSTGRES_PASSWORD}", "secret"))
        assert place.hostname in SERVICES[name]["depends_on"]
        if place.hostname == "database":
            # Without a name SQLAlchemy 2.1 looks for another driver than the one that is installed.
            assert f"{place.scheme.partition('+')[2]}-binary" in SETUP["options.extras_require"]["postgres"]
            assert (place.username, place.path) == (database["POSTGRES_USER"], f"/{database['POSTGRES_DB']}")
        else:
            assert place.port == listens(place.hostname)


def test_who_is_waited_for_has_a_health_check_and_volumes_are_declared() -> None:
    for service in SERVICES.values():
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "test" in SERVICES[other]["healthcheck"]
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    assert used == set(COMPOSE["volumes"])
    folders = {v.split(":")[1] for name in OURS for v in SERVICES[name]["volumes"]}
    assert all(re.search(rf"mkdir .*{folder}\b", DOCKERFILE) for folder in folders)


def test_the_password_is_asked_for_and_written_nowhere() -> None:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    assert re.findall(r"\$\{POSTGRES_PASSWORD[^}]*\}", text) == [
        "${POSTGRES_PASSWORD:?a line of .env}",
        "${POSTGRES_PASSWORD}",
    ]
    assert "POSTGRES_PASSWORD=" in PAGE
    assert "/.env\n" in (ROOT / ".gitignore").read_text(encoding="utf-8")


def test_mlflow_answers_to_the_name_that_the_worker_calls_it_by() -> None:
    called = urlsplit(SERVICES["worker"]["environment"]["MLFLOW_TRACKING_URI"]).netloc
    assert called in SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
