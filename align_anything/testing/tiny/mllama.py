"""Tiny Mllama (Llama 3.2 Vision): images reach the text through cross-attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from align_anything.testing.tiny.options import PATCH, TinyOptions, save
from align_anything.testing.tiny.templates import content, llama
from align_anything.testing.tiny.tokenizers import make_tokenizer

TILES = 4
RATIOS = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny Mllama with one layer of cross-attention more than `layers`."""
    tokenizer = make_tokenizer(
        options.vocab,
        options.corpus,
        pad='<|finetune_right_pad_id|>',
        eos='<|eot_id|>',
        bos='<|begin_of_text|>',
        add_bos=True,
        extra=['<|start_header_id|>', '<|end_header_id|>', '<|end_of_text|>', '<|python_tag|>'],
    )
    # The image's token is the first one that the output embedding does not have.
    words = len(tokenizer)
    tokenizer.add_tokens(['<|image|>'], special_tokens=True)
    text = options.decoder(tokenizer, rope_parameters={'rope_type': 'default', 'rope_theta': 5e5})
    text |= {'vocab_size': words, 'num_hidden_layers': options.layers + 1, 'cross_attention_layers': [1]}
    config = transformers.MllamaConfig(
        text_config=text,
        image_token_index=words,
        vision_config={
            'hidden_size': options.vision_hidden,
            'num_hidden_layers': options.vision_layers,
            'num_global_layers': 1,
            'attention_heads': options.vision_heads,
            'intermediate_size': 2 * options.vision_hidden,
            # The last layer's output and that of one layer before it.
            'vision_output_dim': 2 * options.vision_hidden,
            'intermediate_layers_indices': [0],
            'image_size': options.image_size,
            'patch_size': PATCH,
            'max_num_tiles': TILES,
            'supported_aspect_ratios': RATIOS,
        },
    )
    processor = transformers.MllamaProcessor(
        transformers.MllamaImageProcessor(size=options.square, max_image_tiles=TILES),
        tokenizer,
        chat_template=llama(content({'image': '<|image|>'})),
    )
    stops = ['<|eot_id|>', '<|end_of_text|>']
    save(options, out, transformers.MllamaForConditionalGeneration, config, processor, stops, _open_gates)


def _open_gates(model: Any) -> None:
    # transformers starts these gates at zero: pictures would change nothing and the tower would get no gradient.
    gates = [parameter for name, parameter in model.named_parameters() if name.endswith('_gate')]
    for gate in [*gates, model.model.vision_model.gated_positional_embedding.gate]:
        torch.nn.init.constant_(gate, 0.5)
