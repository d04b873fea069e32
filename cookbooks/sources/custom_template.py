# %% [markdown]
# # A template of your own
#
# A template turns a raw row into a conversation. Where columns have other names than the usual ones, options of
# `Instruction`, `Messages` and `ShareGPT` map them; where rows are of another kind altogether, a class of a few lines
# does.

# %%
from pathlib import Path

from align_anything import train
from align_anything.testing.tiny import build

written = Path('quiz.py').write_text('''
from align_anything.core.errors import FilteredError
from align_anything.datasets.formatters.base import BaseFormatter, register_template
from align_anything.datasets.formatters.turns import assistant, user


@register_template('Quiz')
class Quiz(BaseFormatter):
    """Columns `ask`, `choices` and `right`, the number of the right one."""

    letters: str = 'ABCD'

    def format_supervised_sample(self, raw_sample):
        if not raw_sample['choices']:
            raise FilteredError('a question without choices')
        listed = [f'{letter} {choice}' for letter, choice in zip(self.letters, raw_sample['choices'])]
        asked = user('\\n'.join([raw_sample['ask'], *listed]))
        return [*self.opening(), asked, assistant(self.letters[raw_sample['right']])], {}
''')

# %% [markdown]
# Annotated attributes are options (`train_template_kwargs`), and a row that is not to be used raises. `opening` is the
# system turn, where the options have one.

# %%
ORDER = {'first': 0, 'second': 1, 'last': 2}
rows = [
    {'ask': f'Which is {place}?', 'choices': [str(start + step) for step in range(3)], 'right': right}
    for start in range(1, 7)
    for place, right in ORDER.items()
]
rows.append({'ask': 'What?', 'choices': [], 'right': 0})
rows[1]

# %%
result = train(
    'text_to_text',
    'sft',
    model=build('llama', 'untrained', corpus=['Which is first second last? X 1 2 3 Y 4 5 6 Z 7 8'] * 8),
    dataset=rows,
    train_template='quiz.py:Quiz',
    train_template_kwargs={'letters': 'XYZ'},
    output_dir='sft',
    max_steps=60,
    epochs=100,
    per_device_train_batch_size=18,
    learning_rate=5e-3,
    model_max_length=128,
    log_type='none',
    bf16=False,
    num_workers=0,
    gradient_accumulation_steps=1,
    save_total_limit=0,
)
curve = result.metrics['train/loss'].plot(title='loss')

# %% [markdown]
# The row without choices was left out, and `filtered_samples.jsonl` of the run says why.

# %%
print(Path('sft/filtered_samples.jsonl').read_text())

# %%
asked = ['\n'.join([f'Which is {place}?', 'X 3', 'Y 4', 'Z 5']) for place in ORDER]
answers = [answer.text.strip() for (answer,) in result.policy.generate(asked, temperature=0.0, max_new_tokens=3)]
answers

# %%
assert answers == ['X', 'Y', 'Z']
