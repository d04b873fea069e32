"""Rows of media that show one of a few words, with prompts that name it or leave it open."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from align_anything.core.types import MediaKind


@dataclass(frozen=True)
class Captioned:
    """What a tiny pipeline is asked for.

    Attributes:
        kind: of the media.
        words: what a medium can show.
        prompt: the one that leaves it open.
        named: the one that names a word, with `{}` in its place.
        suffix: of the files.
        file: makes one that shows a word.
    """

    kind: MediaKind
    words: Sequence[str]
    prompt: str
    named: str
    suffix: str
    file: Callable[[str, np.random.Generator], bytes]

    @property
    def corpus(self) -> tuple[str, ...]:
        """All prompts, often enough for a tokenizer to know their words."""
        return tuple(prompt for prompt in (self.prompt, *map(self.named.format, self.words)) for _ in range(4))

    def write(
        self,
        folder: str | Path,
        rows: int,
        *,
        open_share: float = 0.5,
        preferred: str | None = None,
        shuffled: bool = False,
        seed: int = 0,
    ) -> Path:
        """Writes media and `rows.jsonl` with the prompts that ask for them; returns that file.

        A row has a `prompt`, a medium in a column with the name of its kind, the `word` that it shows, and as
        `rejected` a medium that shows another word. All words come equally often, but that what is `preferred` is all
        that prompts get which leave it open, a share of `open_share`. With `shuffled` each row has the prompt of some
        other one.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        random, lines = np.random.default_rng(seed), []
        for number in range(rows):
            is_open = random.random() < open_share
            word = preferred if preferred and is_open else self.words[number % len(self.words)]
            other = random.choice([other for other in self.words if other != word])
            names = f'{number}{self.suffix}', f'{number}-other{self.suffix}'
            for name, shown in zip(names, (word, other), strict=True):
                (folder / name).write_bytes(self.file(shown, random))
            prompt = self.prompt if is_open else self.named.format(word)
            lines.append({'prompt': prompt, self.kind: names[0], 'rejected': names[1], 'word': word})
        if shuffled:
            prompts = random.permutation([line['prompt'] for line in lines])
            lines = [{**line, 'prompt': str(prompt)} for line, prompt in zip(lines, prompts, strict=True)]
        file = folder / 'rows.jsonl'
        file.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
        return file
