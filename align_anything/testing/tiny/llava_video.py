"""Tiny LLaVAs that take videos or several images: LLaVA-NeXT-Video, LLaVA-OneVision, LLaVA-Interleave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align_anything.testing.tiny.options import PATCH, TinyOptions, save
from align_anything.testing.tiny.templates import CHATML_CLOSING, CHATML_OPENING, VISUALS_FIRST, content, turns
from align_anything.testing.tiny.tokenizers import make_tokenizer

NAMED = {'image_token': '<image>', 'video_token': '<video>'}


def build(options: TinyOptions, out: Path) -> None:
    """Writes a tiny LLaVA of the family that the options name."""
    builders = {
        'llava_next_video': _next_video,
        'llava_onevision': _onevision,
        'llava_interleave': _interleave,
    }
    builders[options.family](options, out)


def _pinpoints(side: int) -> list[list[int]]:
    return [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]


def _vision(options: TinyOptions, **more: Any) -> dict[str, Any]:
    return {
        'hidden_size': options.vision_hidden,
        'intermediate_size': 2 * options.vision_hidden,
        'num_hidden_layers': options.vision_layers,
        'num_attention_heads': options.vision_heads,
        'image_size': options.image_size,
        'patch_size': PATCH,
        **more,
    }


def _chatml(options: TinyOptions, named: dict[str, str]) -> Any:
    return make_tokenizer(
        options.vocab, options.corpus, pad='<|endoftext|>', eos='<|im_end|>', extra=['<|im_start|>'], named=named
    )


def _next_video(options: TinyOptions, out: Path) -> None:
    import transformers

    tokenizer = make_tokenizer(
        options.vocab, options.corpus, pad='<pad>', eos='</s>', bos='<s>', add_bos=True, named=NAMED
    )
    side = options.image_size
    sizes: dict[str, Any] = {'size': {'shortest_edge': side}, 'crop_size': {'height': side, 'width': side}}
    config = transformers.LlavaNextVideoConfig(
        vision_config=_vision(options, model_type='clip_vision_model', projection_dim=options.vision_hidden),
        text_config={'model_type': 'llama', **options.decoder(tokenizer)},
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=_pinpoints(side),
        image_seq_length=(side // PATCH) ** 2,
        video_seq_length=(side // PATCH // 2) ** 2,
        spatial_pool_mode='average',
        spatial_pool_stride=2,
        vision_feature_layer=-2,
        vision_feature_select_strategy='default',
    )
    processor = transformers.LlavaNextVideoProcessor(
        video_processor=transformers.LlavaNextVideoVideoProcessor(**sizes),
        image_processor=transformers.LlavaNextImageProcessor(**sizes, image_grid_pinpoints=_pinpoints(side)),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy='default',
        num_additional_image_tokens=1,
        chat_template=VISUALS_FIRST,
    )
    save(options, out, lambda: transformers.LlavaNextVideoForConditionalGeneration(config), processor, ['</s>'])


def _onevision(options: TinyOptions, out: Path) -> None:
    import transformers

    tokenizer = _chatml(options, NAMED)
    side = options.image_size
    size = {'height': side, 'width': side}
    config = transformers.LlavaOnevisionConfig(
        vision_config=_vision(options, model_type='siglip_vision_model', vision_use_head=False),
        text_config={'model_type': 'qwen2', **options.decoder(tokenizer)},
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=_pinpoints(side),
        vision_feature_layer=-1,
        vision_feature_select_strategy='full',
        vision_aspect_ratio='anyres_max_9',
    )
    processor = transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=_pinpoints(side)),
        tokenizer=tokenizer,
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(side // PATCH) ** 2,
        vision_feature_select_strategy='full',
        vision_aspect_ratio='anyres_max_9',
        chat_template=turns(CHATML_OPENING, CHATML_CLOSING, content({'image': '<image>\n', 'video': '<video>\n'})),
    )
    kind = transformers.LlavaOnevisionForConditionalGeneration
    save(options, out, lambda: kind(config), processor, ['<|im_end|>', '<|endoftext|>'])


def _interleave(options: TinyOptions, out: Path) -> None:
    import transformers

    tokenizer = _chatml(options, {'image_token': '<image>'})
    side = options.image_size
    config = transformers.LlavaConfig(
        vision_config=_vision(options, model_type='siglip_vision_model', vision_use_head=False),
        text_config={'model_type': 'qwen2', **options.decoder(tokenizer)},
        image_token_index=tokenizer.image_token_id,
        image_seq_length=(side // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy='full',
    )
    processor = transformers.LlavaProcessor(
        transformers.SiglipImageProcessor(size={'height': side, 'width': side}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy='full',
        num_additional_image_tokens=0,
        chat_template=turns(CHATML_OPENING, CHATML_CLOSING, content({'image': '<image>\n'})),
    )
    kind = transformers.LlavaForConditionalGeneration
    save(options, out, lambda: kind(config), processor, ['<|im_end|>', '<|endoftext|>'])
