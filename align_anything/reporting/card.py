"""The card beside a model that scores: what the scores mean and how to get them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from align_anything.core.files import atomic_write_json, atomic_write_text
from align_anything.models.family import FamilySpec

NUMBERS_FILE = 'scores.json'

TEXT = """---
library_name: transformers
tags: [reward-model, align-anything]
---

# {title}

Gives a conversation one number, read at the token that ends the last answer. Trained by align-anything
(`{algorithm}`) from `{source}`.

{ranges}

## Use

With align-anything, for every architecture:

```python
from align_anything.models.pretrained_model import load_pretrained_models

model, tokenizer, processor = load_pretrained_models('.', is_reward_model=True)
```

`score.weight` is also what `AutoModelForSequenceClassification` of transformers reads, where it has such a class for
the architecture (`architectures` in config.json).

Conversations must be rendered by the chat template in force here, up to the token that ends the answer and not
further:

```
{template}
```
"""


def write_score_card(
    folder: Path, *, algorithm: str, source: str, spec: FamilySpec, evaluation: Mapping[str, float], step: int
) -> None:
    """Writes `README.md`, and `scores.json` with the range of the scores at the last evaluation, if there was one."""
    numbers = {'step': step, **_range(evaluation)} if evaluation else {}
    ranges = 'The range of its scores is unknown: no evaluation measured it.'
    if numbers:
        ranges = (
            f'On the evaluation data its scores have the mean {numbers["mean"]:.3f} and the standard deviation '
            f'{numbers["std"]:.3f}; the chosen ones have the mean {numbers["chosen_mean"]:.3f}, the rejected ones '
            f'{numbers["rejected_mean"]:.3f}, and {numbers["accuracy"]:.1%} of the pairs are in the right order.'
        )
        atomic_write_json(folder / NUMBERS_FILE, numbers)
    title = {'cost_model': 'Cost model'}.get(algorithm, 'Reward model')
    text = TEXT.format(
        title=title, algorithm=algorithm, source=source, ranges=ranges, template=spec.renderer.template.strip()
    )
    atomic_write_text(folder / 'README.md', text)


def _range(evaluation: Mapping[str, float]) -> dict[str, float]:
    chosen, rejected = evaluation['chosen_reward'], evaluation['rejected_reward']
    mean = (chosen + rejected) / 2
    return {
        'mean': mean,
        'std': max(evaluation['squared_score'] - mean**2, 0.0) ** 0.5,
        'chosen_mean': chosen,
        'rejected_mean': rejected,
        'accuracy': evaluation['reward_accuracy'],
    }
