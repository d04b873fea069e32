# %% [markdown]
# # Sounds in: fine-tuning on audio
#
# Rows in memory may hold sounds as `{'array', 'sampling_rate'}`, as the library `datasets` has them, beside paths and
# bytes. The model is a Qwen2-Audio of random weights.

# %%
import numpy as np

from align_anything import train
from align_anything.testing.tiny import build

HERTZ, RATE = {'low': 200, 'middle': 900, 'high': 3200}, 16000
random = np.random.default_rng(0)


def tone(pitch):
    """A second of a tone, somewhat out of tune, with some noise."""
    hertz = HERTZ[pitch] * random.uniform(0.9, 1.1)
    samples = np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE) + 0.05 * random.standard_normal(RATE)
    return {'array': (0.3 * samples).astype(np.float32), 'sampling_rate': RATE}


rows = [{'question': 'Which tone is it?', 'answer': pitch, 'audio': tone(pitch)} for _ in range(24) for pitch in HERTZ]

# %%
from IPython.display import Audio

Audio(rows[2]['audio']['array'], rate=RATE)

# %% [markdown]
# ## Training

# %%
model = build('qwen2_audio', 'untrained', corpus=['Which tone is it? low middle high'] * 8)
result = train(
    'text_audio_to_text',
    'sft',
    model=model,
    dataset=rows,
    train_template='Instruction',
    freeze_audio_tower=False,
    output_dir='sft',
    max_steps=60,
    epochs=100,
    per_device_train_batch_size=16,
    learning_rate=3e-3,
    lr_scheduler_type='cosine',
    lr_warmup_ratio=0.1,
    model_max_length=256,
    log_type='none',
    bf16=False,
    num_workers=0,
    gradient_accumulation_steps=1,
    save_total_limit=0,
)
curve = result.metrics['train/loss'].plot(title='loss')

# %% [markdown]
# ## What it hears


# %%
def hear(sound):
    content = [{'type': 'audio', 'audio': sound}, {'type': 'text', 'text': 'Which tone is it?'}]
    ((answer,),) = result.policy.generate([[{'role': 'user', 'content': content}]], temperature=0.0, max_new_tokens=4)
    return answer.text.strip()


heard = [(pitch, hear(tone(pitch))) for pitch in HERTZ for _ in range(2)]
heard

# %%
assert sum(asked == answered for asked, answered in heard) >= 5
