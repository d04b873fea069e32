# %% [markdown]
# # Clips in: fine-tuning on video
#
# A clip in a row is a path, bytes, or `{'frames', 'fps'}`. The model is a Qwen2-VL of random
# weights.

# %%
import numpy as np
from PIL import Image

from align_anything import train
from align_anything.testing.tiny import build

random = np.random.default_rng(0)


def clip(direction):
    """Four frames of a bright bar that moves to the left or to the right."""
    start = random.integers(0, 3)
    places = [start + 6 * number for number in range(4)]
    frames = np.full((4, 28, 28, 3), 30, np.uint8)
    for frame, place in zip(frames, places if direction == 'right' else places[::-1], strict=True):
        frame[:, place : place + 6] = 240
    return {'frames': [Image.fromarray(frame) for frame in frames], 'fps': 2.0}


rows = [
    {'question': 'Which way does it move?', 'answer': direction, 'video': clip(direction)}
    for _ in range(32)
    for direction in ('left', 'right')
]
strip = Image.new('RGB', (4 * 30, 28), 'white')
for number, frame in enumerate(rows[1]['video']['frames']):
    strip.paste(frame, (30 * number, 0))
strip.resize((480, 112), Image.Resampling.NEAREST)

# %% [markdown]
# ## Training

# %%
model = build('qwen2_vl', 'untrained', corpus=['Which way does it move? left right'] * 8)
result = train(
    'text_video_to_text',
    'sft',
    model=model,
    dataset=rows,
    train_template='Instruction',
    freeze_vision_tower=False,
    num_frames=4,
    output_dir='sft',
    max_steps=50,
    epochs=100,
    per_device_train_batch_size=16,
    learning_rate=4e-3,
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
# ## What it sees


# %%
def watch(frames):
    content = [{'type': 'video', 'video': frames}, {'type': 'text', 'text': 'Which way does it move?'}]
    ((answer,),) = result.policy.generate([[{'role': 'user', 'content': content}]], temperature=0.0, max_new_tokens=4)
    return answer.text.strip()


seen = [(direction, watch(clip(direction))) for direction in ('left', 'right') for _ in range(3)]
seen

# %%
assert sum(asked == answered for asked, answered in seen) >= 5
