"""A small checkpoint with code of its own that behaves as OpenVLA's does, written for these tests.

The published code and weights are not here: what runs on the stand-in is known to fit the interface, no more.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from align_anything.testing.tiny.tokenizers import make_tokenizer
from tests.models.stand_ins import CODE, _save_processor, _save_weights

BINS, WIDTH = 16, 32
FILES = 'configuration_prismatic', 'modeling_prismatic', 'processing_prismatic'
NORM_STATS = {
    name: {
        'action': {
            'mean': [0.0] * 7,
            'std': [0.5] * 7,
            'max': [3.0] * 7,
            'min': [-3.0] * 7,
            'q01': [-wide, -2.0, -1.0, -0.5, -0.5, -0.25, 0.0],
            'q99': [wide, 1.0, 1.0, 0.5, 0.25, 0.5, 1.0],
            'mask': [True] * 6 + [False],
        },
        'proprio': {'q01': [0.0] * 7, 'q99': [0.0] * 7},
        'num_transitions': 10,
    }
    for name, wide in (('bridge_orig', 0.5), ('fractal20220817_data', 2.0))
}


def build_openvla(folder: Path) -> Path:
    """Writes the stand-in into a new folder and returns it."""
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copy(CODE / f'{name}.py', folder)
    tokenizer = make_tokenizer(384, (), pad='<PAD>', eos='</s>', bos='<s>', add_bos=True, extra=['<unk>'])
    tokenizer.save_pretrained(folder)
    # Of Llama's, `<unk>`, `<s>` and `</s>` are the first ids, and the pad is the only one behind the vocabulary.
    rows = tokenizer.vocab_size + 64
    config = {
        'model_type': 'openvla',
        'auto_map': {
            'AutoConfig': 'configuration_prismatic.OpenVLAConfig',
            'AutoModelForVision2Seq': 'modeling_prismatic.OpenVLAForActionPrediction',
        },
        'norm_stats': NORM_STATS,
        'n_action_bins': BINS,
        'pad_token_id': tokenizer.pad_token_id,
        'pad_to_multiple_of': 64,
        'text_config': {
            'model_type': 'llama',
            'vocab_size': rows,
            'hidden_size': WIDTH,
            'intermediate_size': WIDTH,
            'num_hidden_layers': 2,
            'num_attention_heads': 2,
            'num_key_value_heads': 2,
            'max_position_embeddings': 2048,
            'pad_token_id': tokenizer.pad_token_id,
        },
    }
    (folder / 'config.json').write_text(json.dumps(config))
    processor = 'processing_prismatic.PrismaticProcessor'
    _save_processor(
        {'image_processor': 'processing_prismatic.PrismaticImageProcessor', 'processor': processor}, folder, audio=False
    )
    _save_weights(folder, {})
    return folder
