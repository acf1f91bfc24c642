"""A manifest beside converted files tells a whole directory from an interrupted or corrupted one."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

MANIFEST_NAME = "headrace-manifest.json"
_CHUNK_BYTES = 1 << 20


class FileRecord(NamedTuple):
    """What a file was when it was written."""

    size_bytes: int
    mtime_ns: int
    sha256: str


class Manifest(NamedTuple):
    """What a directory holds, and what it was made of."""

    source: str
    files: dict[str, FileRecord]


def write_manifest(directory: Path, source: str) -> None:
    """Record every file that `directory` holds now."""
    files = sorted(path for path in directory.iterdir() if path.is_file() and path.name != MANIFEST_NAME)
    records = {path.name: _record(path)._asdict() for path in files}
    text = json.dumps({"source": source, "files": records}, indent=2) + "\n"
    (directory / MANIFEST_NAME).write_text(text, encoding="utf-8")


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest in `directory`; None where there is none or it cannot be read."""
    try:
        value = json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))
        files = {name: FileRecord(**record) for name, record in value["files"].items()}
        return Manifest(value["source"], files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_whole(directory: Path) -> bool:
    """Whether the files are those of the manifest: by size and time, and by content where a time differs.

    A directory that was copied has other times and the same content: it is whole, and the manifest is
    brought up to date where it may be written.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        return False
    if all(_looks_same(directory / name, record) for name, record in manifest.files.items()):
        return True
    if not has_same_content(directory):
        return False
    _refresh(directory, manifest.source)
    return True


def has_same_content(directory: Path) -> bool:
    """Whether the content of every file still has the manifest's SHA-256; reads all of it."""
    manifest = read_manifest(directory)
    if manifest is None:
        return False
    try:
        return all(sha256_of(directory / name) == record.sha256 for name, record in manifest.files.items())
    except OSError:
        return False


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _record(path: Path) -> FileRecord:
    status = path.stat()
    return FileRecord(status.st_size, status.st_mtime_ns, sha256_of(path))


def _looks_same(path: Path, record: FileRecord) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (record.size_bytes, record.mtime_ns)


def _refresh(directory: Path, source: str) -> None:
    try:
        write_manifest(directory, source)
    except OSError:
        return  # a read-only cache is checked by content each time
