"""Tiny language models without media."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from align_anything.testing.tiny.options import POSITIONS, TinyOptions, save
from align_anything.testing.tiny.templates import BOS, TRIMMED, WITHOUT_EARLIER_REASONING, chatml, gemma, llama, turns
from align_anything.testing.tiny.tokenizers import (
    CHATML,
    CHATML_STOPS,
    GEMMA_STOPS,
    GEMMA_TURNS,
    LLAMA2,
    make_tokenizer,
)

CHAT = {**CHATML, 'chat_template': chatml()}
GEMMA = {**GEMMA_TURNS, 'chat_template': gemma(TRIMMED)}
MISTRAL = (
    BOS + '{% for message in messages %}'
    "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
TOKENIZERS: dict[str, dict[str, Any]] = {
    'llama': {
        'pad': '<|pad|>',
        'eos': '<|eot_id|>',
        'bos': '<|begin_of_text|>',
        'extra': ['<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>'],
        'add_bos': True,
        'chat_template': llama(TRIMMED),
    },
    'qwen2': CHAT,
    'qwen3': {**CHATML, 'chat_template': chatml(WITHOUT_EARLIER_REASONING)},
    'qwen3_moe': CHAT,
    'opt': {
        'pad': '<pad>',
        'eos': '</s>',
        'bos': '</s>',
        'add_bos': True,
        'chat_template': turns(
            '{role}: ', '</s>', roles={'user': 'Human', 'assistant': 'Assistant', 'system': 'System'}
        ),
    },
    'gemma2': GEMMA,
    'gemma3_text': GEMMA,
    'granite': {
        'pad': '<|pad|>',
        'eos': '<|end_of_text|>',
        'bos': '<|end_of_text|>',
        'extra': ['<|start_of_role|>', '<|end_of_role|>'],
        'chat_template': turns('<|start_of_role|>{role}<|end_of_role|>', '<|end_of_text|>\n'),
    },
    'mistral': {**LLAMA2, 'extra': ['[INST]', '[/INST]'], 'chat_template': MISTRAL},
    'phi3': {
        'pad': '<|endoftext|>',
        'eos': '<|endoftext|>',
        'bos': '<s>',
        'extra': ['<|end|>', '<|user|>', '<|assistant|>', '<|system|>'],
        'chat_template': turns('<|{role}|>\n', '<|end|>\n'),
    },
}
STOPS = {
    'llama': ['<|end_of_text|>', '<|eot_id|>'],
    **dict.fromkeys(('gemma2', 'gemma3_text'), GEMMA_STOPS),
    'phi3': ['<|endoftext|>', '<|end|>'],
    **dict.fromkeys(('qwen2', 'qwen3', 'qwen3_moe'), CHATML_STOPS),
}


def settings(options: TinyOptions, tokenizer: Any) -> dict[str, Any]:
    """Returns the arguments of the family's configuration class."""
    width = options.head_width
    if options.family == 'opt':
        names = 'vocab_size hidden_size num_hidden_layers num_attention_heads pad_token_id eos_token_id'.split()
        shared = options.decoder(tokenizer)
        return {
            **{name: shared[name] for name in names},
            'bos_token_id': tokenizer.bos_token_id,
            'ffn_dim': 2 * options.hidden,
            'word_embed_proj_dim': options.hidden,
            'max_position_embeddings': POSITIONS,
            # OPT alone drops out by default, which would hide whether two ways of computing agree.
            'dropout': 0.0,
        }
    more: dict[str, dict[str, Any]] = {
        'qwen3': {'head_dim': width},
        'qwen3_moe': {
            'head_dim': width,
            'num_experts': 4,
            'num_experts_per_tok': 2,
            'moe_intermediate_size': options.hidden // 2,
            'decoder_sparse_step': 1,
            'mlp_only_layers': [],
        },
        'gemma2': {'head_dim': width, 'query_pre_attn_scalar': width, 'sliding_window': 64},
        'gemma3_text': {'head_dim': width, 'query_pre_attn_scalar': width, 'sliding_window': 64},
        'granite': {'logits_scaling': 4.0, 'embedding_multiplier': 6.0, 'attention_multiplier': width**-0.5},
        'mistral': {'head_dim': width, 'sliding_window': None},
        'phi3': {'original_max_position_embeddings': POSITIONS},
    }
    return options.decoder(tokenizer, **more.get(options.family, {}))


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny text model."""
    tokenizer = make_tokenizer(options.vocab, options.corpus, **TOKENIZERS[options.family])
    config = AutoConfig.for_model(options.family, **settings(options, tokenizer))
    stops = STOPS.get(options.family, [tokenizer.eos_token])
    save(options, out, AutoModelForCausalLM.from_config, config, tokenizer, stops)
    # A tokenizer can come back as another class that splits text its own way (Qwen2's does): what comes back is what
    # counts, and writing it once more makes it come back unchanged.
    AutoTokenizer.from_pretrained(out).save_pretrained(out)
