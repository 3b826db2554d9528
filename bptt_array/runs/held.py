"""A folder that is held, so that another one under its name is not taken for it."""

from __future__ import annotations

import os
from pathlib import Path


class FolderLostError(OSError):
    """The name of a folder that was held does not lead to it any more."""


class Held:
    """A folder, held open: whatever becomes of its name, no other folder can be mistaken for it meanwhile.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    handle : int or None
        Of the open folder; None where a system opens no folders.

    Raises
    ------
    OSError
        If there is no such folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle = os.open(path, os.O_RDONLY) if os.name == "posix" else None
        self._identity = _identity(path if self.handle is None else self.handle)

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.handle is not None:
            os.close(self.handle)

    @property
    def is_here(self) -> bool:
        """Whether the name still leads to it."""
        return self._found() == self._identity

    def check(self) -> None:
        """To be called before anything is written under the name.

        Raises
        ------
        FolderLostError
            If the name leads to nothing, or to another folder.
        """
        found = self._found()
        if found == self._identity:
            return
        instead = "" if found is None else ", and another folder has its name now"
        raise FolderLostError(f"{self.path} was moved or removed meanwhile{instead}: nothing was written there")

    def _found(self) -> tuple[int, int] | None:
        try:
            return _identity(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None


def _identity(folder: Path | int) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino
