# %% [markdown]
# # New senses: a language model that learns to see
#
# An encoder of pictures and a language model that never met become one checkpoint, with a projector between them. It
# learns in two stages, as LLaVA did ([LLaVA](https://arxiv.org/abs/2304.08485)): the projector alone, then the language
# model too. The parts here are a CLIP and a Llama of random weights, made on the spot; with
# `openai/clip-vit-large-patch14-336` and `meta-llama/Llama-3.1-8B-Instruct` the calls are the same.

# %%
from PIL import Image

from align_anything import train
from align_anything.testing import shapes
from align_anything.testing.tiny import build
from align_anything.testing.tiny.encoders import build_encoder

pictures = shapes.write_shapes('pictures', 240, plain=0.0)
corpus = ['Caption the image. a red green blue yellow circle square bar'] * 8
parts = {
    'language_model': str(build('llama', 'llama', corpus=corpus)),
    'image': {'encoder': str(build_encoder('clip', 'clip'))},
    'projector': 'mlp',
}


def side_by_side(pictures, scale=6):
    """The pictures in a row, enlarged."""
    strip = Image.new('RGB', (len(pictures) * 18, 16), 'white')
    for number, picture in enumerate(pictures):
        strip.paste(picture, (number * 18, 0))
    return strip.resize((strip.width * scale, strip.height * scale), Image.Resampling.NEAREST)


side_by_side([Image.open(pictures / f'{number}.png') for number in range(8)])

# %% [markdown]
# ## 1. The projector
#
# `compose` names the parts and stands in place of a model; `stage='projection'` freezes all but the projector. More
# kinds of media, other encoders and other projectors are in [docs/composed.md](../docs/composed.md).

# %%
SMALL = {
    'train_template': 'Captioning',
    'train_template_kwargs': {'requests': ['Caption the image.']},
    'lr_scheduler_type': 'cosine',
    'lr_warmup_ratio': 0.1,
    'epochs': 100,
    'per_device_train_batch_size': 24,
    'model_max_length': 256,
    'log_type': 'none',
    'bf16': False,
    'gradient_checkpointing': False,
    'num_workers': 0,
    'gradient_accumulation_steps': 1,
    'save_total_limit': 0,
}
first = train(
    'text_image_to_text',
    'sft',
    dataset=pictures,
    compose=parts,
    stage='projection',
    output_dir='projection',
    max_steps=40,
    learning_rate=5e-3,
    **SMALL,
)

# %% [markdown]
# ## 2. The language model too
#
# A Llama of random weights knows no words yet, so that it is this stage in which it learns to speak. The encoder stays
# frozen in both.

# %%
result = train(
    'text_image_to_text',
    'sft',
    model=first.folder,
    dataset=pictures,
    stage='joint',
    output_dir='joint',
    max_steps=120,
    learning_rate=4e-3,
    **SMALL,
)
both = {'projector alone': first.metrics['train/loss'], 'language model too': result.metrics['train/loss']}
axes = None
for name, loss in both.items():
    axes = loss.plot(ax=axes, label=name, legend=True, title='loss')

# %% [markdown]
# ## What it sees
#
# Pictures that training never had.

# %%
others = shapes.write_shapes('others', 24, plain=0.0, seed=1)


def caption(picture):
    content = [{'type': 'image', 'image': picture}, {'type': 'text', 'text': 'Caption the image.'}]
    ((answer,),) = result.policy.generate([[{'role': 'user', 'content': content}]], temperature=0.0, max_new_tokens=8)
    return answer.text.strip()


shown = [Image.open(others / f'{number}.png') for number in range(24)]
said = [caption(picture) for picture in shown]
said[:6]

# %%
side_by_side(shown[:6])

# %%
right = [shapes.colour_of(picture) in answer.split() for picture, answer in zip(shown, said, strict=True)]
share = sum(right) / len(right)
assert share > 0.6, share  # by chance it would be a quarter
share
