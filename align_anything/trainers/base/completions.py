"""What an online run shows of its responses: whole ones, with their prompts and rewards."""

from __future__ import annotations

from pathlib import Path

from align_anything.models.family import FamilySpec
from align_anything.trainers.base.experience import Drawn
from align_anything.trainers.base.metrics import StepFile

COMPLETIONS_FILE = 'completions.jsonl'


class Completions:
    """Writes the responses of a rollout to `completions.jsonl`.

    Args:
        output_dir: folder of the run.
        spec: the family of the policy.
        resume_step: step that the run goes on from, whose later records are cut off; None starts afresh.
    """

    def __init__(self, output_dir: Path, spec: FamilySpec, resume_step: int | None) -> None:
        self._tokenizer = spec.tokenizer
        self._file = StepFile(output_dir / COMPLETIONS_FILE, resume_step)

    def write(self, step: int, drawn: Drawn) -> None:
        """Writes the responses that were trained on up to optimizer step `step`."""
        number = 0
        for example, responses in zip(drawn.examples, drawn.responses, strict=True):
            for response in responses:
                record = {
                    'source': example.source,
                    'prompt': self._tokenizer.decode(example.prompt.ids),
                    'response': self._tokenizer.decode(response.ids),
                    'rewards': {name: float(values[number]) for name, values in drawn.rewards.items()},
                }
                self._file.append(step, record)
                number += 1

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
