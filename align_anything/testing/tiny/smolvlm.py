"""Tiny SmolVLM: as Idefics3, and videos as images between timestamps in text."""

from __future__ import annotations

from pathlib import Path

from align_anything.testing.tiny.idefics3 import EXTRA, SCALE
from align_anything.testing.tiny.options import PATCH, TinyOptions, save
from align_anything.testing.tiny.tokenizers import make_tokenizer


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny SmolVLM, with the template that transformers puts in place of any other once a video is there."""
    import transformers
    from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

    tokenizer = make_tokenizer(
        options.vocab,
        options.corpus,
        pad='<pad>',
        eos='<|im_end|>',
        bos='<|im_start|>',
        extra=EXTRA,
        named={
            'image_token': '<image>',
            'fake_image_token': '<fake_token_around_image>',
            'global_image_token': '<global-img>',
            'end_of_utterance_token': '<end_of_utterance>',
            'video_token': '<video>',
        },
    )
    side = options.image_size
    config = transformers.SmolVLMConfig(
        vision_config={
            'hidden_size': options.vision_hidden,
            'intermediate_size': 2 * options.vision_hidden,
            'num_hidden_layers': options.vision_layers,
            'num_attention_heads': options.vision_heads,
            'image_size': side,
            'patch_size': PATCH,
        },
        text_config={'model_type': 'llama', **options.decoder(tokenizer)},
        scale_factor=SCALE,
        image_token_id=tokenizer.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    largest = {'longest_edge': side}
    processor = transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(
            size={'longest_edge': 2 * side}, max_image_size=largest, do_image_splitting=True
        ),
        tokenizer,
        transformers.SmolVLMVideoProcessor(size=largest, max_image_size=largest, fps=1, num_frames=8),
        image_seq_len=(side // PATCH // SCALE) ** 2,
        chat_template=DEFAULT_CHAT_TEMPLATE,
    )
    stops = ['<|im_end|>', '<end_of_utterance>']
    save(options, out, lambda: transformers.SmolVLMForConditionalGeneration(config), processor, stops)
