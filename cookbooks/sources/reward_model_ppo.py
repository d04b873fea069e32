# %% [markdown]
# # A reward model, and PPO on it
#
# Pairs teach a reward model what people prefer, and PPO then trains a model by what the reward model says of its
# answers. Everything is made on the spot and takes seconds.

# %%
from align_anything import train
from align_anything.testing.tiny import build

GOOD, BAD = ['sun', 'sea', 'tree'], ['mud', 'rust', 'rot']
prompts = [f'Name something {kind}.' for kind in ('new', 'old', 'big', 'small')]
corpus = [f'{prompt} {word} {word}' for prompt in prompts for word in GOOD + BAD]
SMALL = {
    'log_type': 'none',
    'bf16': False,
    'num_workers': 0,
    'gradient_accumulation_steps': 1,
    'save_total_limit': 0,
    'epochs': 1000,
    'model_max_length': 128,
}

# %% [markdown]
# ## 1. A model that answers one way or the other

# %%
rows = [{'instruction': prompt, 'output': word} for prompt in prompts for word in GOOD + BAD]
start = train(
    'text_to_text',
    'sft',
    model=build('llama', 'untrained', corpus=corpus),
    dataset=rows,
    train_template='Instruction',
    output_dir='sft',
    max_steps=40,
    per_device_train_batch_size=24,
    learning_rate=5e-3,
    **SMALL,
)

# %% [markdown]
# ## 2. What is better

# %%
pairs = [{'prompt': prompt, 'chosen': good, 'rejected': bad} for prompt in prompts for good in GOOD for bad in BAD]
judge = train(
    'text_to_text',
    'rm',
    model=start.folder,
    dataset=pairs,
    train_template='Preference',
    output_dir='rm',
    max_steps=20,
    per_device_train_batch_size=12,
    learning_rate=2e-3,
    **SMALL,
)
talks = [[{'role': 'user', 'content': prompts[0]}, {'role': 'assistant', 'content': word}] for word in GOOD + BAD]
dict(zip(GOOD + BAD, judge.policy.score(talks), strict=True))

# %% [markdown]
# ## 3. PPO
#
# A reward model has seen pairs and nothing else. `kl_coeff` keeps answers near those of the model that training began
# with, where what it says can be trusted.

# %%
result = train(
    'text_to_text',
    'ppo',
    model=start.folder,
    dataset=[{'prompt': prompt} for prompt in prompts],
    train_template='Prompts',
    reward_model_name_or_path=judge.folder,
    reward_critic_model_name_or_path=judge.folder,
    output_dir='ppo',
    max_steps=24,
    per_device_prompt_batch_size=4,
    per_device_train_batch_size=32,
    num_generations=8,
    max_new_tokens=4,
    actor_lr=1e-3,
    critic_lr=3e-3,
    kl_coeff=0.2,
    **SMALL,
)
curve = result.metrics['train/reward'].plot(title='what the reward model says')


# %%
def share_of_good(policy):
    """How many of sampled answers are good ones."""
    found = [answer.text.strip() for answers in policy.generate(prompts, num_generations=8) for answer in answers]
    return sum(word in GOOD for word in found) / len(found)


before, after = share_of_good(start.policy), share_of_good(result.policy)
before, after

# %%
assert after > before + 0.2
