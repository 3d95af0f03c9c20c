"""Sends each row of a run to W&B once, however often training logs it: its place among all rows is its identity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


class HeldRows:
    """Which rows W&B has: all before one index, and perhaps some after a gap."""

    def __init__(self, num_leading: int = 0) -> None:
        self.num_leading = num_leading
        """Rows 0 up to this one, without it, are all held."""
        self._after_a_gap: set[int] = set()

    @classmethod
    def of(cls, indices: Iterable[int]) -> HeldRows:
        """From the indices in any order, repeated or not."""
        held = cls()
        for index in indices:
            held._add(index)
        return held

    def __contains__(self, index: int) -> bool:
        return index < self.num_leading or index in self._after_a_gap

    @property
    def end(self) -> int:
        """The first index above all that are held."""
        return max(self._after_a_gap, default=self.num_leading - 1) + 1

    def _add(self, index: int) -> None:
        if index > self.num_leading:
            self._after_a_gap.add(index)
        elif index == self.num_leading:
            self.num_leading += 1
            while self.num_leading in self._after_a_gap:
                self._after_a_gap.remove(self.num_leading)
                self.num_leading += 1


class RowMirror:
    """Passes rows on to W&B, each with its index among all rows of the run, and no row that W&B has already."""

    def __init__(self, held: HeldRows, send: Callable[[Mapping[str, Any], int], None]) -> None:
        self._held = held
        self._send = send
        self._next_index = 0

    @property
    def end(self) -> int:
        """The first index above all rows that W&B has or was given."""
        return max(self._held.end, self._next_index)

    def go_on_at(self, num_rows: int, earlier_rows: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """Make the next row number `num_rows`, after sending of the earlier ones those that W&B lacks.

        `earlier_rows` gives all rows before it from the first; it is called only where one is lacking. Raises what
        sending and reading raise; the next row is number `num_rows` all the same.
        """
        try:
            if self._held.num_leading < num_rows:
                for row in earlier_rows():
                    self.log(row)
        finally:
            self._next_index = num_rows

    def log(self, row: Mapping[str, Any]) -> None:
        """Take the next row of the run. Raises what sending raises; the row is then lost to this attempt."""
        index = self._next_index
        self._next_index += 1
        if index not in self._held:
            self._send(row, index)
