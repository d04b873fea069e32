"""Tiny Qwen2-Audio: a Whisper encoder, a projector, a Qwen2."""

from __future__ import annotations

from pathlib import Path

from align_anything.testing.tiny.options import MELS, TinyOptions, save
from align_anything.testing.tiny.templates import CHATML_CLOSING, CHATML_OPENING, content, turns
from align_anything.testing.tiny.tokenizers import make_tokenizer


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny Qwen2-Audio. Audio clips are padded to `sound_seconds`, as the large one pads them to thirty."""
    import transformers

    tokenizer = make_tokenizer(
        options.vocab,
        options.corpus,
        pad='<|endoftext|>',
        eos='<|im_end|>',
        extra=['<|im_start|>'],
        named={
            'audio_token': '<|AUDIO|>',
            'audio_bos_token': '<|audio_bos|>',
            'audio_eos_token': '<|audio_eos|>',
        },
    )
    config = transformers.Qwen2AudioConfig(
        audio_config={
            'model_type': 'qwen2_audio_encoder',
            'd_model': options.vision_hidden,
            'encoder_layers': options.vision_layers,
            'encoder_attention_heads': options.vision_heads,
            'encoder_ffn_dim': 2 * options.vision_hidden,
            'num_mel_bins': MELS,
            # A hundred mel frames a second, halved by the first convolution.
            'max_source_positions': 50 * options.sound_seconds,
        },
        text_config={'model_type': 'qwen2', **options.decoder(tokenizer)},
        audio_token_index=tokenizer.audio_token_id,
    )
    processor = transformers.Qwen2AudioProcessor(
        transformers.WhisperFeatureExtractor(
            feature_size=MELS, chunk_length=options.sound_seconds, return_attention_mask=True
        ),
        tokenizer,
        chat_template=turns(
            CHATML_OPENING, CHATML_CLOSING, content({'audio': '<|audio_bos|><|AUDIO|><|audio_eos|>\n'})
        ),
    )
    kind = transformers.Qwen2AudioForConditionalGeneration
    save(options, out, lambda: kind(config), processor, ['<|im_end|>', '<|endoftext|>'])
