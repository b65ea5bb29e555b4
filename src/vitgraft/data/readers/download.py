"""Files from URLs, kept in a folder up to a limit."""

from __future__ import annotations

import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

from filelock import FileLock  # a dependency of torch's

from vitgraft.data.readers.tar import atomic_file, digest
from vitgraft.errors import DataError

TRIES = 4
TIMEOUT_S = 60


def is_url(text: str) -> bool:
    """Whether a text is an address that can be fetched."""
    return text.startswith(("http://", "https://"))


def fetch(url: str, missing_ok: bool = False) -> bytes | None:
    """A small file's content, or None where it is missing and may be.

    Raises:
        DataError: It can't be fetched.
    """
    try:
        with _open(url) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        if missing_ok and error.code in (403, 404):
            return None
        raise DataError(f"{url}: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{url}: {error}") from error


class FileCache:
    """Local copies of files at URLs; other processes may use the same folder at the same time.

    Args:
        folder: Where they are kept.
        limit: Bytes that they may take; the longest unused ones are removed above it.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit

    def local(self, url: str) -> Path:
        """A path with the file's content, which may be removed again at any time; a local path is its own.

        Raises:
            DataError: It can't be fetched, after several tries.
        """
        if not is_url(url):
            return Path(url)
        key = digest(url)
        target = self.folder / f"{key}-{url.rsplit('/', 1)[-1][-80:]}"
        if not self._touch(target):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with FileLock(self.folder / f".{key}.lock"):  # one process fetches, others wait for it
                    if not self._touch(target):
                        _download(url, target)
                        self._make_room(target)
            except OSError as error:
                raise DataError(f"{url}: can't be kept in {self.folder} ({error.strerror or error})") from error
        return target

    def open(self, url: str) -> int:
        """A file descriptor of the file's content; it stays readable when the copy is removed.

        Raises:
            DataError: As in `local`.
            OSError: A local path can't be opened.
        """
        while True:
            try:
                return os.open(self.local(url), os.O_RDONLY)
            except FileNotFoundError:
                if not is_url(url):
                    raise

    def _touch(self, path: Path) -> bool:
        """Whether a copy is there; its time of use becomes now."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _make_room(self, newest: Path) -> None:
        kept = []
        for path in self.folder.iterdir():
            if path.name.startswith("."):
                continue
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            kept.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total <= self.limit or path == newest:
                break
            path.unlink(missing_ok=True)
            total -= size


def _open(url: str):
    return urllib.request.urlopen(urllib.request.Request(url, headers={"User-Agent": "vitgraft"}), timeout=TIMEOUT_S)


def _download(url: str, target: Path) -> None:
    for attempt in range(TRIES):
        if attempt:
            time.sleep(2.0 ** (attempt - 1))
        try:
            with _open(url) as response, atomic_file(target) as file:
                shutil.copyfileobj(response, file, 1 << 20)
                expected = response.headers.get("Content-Length")
                if expected is not None and file.tell() != int(expected):
                    raise http.client.IncompleteRead(b"", int(expected) - file.tell())
            return
        except urllib.error.HTTPError as error:
            if error.code < 500:  # it will not get better
                raise DataError(f"{url}: {error}") from error
            failure = error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            failure = error
    raise DataError(f"{url}: can't be fetched after {TRIES} tries ({failure})")
