# %% [markdown]
# # Rewards: GRPO with a function of your own
#
# The model answers, a function says what each answer is worth, and answers that are worth more than others to the same
# prompt become likelier ([GRPO](https://arxiv.org/abs/2402.03300)). Any function in the notebook will do.

# %%
from align_anything import Callback, train
from align_anything.testing.tiny import build

model = build('llama', 'untrained', corpus=['Say something short, say sun sea tree stone bird cloud'] * 8)
prompts = [{'prompt': f'Say something about the {word}.'} for word in ('sun', 'sea', 'tree', 'stone')]


# %%
def many_stars(completions, *, most=8):
    """The share of `most` stars that an answer has."""
    return [min(completion.response.count('s'), most) / most for completion in completions]


# %% [markdown]
# A `Completion` has the `response`, the whole `conversation`, media decoded, and the row's `meta`, such as the golden
# answer. Keyword arguments are options: `reward_kwargs={'many_stars': {'most': 4}}`. Several functions, and names of
# [built-in ones](../docs/rewards.md), are given as a list, with `reward_weights`. Functions may be `async def`.
#
# A callback is told what happens, and ends the run when it returns `'stop'`.


# %%
class GoodEnough(Callback):
    """Stops once answers are worth most of what they can be."""

    def on_step(self, step, metrics):
        if step % 10 == 0:
            print(f'step {step}: reward {metrics["reward"]:.2f}')
        return 'stop' if metrics['reward'] > 0.95 else None


result = train(
    'text_to_text',
    'grpo',
    model=model,
    dataset=prompts,
    train_template='Prompts',
    reward=many_stars,
    callbacks=GoodEnough(),
    output_dir='grpo',
    max_steps=40,
    epochs=1000,
    num_generations=8,
    per_device_prompt_batch_size=4,
    per_device_train_batch_size=32,
    max_new_tokens=12,
    learning_rate=5e-3,
    lr_scheduler_type='constant',
    beta=0.0,
    model_max_length=128,
    log_type='none',
    bf16=False,
    num_workers=0,
    gradient_accumulation_steps=1,
    save_total_limit=0,
)
curve = result.metrics['train/reward'].plot(title='reward')

# %%
(answers,) = result.policy.generate(['Say something about the sun.'], num_generations=3, max_new_tokens=12)
[answer.text for answer in answers]

# %%
rewards = result.metrics['train/reward']
assert rewards.tail(3).mean() > rewards.head(3).mean() + 0.3
