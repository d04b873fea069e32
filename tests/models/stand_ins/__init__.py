"""Small checkpoints that bring code of their own, with the interfaces of published ones, written for these tests.

    folder = build('minicpmv', tmp_path / 'minicpmv')

The published code itself is not here: what runs on a stand-in is known to fit the interface, no more.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from align_anything.testing.tiny.templates import CHATML_CLOSING, CHATML_OPENING, turns
from align_anything.testing.tiny.tokenizers import make_tokenizer

CODE = Path(__file__).parent
MINICPM_TOKENS = ['<image>', '</image>', '<slice>', '</slice>', '<image_id>', '</image_id>', '<unk>']
MINICPM_TOKENS += ['<|audio_start|>', '<|audio_end|>']
WIDTH = 32
FAMILIES: dict[str, dict[str, Any]] = {
    'minicpmv': {
        'files': ['configuration_minicpm', 'modeling_minicpmv', 'tokenization_minicpm', 'image_processing_minicpmv'],
        'map': {'AutoConfig': 'configuration_minicpm.MiniCPMVConfig', 'AutoModel': 'modeling_minicpmv.MiniCPMV'},
        'processor': 'processing_minicpmo.MiniCPMVProcessor',
        'image_processor': 'image_processing_minicpmv.MiniCPMVImageProcessor',
        'tokenizer': 'tokenization_minicpm.MiniCPMTokenizerFast',
        'tokens': MINICPM_TOKENS,
    },
    'minicpmo': {
        'files': ['configuration_minicpm', 'modeling_minicpmv', 'tokenization_minicpm', 'image_processing_minicpmv']
        + ['modeling_minicpmo'],
        'map': {'AutoConfig': 'configuration_minicpm.MiniCPMOConfig', 'AutoModel': 'modeling_minicpmo.MiniCPMO'},
        'processor': 'processing_minicpmo.MiniCPMOProcessor',
        'image_processor': 'image_processing_minicpmv.MiniCPMVImageProcessor',
        'tokenizer': 'tokenization_minicpm.MiniCPMTokenizerFast',
        'tokens': MINICPM_TOKENS,
        'audio_config': {'d_model': WIDTH, 'num_mel_bins': 32},
    },
    'phi3_v': {
        'files': ['modeling_phi3_v'],
        'map': {
            'AutoConfig': 'modeling_phi3_v.Phi3VConfig',
            'AutoModelForCausalLM': 'modeling_phi3_v.Phi3VForCausalLM',
        },
        'processor': 'processing_phi3_v.Phi3VProcessor',
        'image_processor': 'processing_phi3_v.Phi3VImageProcessor',
        'tokens': ['<|image|>', '<|user|>', '<|assistant|>', '<|end|>'],
        'img_processor': {'image_dim_out': WIDTH},
    },
    'qwen': {
        'files': ['modeling_qwen'],
        'map': {'AutoConfig': 'modeling_qwen.QWenConfig', 'AutoModelForCausalLM': 'modeling_qwen.QWenLMHeadModel'},
        'tokenizer': 'modeling_qwen.QWenTokenizerFast',
        'tokens': ['<img>', '</img>', '<imgpad>'],
    },
    'baichuan_m1': {
        'files': ['modeling_baichuan'],
        'map': {
            'AutoConfig': 'modeling_baichuan.BaichuanM1Config',
            'AutoModelForCausalLM': 'modeling_baichuan.BaichuanM1ForCausalLM',
        },
        'tokens': ['<C_Q>', '<C_A>'],
    },
}


def build(family: str, folder: Path) -> Path:
    """Writes the stand-in of a family into a new folder and returns it."""
    parts = FAMILIES[family]
    folder.mkdir(parents=True)
    files = {reference.split('.')[0] for reference in (parts.get('processor'), parts.get('tokenizer')) if reference}
    for name in {*parts['files'], *files}:
        shutil.copy(CODE / f'{name}.py', folder)
    tokenizer = _save_tokenizer(family, folder)
    config = {
        'model_type': family,
        'auto_map': parts['map'],
        'vocab_size': len(tokenizer),
        'hidden_size': WIDTH,
        'intermediate_size': WIDTH,
        'num_hidden_layers': 2,
        'num_attention_heads': 2,
        'num_key_value_heads': 2,
        'max_position_embeddings': 2048,
        'pad_token_id': tokenizer.convert_tokens_to_ids('<|endoftext|>'),
        'vision_config': {'hidden_size': WIDTH},
        **{name: parts[name] for name in ('audio_config', 'img_processor') if name in parts},
    }
    if family == 'qwen':
        start = tokenizer.convert_tokens_to_ids('<img>')
        config['visual'] = {'image_size': 28, 'n_queries': 16, 'width': WIDTH, 'image_start_id': start}
        del config['pad_token_id']
    (folder / 'config.json').write_text(json.dumps(config))
    if 'processor' in parts:
        _save_processor(parts, folder, audio='audio_config' in parts)
    _save_weights(folder, {'init_tts': False} if family == 'minicpmo' else {})
    return folder


def _save_tokenizer(family: str, folder: Path) -> Any:
    phi = family == 'phi3_v'
    end = {'phi3_v': '<|end|>', 'baichuan_m1': '</s>'}.get(family, '<|im_end|>')
    tokenizer = make_tokenizer(
        384,
        (),
        pad='<|endoftext|>',
        eos=end,
        bos='<s>' if phi else None,
        add_bos=phi,
        extra=[*FAMILIES[family]['tokens'], '<|im_start|>'],
        chat_template=_template(family),
    )
    tokenizer.save_pretrained(folder)
    file = folder / 'tokenizer_config.json'
    settings = json.loads(file.read_text())
    if 'tokenizer' in FAMILIES[family]:
        reference = FAMILIES[family]['tokenizer']
        settings['auto_map'] = {'AutoTokenizer': [None, reference]}
        settings['tokenizer_class'] = reference.split('.')[1]
    if family == 'qwen':
        # As the published one: no template, and no token that ends a text or fills it up.
        settings |= {'eos_token': None, 'pad_token': None}
        (folder / 'chat_template.jinja').unlink(missing_ok=True)
    file.write_text(json.dumps(settings))
    return tokenizer


def _template(family: str) -> str | None:
    if family == 'phi3_v':
        return turns('<|{role}|>\n', '<|end|>\n')
    if family == 'baichuan_m1':
        return turns('{role}', '</s>', roles={'user': '<C_Q>', 'assistant': '<C_A>'})
    return turns(CHATML_OPENING, CHATML_CLOSING)


def _save_processor(parts: dict[str, Any], folder: Path, audio: bool) -> None:
    from transformers import WhisperFeatureExtractor

    references = {'AutoImageProcessor': parts['image_processor'], 'AutoProcessor': parts['processor']}
    settings: dict[str, Any] = {'auto_map': references, 'image_processor_type': parts['image_processor'].split('.')[1]}
    if audio:
        settings |= WhisperFeatureExtractor(feature_size=32, chunk_length=30).to_dict()
    settings['processor_class'] = parts['processor'].split('.')[1]
    (folder / 'preprocessor_config.json').write_text(json.dumps(settings))


def _save_weights(folder: Path, options: dict[str, Any]) -> None:
    from transformers import AutoConfig

    from align_anything.models.any_model import transformers_class

    config = AutoConfig.from_pretrained(folder, trust_remote_code=True, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers_class(config, trust_remote_code=True)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.2)
    # The files of the code, and the maps to them, are those of the folder.
    from safetensors.torch import save_model

    save_model(model, folder / 'model.safetensors', {'format': 'pt'})
