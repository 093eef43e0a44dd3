"""Faults to plant: small wrong changes of the library, each with tests that must see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Fault:
    """One wrong change.

    Attributes
    ----------
    name : str
    breaks : str
        What is then wrong, in a few words.
    file : str
        Where, from the root of the repository.
    old, new : str
        The text, which occurs once, and what takes its place.
    tests : tuple of str
        Tests that must fail, as pytest takes them.
    select : str
        Which of their cases are enough, as pytest's -k takes it.
    """

    name: str
    breaks: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    select: str = ""

    def occurrences(self, root: Path = ROOT) -> int:
        """How often the old text stands in its file."""
        return (root / self.file).read_text(encoding="utf-8").count(self.old)

    def plant(self, root: Path) -> None:
        """Change the file under `root`, a copy of the repository."""
        path = root / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: the old text occurs {text.count(self.old)} times in {self.file}")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")
