"""Where large payloads are kept: a folder, a bucket, or whatever else `fsspec` can reach.

    <SAGA_CLAIM_CHECK_URL>/<saga id>/<SHA-256 of the value's JSON>

A folder has to be there already. Nothing is ever overwritten: a name stands for its contents, so that a step that is done twice
writes the same file twice, and the second time does nothing. Deleted is a whole saga.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from shared.errors import ConfigurationError, PayloadMissing, PayloadStoreUnavailable
from shared.ids import new_secret

SETTING: Final = "SAGA_CLAIM_CHECK_URL"


class PayloadStore:
    """Files of sagas.

    Args:
        url: ``file:///folder``, ``s3://bucket/prefix``, …

    Raises:
        ConfigurationError: `fsspec`, or what it needs for this URL, is not installed, or it knows
            no such scheme.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.shown_url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self.system = parts.scheme
        self._url = url
        try:
            import fsspec.core
        except ImportError as error:
            raise ConfigurationError(
                f"{SETTING} is set, and the package fsspec is not installed.",
                hint="pip install 'celery-saga-orchestrator[claims]'",
            ) from error
        self._open: Callable[..., tuple[Any, str]] = fsspec.core.url_to_fs
        try:
            files, _ = self._files()
        except (ImportError, ValueError) as error:
            raise ConfigurationError(
                f"{SETTING}: {self.shown_url} cannot be used: {error}.",
                hint="`fsspec` reads s3:// with s3fs, gs:// with gcsfs, abfs:// with adlfs.",
            ) from error
        self._local = "file" in files.protocol

    def has(self, saga_id: str, digest: str) -> bool:
        """Whether a saga keeps a value."""
        with self._reaching() as (files, root):
            return bool(files.exists(_path(root, saga_id, digest)))

    def write(self, saga_id: str, digest: str, data: bytes, *, anew: bool = False) -> None:
        """Keep a value; when this returns it is there to stay, whole.

        Args:
            saga_id: Whose.
            digest: Its name.
            data: The file.
            anew: Replace a file of that name; it says the same in another way.
        """
        with self._reaching(writing=True) as (files, root):
            path = _path(root, saga_id, digest)
            if not anew and files.exists(path):
                return
            if self._local:
                _write_file(Path(path), data)
            else:  # there a file appears when it is whole
                files.pipe_file(path, data)

    def read(self, saga_id: str, digest: str) -> bytes:
        """A file.

        Raises:
            PayloadMissing: There is none.
            PayloadStoreUnavailable: The store cannot be read, or may not be there.
        """
        try:
            with self._reaching() as (files, root):
                return bytes(files.cat_file(_path(root, saga_id, digest)))
        except FileNotFoundError as error:
            raise self._has_not(saga_id, digest) from error

    def copy(self, digest: str, source: str, target: str) -> None:
        """Give a saga what another one keeps.

        Raises:
            PayloadMissing: Neither has it.
            PayloadStoreUnavailable: The store cannot be used, or may not be there.
        """
        if self.has(target, digest):
            return
        if self._local:
            self.write(target, digest, self.read(source, digest))
            return
        if not self.has(source, digest):
            raise self._has_not(source, digest)
        with self._reaching(writing=True) as (files, root):  # without the bytes passing here
            files.cp_file(_path(root, source, digest), _path(root, target, digest))

    def sagas(self) -> list[str]:
        """Ids of the sagas that keep something, or have kept it."""
        if self._local:
            with self._reaching(writing=True) as (_, root):
                Path(root).stat()
        return [unquote(name) for name in self._listed("")]

    def digests(self, saga_id: str) -> list[str]:
        """What a saga keeps."""
        return [name for name in self._listed(_folder(saga_id)) if not name.startswith(".")]

    def newest(self, saga_id: str) -> datetime | None:
        """When something was last kept for a saga; None for nothing."""
        names = self._listed(_folder(saga_id))
        try:
            with self._reaching() as (files, root):
                times = [files.modified(f"{root}/{_folder(saga_id)}/{name}") for name in names]
        except FileNotFoundError:  # somebody deletes them
            return None
        aware = [one if one.tzinfo else one.replace(tzinfo=UTC) for one in times]
        return max(aware, default=None)

    def delete(self, saga_id: str) -> None:
        """Delete all that a saga keeps."""
        try:
            with self._reaching() as (files, root):
                files.rm(f"{root}/{_folder(saga_id)}", recursive=True)
        except FileNotFoundError:
            pass

    def _listed(self, folder: str) -> list[str]:
        try:
            with self._reaching() as (files, root):
                found = files.ls(f"{root}/{folder}".rstrip("/"), detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(one).rstrip("/").rpartition("/")[2] for one in found)

    def _files(self) -> tuple[Any, str]:
        # Each time anew: it keeps what it has made, for each process and thread.
        files, root = self._open(self._url, use_listings_cache=False)
        return files, root.rstrip("/")

    @contextmanager
    def _reaching(self, *, writing: bool = False) -> Iterator[tuple[Any, str]]:
        try:
            yield self._files()
        except Exception as error:
            # Every kind of file system has errors of its own: of the disk, HTTP, botocore.
            if isinstance(error, FileNotFoundError) and not writing:
                raise  # that is an answer; else the folder, or the bucket, is missing
            raise PayloadStoreUnavailable(
                f"The payload store {self.shown_url} cannot be used: "
                f"{type(error).__name__}: {error}.",
                hint=f"{SETTING} names it; `saga doctor` tries it.",
            ) from error

    def _has_not(self, saga_id: str, digest: str) -> PayloadStoreUnavailable:
        """What is wrong where a file is not there: it alone, or perhaps all of them."""
        what = f"the payload {digest[:12]}… of saga {saga_id}"
        if not self._is_there():
            return PayloadStoreUnavailable(
                f"The payload store {self.shown_url} does not have {what}, nor anything else: it "
                "may not be mounted.",
                hint=f"{SETTING} names it; `saga doctor` tries it.",
                saga_id=saga_id,
            )
        return PayloadMissing(
            f"The payload store {self.shown_url} does not have {what}.",
            hint=f"Every process of a system needs the same {SETTING}. Restore the file "
            f"{_folder(saga_id)}/{digest} from a backup.",
            saga_id=saga_id,
        )

    def _is_there(self) -> bool:
        """Whether a file that is missing means anything.

        A bucket says itself that it is not there. A folder on which nothing is mounted is empty.
        """
        if not self._local:
            with self._reaching(writing=True) as (files, root):
                mark = "/" if root.startswith("/") else ""
                return bool(files.exists(mark + root.strip("/").partition("/")[0]))
        with self._reaching(writing=True) as (_, root):
            return any(Path(root).iterdir())


def _path(root: str, saga_id: str, digest: str) -> str:
    return f"{root}/{_folder(saga_id)}/{digest}"


def _folder(saga_id: str) -> str:
    """A saga's folder: an id may hold anything, ``..`` too."""
    return quote(saga_id, safe="").replace(".", "%2E") or "%"


def _write_file(path: Path, data: bytes) -> None:
    """Write a file that is whole, and on the disk, when it has its name."""
    # The store itself is not made: a volume may not be mounted.
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{new_secret()}")
    with unfinished.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
