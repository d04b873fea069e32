"""A tiny model of each text family learns which number word comes next, by the trainer that users call.

Chance is 1/10. The second question, "And after that?", can only be answered from the answer before it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import pytest

from align_anything.testing.tiny import build
from tests.harness.once import once
from tests.harness.pairwise import first_of
from tests.learning.school import accuracy, ask, open_text_model, train
from tests.learning.tasks import CORPUS, number_questions, write_text_rows

REQUIRED = 0.95
EPOCHS = {
    'llama': 12,
    'qwen2': 12,
    'qwen3': 14,
    'qwen3_moe': 12,
    'opt': 14,
    'gemma3_text': 12,
    # No file of its own: the default rules. Its scores are soft-capped.
    'gemma2': 14,
}
OPT_TEMPLATE = (
    "{% for message in messages %}{{ {'user': 'Human:', 'assistant': 'Assistant:'}[message['role']] }}"
    "{{ ' ' + message['content'] + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# The space belongs to the answer: where a prompt ends in one, answers are generated without it, and read back in the
# history of the next turn as other tokens.
SETTINGS = {'opt': {'chat_template': OPT_TEMPLATE}}


@pytest.fixture
def trained(shared_cache: Path) -> Callable[[str], Path]:
    """`trained('llama')` returns the folder of a model that has learned to count up; trained once a run."""

    def checkpoint(family: str) -> Path:
        def teach(folder: Path) -> None:
            folder.mkdir()
            rows = write_text_rows(folder / 'rows.json')
            settings = {'learning_rate': 5e-3, 'epochs': EPOCHS[family], **SETTINGS.get(family, {})}
            train(folder / 'run', build(family, folder / 'model', corpus=list(CORPUS)), rows, **settings)

        return once(shared_cache, f'counts-{family}', teach) / 'run' / 'slice_end'

    return checkpoint


@pytest.mark.parametrize('family', first_of(EPOCHS, 'llama'))
def test_a_family_learns_to_count_in_phrasings_it_never_saw(trained: Callable[[str], Path], family: str) -> None:
    model, tokenizer = open_text_model(trained(family))
    for rounds in (1, 2):
        asked = number_questions(rounds)
        assert len(asked) == 60  # 6 openings and 4 endings make 24 phrasings; a quarter of them, with 10 numbers
        assert accuracy(ask(model, tokenizer, asked), asked) >= REQUIRED


@pytest.mark.extended
def test_an_adapter_learns_to_count_down_and_leaves_the_model_as_it_is(
    trained: Callable[[str], Path], tmp_path: Path
) -> None:
    base = trained('llama')
    rows = write_text_rows(tmp_path / 'rows.json', step=-1)
    rates = {'learning_rate': 1e-2, 'lora_dropout': 0.0, 'lora_alpha': 32}
    adapter = train(tmp_path / 'run', base, rows, use_lora=True, epochs=6, **rates)
    assert not (adapter / 'model.safetensors').exists()
    plain, tokenizer = open_text_model(base)
    model = peft.PeftModel.from_pretrained(plain, adapter).eval()
    for rounds in (1, 2):
        up, down = number_questions(rounds), number_questions(rounds, step=-1)
        assert accuracy(ask(model, tokenizer, down), down) >= REQUIRED
        with model.disable_adapter():
            assert accuracy(ask(model, tokenizer, up), up) >= REQUIRED
