"""Tiny language models without media."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from align_anything.testing.tiny.options import POSITIONS, TinyOptions, save
from align_anything.testing.tiny.published import deepseek_r1, gemma, gpt_oss, llama3, mistral, nemotron, qwen3
from align_anything.testing.tiny.templates import chatml, turns
from align_anything.testing.tiny.tokenizers import (
    CHATML,
    CHATML_STOPS,
    GEMMA_STOPS,
    GEMMA_TURNS,
    LLAMA2,
    make_tokenizer,
)

CHAT = {**CHATML, 'chat_template': chatml()}
LLAMA3: dict[str, Any] = {
    'pad': '<|pad|>',
    'eos': '<|eot_id|>',
    'bos': '<|begin_of_text|>',
    'extra': ['<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>'],
    'add_bos': True,
}
MISTRAL_MARKS = ['[INST]', '[/INST]', '[AVAILABLE_TOOLS]', '[/AVAILABLE_TOOLS]', '[TOOL_CALLS]', '[TOOL_RESULTS]']
TOKENIZERS: dict[str, dict[str, Any]] = {
    'llama': {**LLAMA3, 'chat_template': llama3()},
    'qwen2': CHAT,
    'qwen3': {**CHATML, 'chat_template': qwen3()},
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
    # Published without a chat template.
    'gpt2': {'pad': '<|pad|>', 'eos': '<|endoftext|>', 'bos': '<|endoftext|>'},
    'gemma2': {**GEMMA_TURNS, 'chat_template': gemma(refuses_system=True)},
    'gemma3_text': {**GEMMA_TURNS, 'chat_template': gemma()},
    'granite': {
        'pad': '<|pad|>',
        'eos': '<|end_of_text|>',
        'bos': '<|end_of_text|>',
        'extra': ['<|start_of_role|>', '<|end_of_role|>'],
        'chat_template': turns('<|start_of_role|>{role}<|end_of_role|>', '<|end_of_text|>\n'),
    },
    'mistral': {**LLAMA2, 'extra': [*MISTRAL_MARKS, '[/TOOL_RESULTS]'], 'chat_template': mistral()},
    'phi3': {
        'pad': '<|endoftext|>',
        'eos': '<|endoftext|>',
        'bos': '<s>',
        'extra': ['<|end|>', '<|user|>', '<|assistant|>', '<|system|>'],
        'chat_template': turns('<|{role}|>\n', '<|end|>\n'),
    },
}
"""The tokenizer of each family, and its chat template."""
MANNERS: dict[str, dict[str, Any]] = {
    'qwen3_thinking': {**CHATML, 'chat_template': qwen3(opened=True)},
    'deepseek_r1': {
        'pad': '<|end_of_sentence|>',
        'eos': '<|end_of_sentence|>',
        'bos': '<|begin_of_sentence|>',
        'extra': ['<|User|>', '<|Assistant|>'],
        'chat_template': deepseek_r1(),
    },
    'nemotron': {
        'pad': '<pad>',
        'eos': '<SPECIAL_12>',
        'extra': ['<SPECIAL_10>', '<SPECIAL_11>'],
        'chat_template': nemotron(),
    },
    'gpt_oss': {
        'pad': '<|endoftext|>',
        'eos': '<|return|>',
        'extra': ['<|start|>', '<|end|>', '<|message|>', '<|channel|>', '<|call|>'],
        'chat_template': gpt_oss(),
    },
    **{name: TOKENIZERS[name] for name in ('qwen3', 'llama', 'mistral', 'gemma2', 'gemma3_text')},
}
"""What `--template` chooses: the tokenizer and chat template in the manner of published checkpoints."""
STOPS = {
    'llama': ['<|end_of_text|>', '<|eot_id|>'],
    **dict.fromkeys(('gemma2', 'gemma3_text'), GEMMA_STOPS),
    'phi3': ['<|endoftext|>', '<|end|>'],
    **dict.fromkeys(('qwen2', 'qwen3', 'qwen3_moe', 'qwen3_thinking'), CHATML_STOPS),
    'gpt_oss': ['<|return|>', '<|call|>'],
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
    if options.family == 'gpt2':
        shared = options.decoder(tokenizer)
        return {
            **{name: shared[name] for name in ('vocab_size', 'pad_token_id', 'eos_token_id')},
            'bos_token_id': tokenizer.bos_token_id,
            'n_embd': options.hidden,
            'n_layer': options.layers,
            'n_head': shared['num_attention_heads'],
            'n_positions': POSITIONS,
            **dict.fromkeys(('attn_pdrop', 'embd_pdrop', 'resid_pdrop'), 0.0),
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
    manner = options.template or options.family
    tokenizer = make_tokenizer(options.vocab, options.corpus, **(MANNERS | TOKENIZERS)[manner])
    config = AutoConfig.for_model(options.family, **settings(options, tokenizer))
    stops = STOPS.get(manner, [tokenizer.eos_token])
    save(options, out, AutoModelForCausalLM.from_config, config, tokenizer, stops)
    # A tokenizer can come back as another class that splits text its own way (Qwen2's does): what comes back is what
    # counts, and writing it once more makes it come back unchanged.
    AutoTokenizer.from_pretrained(out).save_pretrained(out)
