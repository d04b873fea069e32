# %% [markdown]
# # Preferences: DPO on text
#
# Pairs of a better and a worse answer move a model towards the better ones ([DPO](https://arxiv.org/abs/2305.18290)).
# The model here is made on the spot and knows nothing, so that all of this takes seconds on a CPU; name a checkpoint
# of your own and leave `SMALL` out to do the same with a real one.

# %%
from align_anything import load_policy, train
from align_anything.testing.tiny import build

COLOURS = {'grass': 'green', 'snow': 'white', 'coal': 'black', 'blood': 'red'}
corpus = [f'What colour is {thing}? It is {colour}.' for thing, colour in COLOURS.items() for _ in range(4)]
model = build('qwen2', 'untrained', corpus=corpus)

SMALL = {'log_type': 'none', 'bf16': False, 'num_workers': 0, 'gradient_accumulation_steps': 1, 'save_total_limit': 0}

# %% [markdown]
# ## Rows
#
# Rows may be a file, a dataset of the hub, or as here a list of dicts. The template `Preference` reads the columns
# `prompt`, `chosen` and `rejected`.

# %%
rows = [
    {'prompt': f'What colour is {thing}?', 'chosen': f'It is {colour}.', 'rejected': f'It is {other}.'}
    for thing, colour in COLOURS.items()
    for other in COLOURS.values()
    if other != colour
]
rows[0]

# %% [markdown]
# ## Training
#
# Every setting of `align-anything train text_to_text dpo --help` is an argument here, by the same name.

# %%
result = train(
    'text_to_text',
    'dpo',
    model=model,
    dataset=rows,
    train_template='Preference',
    output_dir='dpo',
    max_steps=30,
    epochs=100,
    per_device_train_batch_size=6,
    learning_rate=2e-3,
    **SMALL,
)
result.metrics[['train/loss', 'train/reward_accuracy', 'train/reward_margin']].iloc[::10]

# %%
curve = result.metrics['train/reward_margin'].plot(title='how much more the better answer is worth')

# %% [markdown]
# ## What came of it
#
# `score` of a language model is the log-probability of the last answer.


# %%
def margins(policy):
    """How much likelier the right colour is than a wrong one."""
    found = {}
    for row in rows[::3]:
        talks = [
            [{'role': 'user', 'content': row['prompt']}, {'role': 'assistant', 'content': row[answer]}]
            for answer in ('chosen', 'rejected')
        ]
        better, worse = policy.score(talks)
        found[row['prompt']] = round(better - worse, 1)
    return found


before, after = margins(load_policy(model, bf16=False)), margins(result.policy)
before, after

# %%
assert all(after[prompt] > before[prompt] for prompt in before) and min(after.values()) > 0
