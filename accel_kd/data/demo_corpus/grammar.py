"""Seeded grammar that writes the demo corpus: assistant requests, labelled by intent.

    grammar.yaml -> choose a template -> fill its slots -> dress it (politeness)
                 -> spell it -> keep it if new -> {train,validation,test}.jsonl

`python -m accel_kd.data.demo_corpus.grammar [FOLDER]` writes the three files.

Training uses only the `train` half of the grammar. Validation and test take two rows
in five from templates that training never shows, and may use fillers it never shows, so
that a model must know what words mean. A bag of words cannot; a teacher can, and its
student can learn it.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import yaml

SEED = 20240607
OOS_LABEL = "oos"
HELD_OUT = "held_out"
MOODS = ("do", "ask", "say")

ROWS_PER_INTENT = {"train": 107, "validation": 17, "test": 33}
OOS_ROWS = {"train": 176, "validation": 56, "test": 144}
"""More out-of-scope rows in test than in train, as an assistant meets them."""
HELD_OUT_SHARE = {"train": 0.0, "validation": 0.4, "test": 0.4}

P_BEFORE, P_AFTER = 0.35, 0.25
"""An opener ("could you"), or else a closer ("thanks")."""
P_SENTENCE_CASE = 0.2
P_TYPO = 0.06
MAX_TRIES = 2000
"""Draws for one row before we say that the templates have run dry."""

CORPUS_FOLDER = Path(__file__).parent
T = TypeVar("T")
Row = dict[str, str]


@dataclass(frozen=True)
class Template:
    """A phrase, and the mood that says how it may be dressed."""

    phrase: str
    mood: str


@dataclass(frozen=True)
class Grammar:
    """The checked content of grammar.yaml."""

    slots: dict[str, dict[str, list[str]]]
    affixes: dict[str, dict[str, list[str]]]
    templates: dict[str, dict[str, list[Template]]]
    """label -> "train" or "held_out" -> templates."""


@dataclass
class Seen:
    """What has been said, so that no split repeats another and no row repeats a row."""

    texts: set[str] = field(default_factory=set)
    core_owner: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Undressed utterance -> (split, label): a "please" makes no new example."""

    def accept(self, core: str, text: str, owner: tuple[str, str]) -> bool:
        """Claim the utterance for its split and label, or refuse it."""
        core_key, text_key = normalise(core), normalise(text)
        if text_key in self.texts:
            return False
        # A typo can turn one utterance into the undressed form of another.
        claims = (self.core_owner.get(key, owner) for key in (core_key, text_key))
        if any(claim != owner for claim in claims):
            return False
        self.texts.add(text_key)
        self.core_owner[core_key] = self.core_owner[text_key] = owner
        return True


def generate(seed: int = SEED) -> dict[str, list[Row]]:
    """The rows of each split. The same seed gives the same rows on every Python."""
    grammar = load_grammar(CORPUS_FOLDER / "grammar.yaml")
    rng = Random(seed)
    seen = Seen()
    splits = {}
    # Test first: the smaller splits must not be left with what train did not want.
    for split in ("test", "validation", "train"):
        rows = []
        for label in grammar.templates:
            quota = OOS_ROWS if label == OOS_LABEL else ROWS_PER_INTENT
            rows += generate_label(grammar, split, label, quota[split], seen, rng)
        shuffle(rows, rng)
        splits[split] = rows
    return {split: splits[split] for split in ("train", "validation", "test")}


