"""Tiny Qwen2-Audio: a Whisper encoder, a projector, a Qwen2."""

from __future__ import annotations

from pathlib import Path

import transformers

from align_anything.testing.tiny.options import TinyOptions, save
from align_anything.testing.tiny.templates import chatml, content
from align_anything.testing.tiny.tokenizers import CHATML, CHATML_STOPS, make_tokenizer

NAMED = {'audio_token': '<|AUDIO|>', 'audio_bos_token': '<|audio_bos|>', 'audio_eos_token': '<|audio_eos|>'}


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny Qwen2-Audio. Sounds are padded to `sound_seconds`, as the large one pads them to thirty."""
    tokenizer = make_tokenizer(options.vocab, options.corpus, **CHATML, named=NAMED)
    config = transformers.Qwen2AudioConfig(
        audio_config={'model_type': 'qwen2_audio_encoder', **options.whisper()},
        text_config={'model_type': 'qwen2', **options.decoder(tokenizer)},
        audio_token_index=tokenizer.audio_token_id,
    )
    processor = transformers.Qwen2AudioProcessor(
        transformers.WhisperFeatureExtractor(**options.sounds()),
        tokenizer,
        chat_template=chatml(content({'audio': '<|audio_bos|><|AUDIO|><|audio_eos|>\n'})),
    )
    save(options, out, transformers.Qwen2AudioForConditionalGeneration, config, processor, CHATML_STOPS)
