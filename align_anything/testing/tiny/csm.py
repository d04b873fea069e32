"""A tiny CSM: a Llama over frames of codes, a depth decoder behind it, and a Mimi of the real one's frame rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from align_anything.testing.tiny.options import TinyOptions, save
from align_anything.testing.tiny.tokenizers import make_tokenizer

BEGIN, END, AUDIO, AUDIO_END = '<|begin_of_text|>', '<|end_of_text|>', '<|AUDIO|>', '<|audio_eos|>'
BOOKS, ENTRIES = 4, 32
UNUSED = 3
"""Rows of the heads behind the codes of a book, as many as published ones have."""
RATE = 24000
# As published: speakers for roles, and what they say behind it.
TEMPLATE = (
    "{% for message in messages %}{% if not message['role'] is string or not message['role'].isdigit() %}"
    "{{ raise_exception('The role must be a number that stands for a speaker') }}{% endif %}"
    f"{{{{ '{BEGIN}[' + message['role'] + ']' + message['content'][0]['text'] + '{END}' }}}}"
    f"{{% if message['content'] | length > 1 %}}{{{{ '{AUDIO}{AUDIO_END}' }}}}{{% endif %}}{{% endfor %}}"
)
# Strides and kernels are those that the processor counts frames by; widths are not.
MIMI: dict[str, Any] = {
    'model_type': 'mimi',
    'hidden_size': 32,
    'intermediate_size': 32,
    'num_hidden_layers': 1,
    'num_attention_heads': 2,
    'num_key_value_heads': 2,
    'head_dim': 16,
    'num_filters': 2,
    'codebook_size': ENTRIES,
    'codebook_dim': 8,
    'vector_quantization_hidden_dimension': 8,
    'num_quantizers': BOOKS,
    'upsample_groups': 32,
}
SECONDS = 2
"""Of each sound that the code books are made of."""


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny CSM, whose codes tell tones."""
    tokenizer = make_tokenizer(
        options.vocab,
        options.corpus,
        pad=END,
        eos=END,
        bos=BEGIN,
        named={'audio_token': AUDIO, 'audio_eos_token': AUDIO_END},
        add_bos=True,
    )
    decoder = {**options.decoder(tokenizer), 'vocab_size': ENTRIES + UNUSED}
    depth = {
        **{name: size for name, size in decoder.items() if not name.endswith('_token_id')},
        'num_codebooks': BOOKS,
        'backbone_hidden_size': options.hidden,
        'num_hidden_layers': 1,
        'max_position_embeddings': BOOKS + 1,
    }
    config = transformers.CsmConfig(
        **decoder,
        num_codebooks=BOOKS,
        text_vocab_size=len(tokenizer),
        codebook_pad_token_id=ENTRIES + UNUSED - 1,
        codebook_eos_token_id=0,
        audio_token_id=tokenizer.audio_token_id,
        audio_eos_token_id=tokenizer.audio_eos_token_id,
        depth_decoder_config=depth,
        codec_config=MIMI,
    )
    processor = transformers.CsmProcessor(
        transformers.EncodecFeatureExtractor(sampling_rate=RATE), tokenizer, chat_template=TEMPLATE
    )
    save(options, out, transformers.CsmForConditionalGeneration, config, processor, [], _prepare)


def _prepare(model: nn.Module) -> None:
    # As published, one of the two embeddings is stored.
    model.backbone_model.embed_tokens.embed_audio_tokens.weight = model.depth_decoder.model.embed_tokens.weight
    # A model that learned nothing would write codes that no book has.
    how = {'do_sample': True, 'suppress_tokens': list(range(ENTRIES, ENTRIES + UNUSED))}
    model.generation_config = transformers.GenerationConfig(**how)
    further = {'min_new_tokens': BOOKS - 1, 'max_new_tokens': BOOKS - 1}
    model.depth_decoder.generation_config = transformers.GenerationConfig(**how, **further)
    spread_books(model.codec_model)


def spread_books(codec: nn.Module) -> None:
    """Makes the entries of each code book latents of tones, so that other tones have other codes.

    Those of a new network all lie at zero.
    """
    time = torch.arange(SECONDS * RATE) / RATE
    pitches = torch.linspace(100, 2000, 2 * ENTRIES)
    sounds = [(volume * torch.sin(2 * torch.pi * pitch * time)) for pitch in pitches for volume in (0.1, 0.6)]
    codec.eval()
    with torch.no_grad():
        latents = torch.cat([_latents(codec, sound) for sound in sounds])
        for quantizer in (
            codec.quantizer.semantic_residual_vector_quantizer,
            codec.quantizer.acoustic_residual_vector_quantizer,
        ):
            rest = quantizer.input_proj(latents.T[None])[0].T
            for layer in quantizer.layers:
                book = layer.codebook
                book.embed_sum.copy_(rest[torch.randperm(len(rest))[: len(book.embed_sum)]])
                book.cluster_usage.fill_(1.0)
                book._embed = None
                rest = rest - book.embed[torch.cdist(rest, book.embed).argmin(1)]


def _latents(codec: nn.Module, sound: Tensor) -> Tensor:
    """What the encoder makes of a sound `(samples,)`, before it is quantised, `(frames, size)`."""
    hidden = codec.encoder(sound[None, None])
    hidden = codec.encoder_transformer(hidden.transpose(1, 2))[0].transpose(1, 2)
    return codec.downsample(hidden)[0].T