def write(folder: Path | str, seed: int = SEED) -> None:
    """Write one JSON-lines file a split into `folder`, with the same bytes anywhere."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in generate(seed).items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_bytes(lines.encode("utf-8"))


def normalise(text: str) -> str:
    """What makes two utterances the same: the words, not case, space or punctuation."""
    return " ".join(re.sub(r"[^\w\s']", " ", text.lower()).split())


def load_grammar(path: Path) -> Grammar:
    """Read and check the grammar, so that a slip in the YAML is named at once."""
    raw: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if non_text := list(find_non_text(raw, path.name)):
        raise ValueError(f"not text, put it in quotes: {'; '.join(non_text)}")
    labels = {**raw["intents"], OOS_LABEL: raw[OOS_LABEL]}
    templates = {
        label: {
            half: [Template(phrase, mood) for mood in MOODS for phrase in by_mood.get(mood, [])]
            for half, by_mood in halves.items()
        }
        for label, halves in labels.items()
    }
    for label, halves in templates.items():
        for template in [*halves["train"], *halves[HELD_OUT]]:
            check_slots(template.phrase, raw["slots"], label)
    return Grammar(raw["slots"], raw["affixes"], templates)


def find_non_text(node: Any, where: str) -> Iterator[str]:
    """Name the leaves that are no text: YAML reads a bare 7:15 as 435, off as False."""
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield from find_non_text(child, f"{where}: {key}")
    elif isinstance(node, list):
        for child in node:
            yield from find_non_text(child, where)
    elif not isinstance(node, str):
        yield f"{where}: {node!r}"


def check_slots(phrase: str, slots: Mapping[str, Any], label: str) -> None:
    """A misspelt slot would otherwise fail only on the draw that meets it."""
    for name in re.findall(r"<(\w+)>", phrase):
        if name not in slots:
            raise ValueError(f"{label}: {phrase!r} uses the unknown slot <{name}>")


def generate_label(grammar: Grammar, split: str, label: str, count: int, seen: Seen, rng: Random) -> list[Row]:
    """The rows of one label in one split, held-out templates first."""
    held_out_count = int(count * HELD_OUT_SHARE[split])
    rows = []
    for index in range(count):
        half = HELD_OUT if index < held_out_count else "train"
        templates = grammar.templates[label][half]
        for _ in range(MAX_TRIES):
            template = choose(templates, rng)
            core = fill(template.phrase, grammar, split, rng)
            text = spell(dress(core, template.mood, grammar, rng), template.mood, rng)
            if seen.accept(core, text, (split, label)):
                rows.append({"text": text, "label": label})
                break
        else:
            raise ValueError(
                f"{label}: the {half} templates are too few for {count} rows in "
                f"{split}; write more of them in grammar.yaml"
            )
    return rows


def fill(phrase: str, grammar: Grammar, split: str, rng: Random) -> str:
    """Choose among (a|b) and replace each <slot>, never twice by the same filler."""
    used: set[str] = set()

    def alternative(match: re.Match[str]) -> str:
        options: list[str] = match[1].split("|")
        return choose(options, rng)

    def filler(match: re.Match[str]) -> str:
        halves = grammar.slots[match[1]]
        fillers = halves["train"] + (halves[HELD_OUT] if split != "train" else [])
        fresh = [value for value in fillers if "<" in value or value not in used]
        value = choose(fresh, rng)
        used.add(value)
        return value

    phrase = re.sub(r"\(([^()]*)\)", alternative, phrase)
    while "<" in phrase:
        # One level at a time, as a filler may hold slots of its own.
        phrase = re.sub(r"<(\w+)>", filler, phrase)
    phrase = re.sub(r"\ba (?=[aei]|o(?!ne)|8|11)", "an ", phrase)
    return " ".join(phrase.split()).replace(" ,", ",")


def dress(core: str, mood: str, grammar: Grammar, rng: Random) -> str:
    """Put an opener before the utterance, or else a closer after it, or neither."""
    affixes = grammar.affixes[mood]
    before, after = rng.random() < P_BEFORE, rng.random() < P_AFTER
    if before:
        return f"{choose(affixes['before'], rng)} {core}"
    if after and affixes["after"]:
        comma = "," if rng.random() < 0.5 else ""
        return f"{core}{comma} {choose(affixes['after'], rng)}"
    return core


def spell(text: str, mood: str, rng: Random) -> str:
    """Type the utterance as people do: lower case, few marks, now and then a slip."""
    if rng.random() < P_TYPO:
        text = mistype(text, rng)
    question = mood == "ask" or text.startswith(("can you", "could you", "would you"))
    if rng.random() < P_SENTENCE_CASE:
        text = re.sub(r"\bi\b", "I", text[0].upper() + text[1:])
        return text + ("?" if question else choose(("", "."), rng))
    return text.lower() + ("?" if question and rng.random() < 0.3 else "")


def mistype(text: str, rng: Random) -> str:
    """One slip: a letter lost, doubled or swapped, or a small word left out."""
    words = text.split()
    small = [i for i, word in enumerate(words) if word in ("the", "a", "my", "to", "for")]
    if small and rng.random() < 0.3:
        del words[choose(small, rng)]
        return " ".join(words)
    long = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not long:
        return text
    index = choose(long, rng)
    word = words[index]
    at = 1 + int(rng.random() * (len(word) - 2))
    slips = (
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
    )
    words[index] = choose(slips, rng)
    return " ".join(words)


def choose(items: Sequence[T], rng: Random) -> T:
    """`rng.choice` without its freedom to change: only `random()` is fixed for good."""
    return items[int(rng.random() * len(items))]


def shuffle(items: list[Row], rng: Random) -> None:
    """Fisher-Yates in place, on `random()` alone for the same reason."""
    for last in range(len(items) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        items[last], items[other] = items[other], items[last]


def main(arguments: Sequence[str]) -> None:
    """Write the corpus into the given folder, or back into the package."""
    if len(arguments) > 1:
        raise SystemExit("usage: python -m accel_kd.data.demo_corpus.grammar [FOLDER]")
    write(arguments[0] if arguments else CORPUS_FOLDER)


if __name__ == "__main__":
    main(sys.argv[1:])
