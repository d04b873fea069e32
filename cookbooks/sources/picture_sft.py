# %% [markdown]
# # Pictures in: fine-tuning on a folder
#
# A folder of pictures with `metadata.jsonl` beside them is a dataset. The model is a Qwen2-VL of random weights, made
# on the spot; with `model='Qwen/Qwen2.5-VL-3B-Instruct'` the call is the same.

# %%
import json
from pathlib import Path

from PIL import Image, ImageDraw

from align_anything import train
from align_anything.testing.tiny import build

COLOURS = {'red': (220, 30, 30), 'black': (10, 10, 10), 'blue': (40, 60, 230), 'yellow': (240, 220, 40)}
folder = Path('pictures')
folder.mkdir()
lines = []
for number in range(192):
    colour = [*COLOURS][number % 4]
    picture = Image.new('RGB', (56, 56), 'white')
    corner = number % 17
    ImageDraw.Draw(picture).rectangle((corner, corner, corner + 36, corner + 36), fill=COLOURS[colour])
    picture.save(folder / f'{number}.png')
    lines.append({'file_name': f'{number}.png', 'text': f'a {colour} square'})
(folder / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, lines)))
lines[0]

# %% [markdown]
# ## Training
#
# The template `Captioning` asks for what stands in the column `text`. A pair with pictures freezes the vision tower
# unless you say otherwise; this one is random and has to learn too.

# %%
model = build('qwen2_vl', 'untrained', corpus=['a red black blue yellow square Caption the image.'] * 8)
result = train(
    'text_image_to_text',
    'sft',
    model=model,
    dataset=folder,
    train_template='Captioning',
    train_template_kwargs={'requests': ['Caption the image.']},
    freeze_vision_tower=False,
    output_dir='sft',
    max_steps=80,
    epochs=100,
    per_device_train_batch_size=16,
    learning_rate=6e-3,
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
# ## Asking it
#
# A prompt is a text, or a conversation whose parts may be pictures: paths, bytes, or PIL images.

# %%
picture = Image.open(folder / '2.png')
picture.resize((112, 112), Image.Resampling.NEAREST)


# %%
def ask(picture):
    content = [{'type': 'image', 'image': picture}, {'type': 'text', 'text': 'Caption the image.'}]
    ((answer,),) = result.policy.generate([[{'role': 'user', 'content': content}]], temperature=0.0, max_new_tokens=8)
    return answer.text.strip()


{number: ask(folder / f'{number}.png') for number in range(4)}

# %%
said = [ask(folder / f'{number}.png') for number in range(12)]
right = [answer == line['text'] for answer, line in zip(said, lines[:12], strict=True)]
assert sum(right) >= 10, said
sum(right) / len(right)
