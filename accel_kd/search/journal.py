"""The file that all processes of a search append to, and the lock that keeps its lines whole.

Of the two locks that Optuna has for such a file this is the one that creates a file exclusively. Where the answer of a
network file system is lost and the request sent again, NFS (from version 3, of 1995) knows an exclusive file for the
sender's own, and a link for someone else's: that lock would be waited for until it counts as forgotten, half a minute.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from accel_kd.errors import RunFailure, UserError


def open_journal(journal: Path) -> JournalStorage:
    """What Optuna keeps in the file, which is made if it is not there.

    Raises:
        OSError, ValueError, KeyError: it cannot be read or written, or is no journal.
    """
    return JournalStorage(JournalFileBackend(str(journal), _MendingLock(journal)))


@contextmanager
def failures_told(journal: Path) -> Iterator[None]:
    """What goes wrong with the journal (a full disk, a file that is gone) is said in one line.

    Raises:
        RunFailure: in place of the OSError or ValueError of Optuna's storage.
    """
    try:
        yield
    except UserError:  # a ValueError too, and said well
        raise
    except (OSError, ValueError) as error:
        raise RunFailure(f"search: {journal} cannot be read or written: {error}") from error


class _MendingLock(JournalFileOpenLock):
    """Who has it finds whole lines: it takes away the end of one that a process was killed over, since the next one
    would be written behind it, where no process could read it any more."""

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal

    def acquire(self) -> bool:
        """As there; True, since it waits.

        Raises:
            OSError: the file cannot be read or written.
        """
        super().acquire()
        try:
            self._mend()
        except BaseException:
            self.release()
            raise
        return True

    def _mend(self) -> None:
        with self._journal.open("r+b") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
