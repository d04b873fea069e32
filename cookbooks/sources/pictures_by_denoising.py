# %% [markdown]
# # Pictures out, by denoising
#
# The same call trains pipelines of diffusers: here one of the form of Stable Diffusion 3, made on the spot, with
# pictures of 16 x 16 pixels. A folder of pictures with captions is all it wants.

# %%
from PIL import Image

from align_anything import generate, train
from align_anything.testing import shapes

model = shapes.build_painter('untrained')
pictures = shapes.write_shapes('pictures', 400, plain=0.0)


# %%
def side_by_side(pictures, scale=6):
    """The pictures in a row, enlarged."""
    strip = Image.new('RGB', (len(pictures) * 18, 16), 'white')
    for number, picture in enumerate(pictures):
        strip.paste(picture, (number * 18, 0))
    return strip.resize((strip.width * scale, strip.height * scale), Image.Resampling.NEAREST)


side_by_side([Image.open(pictures / f'{number}.png') for number in range(8)])

# %% [markdown]
# ## Training
#
# Latents and embeddings of prompts are made once, before training.

# %%
result = train(
    'text_to_image',
    'sft',
    model=model,
    dataset=pictures,
    max_sequence_length=shapes.WORDS,
    output_dir='sft',
    max_steps=200,
    gradient_checkpointing=False,
    epochs=1000,
    per_device_train_batch_size=32,
    learning_rate=6e-3,
    lr_scheduler_type='cosine',
    lr_warmup_ratio=0.05,
    log_type='none',
    bf16=False,
    num_workers=0,
    gradient_accumulation_steps=1,
    save_total_limit=0,
    save_checkpoint=False,
)
curve = result.metrics['train/loss'].rolling(10).mean().plot(title='loss, mean of ten steps')

# %% [markdown]
# ## What it paints

# %%
asked = [f'a {colour} square' for colour in shapes.COLOURS]
answers = generate(
    result.folder, asked, num_generations=3, rollout_steps=10, max_sequence_length=shapes.WORDS, bf16=False
)
painted = [[answer.parts[0]['image'] for answer in own] for own in answers]
side_by_side([picture for own in painted for picture in own])

# %%
right = [
    shapes.colour_of(picture) == colour for colour, own in zip(shapes.COLOURS, painted, strict=True) for picture in own
]
share = sum(right) / len(right)
assert share > 0.6, share  # by chance it would be a quarter
share
