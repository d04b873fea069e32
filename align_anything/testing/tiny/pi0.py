"""Tiny pi0: a PaliGemma that reads a step, and a Gemma beside it whose layers read what its layers made of that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from align_anything.core.actions import ActionSpace, Statistics
from align_anything.core.files import atomic_write_json, read_json
from align_anything.models.action_space import write_action_space
from align_anything.testing.tiny.options import TinyOptions, save
from align_anything.testing.tiny.tokenizers import GEMMA, make_tokenizer

CHUNK, WIDEST = 4, 8
"""Steps of a chunk, and the most numbers of a state and of an action."""
DIMENSIONS = ('dx', 'dy')


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny pi0 whose actions have two numbers and whose state has two, of up to 8 each."""
    # The space between instructions and their digits is all that its tokenizer has to know.
    tokenizer = make_tokenizer(options.vocab, options.corpus, **GEMMA, named={'image_token': '<image>'})
    images = transformers.PI0ImageProcessor(size=options.square, pad_size=options.square)
    images.image_seq_length = options.patches
    processor = transformers.PI0Processor(images, tokenizer)
    text = options.decoder(tokenizer, head_dim=options.head_width, hidden_activation='gelu_pytorch_tanh')
    config = transformers.PI0Config(
        vlm_config={
            'model_type': 'paligemma',
            'text_config': {'model_type': 'gemma', **text},
            'vision_config': options.tower(
                model_type='siglip_vision_model', projection_dim=options.hidden, vision_use_head=False
            ),
            'projection_dim': options.hidden,
            'hidden_size': options.hidden,
            'image_token_id': tokenizer.image_token_id,
        },
        dit_config={'model_type': 'gemma', **text},
        chunk_size=CHUNK,
        max_state_dim=WIDEST,
        max_action_dim=WIDEST,
        num_inference_steps=4,
    )
    save(options, out, _model, config, processor, ['<eos>'])
    statistics = Statistics(low=(-0.1, -0.1), high=(0.1, 0.1), mean=(0.01, -0.02), std=(0.06, 0.05), mask=(True, True))
    space = ActionSpace(
        dimensions=DIMENSIONS,
        normalization='mean_std',
        statistics={'reach': statistics},
        chunk=CHUNK,
        executed=CHUNK,
        cameras=('top',),
    )
    write_action_space(out, space)
    file = out / 'processor_config.json'
    own = {'state_mean': [0.5, 0.5], 'state_std': [0.25, 0.25], 'max_state_dim': WIDEST, 'chunk_size': CHUNK}
    own |= {'actions_mean': list(statistics.mean), 'actions_std': list(statistics.std)}
    atomic_write_json(file, {**read_json(file), **own})


def _model(config: Any) -> Any:
    model = transformers.PI0ForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig()
    return model
