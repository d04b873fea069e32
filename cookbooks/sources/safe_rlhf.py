# %% [markdown]
# # Safe RLHF: helpful within a limit on harm
#
# A reward model says what helps, a cost model what harms, and [Safe RLHF](https://arxiv.org/abs/2310.12773) raises the
# reward while the mean cost stays below a limit: a multiplier weighs cost the more the longer it is above. With
# pictures in the rows, and `text_image_to_text`, this is [Safe RLHF-V](https://arxiv.org/abs/2503.17682).

# %%
from align_anything import train
from align_anything.testing.tiny import build

# An answer is a thing and a voice; what is loud is taken for harmful, and more is thought of good things.
GOOD, BAD = ['sun', 'sea'], ['mud', 'rust']
prompts = [f'Name something {kind}.' for kind in ('new', 'old', 'big', 'small')]
answers = [f'{word} {voice}' for word in GOOD + BAD for voice in ('loud', 'soft')]
SMALL = {
    'log_type': 'none',
    'bf16': False,
    'num_workers': 0,
    'gradient_accumulation_steps': 1,
    'save_total_limit': 0,
    'epochs': 1000,
    'model_max_length': 128,
}

# %%
start = train(
    'text_to_text',
    'sft',
    model=build('llama', 'untrained', corpus=[f'{prompt} {answer}' for prompt in prompts for answer in answers]),
    dataset=[{'instruction': prompt, 'output': answer} for prompt in prompts for answer in answers],
    train_template='Instruction',
    output_dir='sft',
    max_steps=40,
    per_device_train_batch_size=32,
    learning_rate=5e-3,
    **SMALL,
)

# %% [markdown]
# ## Reward and cost
#
# For a cost model the better answer of a pair is the more harmful one, and rows say of each answer whether it is safe.
# A template turns your rows into that: here one of this notebook's own, in a file.

# %%
from pathlib import Path

Path('judged.py').write_text('''
from align_anything.datasets.formatters.base import BaseFormatter, register_template
from align_anything.datasets.formatters.turns import assistant, user


@register_template('Judged')
class Judged(BaseFormatter):
    """Columns `prompt`, `harmful` and `harmless`."""

    def format_preference_sample(self, raw_sample):
        asked = user(raw_sample['prompt'])
        talks = [[asked, assistant(raw_sample[column])] for column in ('harmful', 'harmless')]
        return *talks, {'is_better_safe': False, 'is_worse_safe': True}
''')

reward = train(
    'text_to_text',
    'rm',
    model=start.folder,
    dataset=[
        {'prompt': prompt, 'chosen': f'{good} {voice}', 'rejected': f'{bad} {other}'}
        for prompt in prompts
        for good, bad in zip(GOOD, BAD, strict=True)
        for voice in ('loud', 'soft')
        for other in ('loud', 'soft')
    ],
    train_template='Preference',
    output_dir='reward',
    max_steps=20,
    per_device_train_batch_size=16,
    learning_rate=2e-3,
    **SMALL,
)
cost = train(
    'text_to_text',
    'cost_model',
    model=start.folder,
    dataset=[
        {'prompt': prompt, 'harmful': f'{word} loud', 'harmless': f'{other} soft'}
        for prompt in prompts
        for word in GOOD + BAD
        for other in GOOD + BAD
    ],
    train_template='judged.py:Judged',
    output_dir='cost',
    max_steps=20,
    per_device_train_batch_size=16,
    learning_rate=2e-3,
    **SMALL,
)
talks = [[{'role': 'user', 'content': prompts[0]}, {'role': 'assistant', 'content': answer}] for answer in answers]
{
    answer: (round(helps, 1), round(harms, 1))
    for answer, helps, harms in zip(answers, reward.policy.score(talks), cost.policy.score(talks), strict=True)
}

# %% [markdown]
# ## Both at once

# %%
result = train(
    'text_to_text',
    'saferlhf',
    model=start.folder,
    dataset=[{'prompt': prompt} for prompt in prompts],
    train_template='Prompts',
    reward_model_name_or_path=reward.folder,
    cost_model_name_or_path=cost.folder,
    threshold=-0.5,
    lambda_init=1.0,
    lambda_lr=0.1,
    kl_coeff=0.2,
    output_dir='safe',
    max_steps=24,
    per_device_prompt_batch_size=4,
    per_device_train_batch_size=32,
    num_generations=8,
    max_new_tokens=6,
    actor_lr=1e-3,
    critic_lr=3e-3,
    **SMALL,
)
# The multiplier weighs cost: it rises while cost is above the threshold, and falls below it.
curves = result.metrics[['train/reward', 'train/reward/cost', 'train/multiplier']].plot(subplots=True)

# %%
metrics = result.metrics
first, last = metrics.head(4).mean(), metrics.tail(4).mean()
assert last['train/reward'] > first['train/reward'] and last['train/reward/cost'] < first['train/reward/cost'] - 0.1
[answer.text.strip() for answer in result.policy.generate(prompts[:1], num_generations=6)[0]]
