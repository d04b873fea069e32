# %% [markdown]
# # Pictures out, by tokens
#
# A language model that has tokens for the codes of pictures writes pictures as it writes words. `add_media_tokens`
# (the command `align-anything add-media-tokens`) gives a codec's tokens to any language model; the one here was made
# so, with sixteen codes for a handwritten digit of 8 x 8 pixels.

# %%
from PIL import Image

from align_anything import train
from align_anything.testing import emitting

model = emitting.drawing_model('untrained', hidden=64, layers=2)
pictures, labels = emitting.digits()
rows = [
    {'question': f'Draw the digit {emitting.DIGITS[label]}.', 'picture': picture}
    for picture, label in zip(pictures[:800], labels[:800], strict=True)
    if label < 2
]
len(rows), rows[0]['question']


# %%
def side_by_side(pictures, scale=8):
    """The pictures in a row, enlarged."""
    strip = Image.new('RGB', (len(pictures) * 9, 8), 'white')
    for number, picture in enumerate(pictures):
        strip.paste(picture, (number * 9, 0))
    return strip.resize((strip.width * scale, strip.height * scale), Image.Resampling.NEAREST)


side_by_side([row['picture'] for row in rows[:10]])

# %% [markdown]
# ## Training
#
# The codes of the pictures are made once, before training, and kept beside the run.

# %%
result = train(
    'text_to_image',
    'sft',
    model=model,
    dataset=rows,
    train_template='Instruction',
    train_template_kwargs={'answers': 'image', 'prompt': 'question', 'response': 'picture'},
    output_dir='sft',
    max_steps=240,
    epochs=1000,
    per_device_train_batch_size=16,
    learning_rate=4e-3,
    lr_scheduler_type='cosine',
    lr_warmup_ratio=0.1,
    model_max_length=96,
    log_type='none',
    bf16=False,
    num_workers=0,
    gradient_accumulation_steps=1,
    save_total_limit=0,
)
curve = result.metrics['train/loss'].plot(title='loss')

# %% [markdown]
# ## What it draws
#
# Media of a response are in its `parts`.

# %%
asked = [f'Draw the digit {name}.' for name in emitting.DIGITS[:2]]
drawn = result.policy.generate(asked, num_generations=8, temperature=0.5)
found = [[part['image'] for answer in answers for part in answer.parts if part['type'] == 'image'] for answers in drawn]
side_by_side([picture for own in found for picture in own])

# %%
right = [
    probabilities.argmax() == number for number, own in enumerate(found) for probabilities in emitting.read_digits(own)
]
share = sum(right) / len(right)
assert share > 0.5, share  # by chance it would be a tenth
share
