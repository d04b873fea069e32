"""Pipelines to train on a CPU, with random weights: Stable Diffusion 1.5 and 3, made smaller.

Sizes are such that the frozen encoders take about what those of the published models take at 512 x 512 pixels, in CPU
seconds of one sample relative to a forward pass of the denoiser (`costs` tells what they take here). Measured with
one thread in float32: a forward pass of the UNet of Stable Diffusion 1.5 takes 8.2 s, its autoencoder 8.3 s, its text
encoder 0.1 s; the transformer of Stable Diffusion 3 medium 22 s, its autoencoder 8.3 s, its text encoders, of 256
tokens in T5, 28 s (both transformers from a quarter and an eighth of their layers).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from scripts.bench.measure import cpu_seconds
from scripts.bench.work import Size, corpus, words

FAMILIES = ('sd15', 'sd3')
WORDS = 200
TIMES = 3


def pipeline(family: str, folder: Path, size: Size) -> Path:
    """Writes the pipeline of a family."""
    from align_anything.testing.tiny.pipeline_parts import PipelineOptions, save_pipeline

    builders = {'sd15': _sd15, 'sd3': _sd3}
    options = PipelineOptions(family, image_size=size.picture, corpus=tuple(corpus(words(WORDS))))
    save_pipeline({name: partial(build, shrink=size.shrink) for name, build in builders.items()}, options, folder)
    return folder


def tiny(family: str, folder: Path, size: Size) -> Path:
    """Writes the pipeline that tests train, which is next to nothing: what is left of a step is all else."""
    from align_anything.testing.tiny import build

    return build(family, folder, image_size=size.picture, corpus=corpus(words(WORDS)))


def weights(folder: Path) -> int:
    """Bytes of the denoiser of a pipeline."""
    from align_anything.models.diffusion.checkpoint import load_spec

    return sum(file.stat().st_size for file in (folder / load_spec(folder).denoiser).glob('*.safetensors'))


def costs(folder: Path, side: int) -> str:
    """What to say of the CPU seconds of a forward pass of the denoiser, and of each encoder, for one sample."""
    import torch

    from align_anything.models.diffusion.checkpoint import load_denoiser, load_spec
    from align_anything.models.diffusion.spec import Sizing

    spec = load_spec(folder, Sizing((side, side)))
    frozen, denoiser = spec.open(torch.device('cpu')), load_denoiser(spec).eval()
    sample, pixels = torch.randn(1, *spec.latent_shape((side, side))), torch.zeros(1, 3, side, side)
    conditions = spec.stack(spec.encode_text(frozen, ['some words']))
    level = spec.levels(2, sample.shape[1:])[1:2]
    with torch.no_grad():
        forward = _quickest(lambda: spec.predict(denoiser, sample, level, conditions, 1.0))
    media = _quickest(lambda: spec.encode_media(frozen, pixels))
    text = _quickest(lambda: spec.encode_text(frozen, ['some words']))
    return (
        f'{folder.name}: a forward pass of the denoiser {forward:.3f} CPU s, autoencoder {media:.3f} '
        f'({media / forward:.2f} of it), text encoders {text:.3f} ({text / forward:.2f})'
    )


def _quickest(run: Callable[[], Any]) -> float:
    took = []
    for _ in range(TIMES):
        began = cpu_seconds()
        run()
        took.append(cpu_seconds() - began)
    return min(took)


def _sd15(options: Any, shrink: int) -> Any:
    import diffusers

    from align_anything.testing.tiny.pipeline_parts import BETAS, clip_tokenizer

    tokenizer = clip_tokenizer(options)
    return diffusers.StableDiffusionPipeline(
        vae=_autoencoder(tuple(width // shrink for width in (40, 80, 160, 160)), latent_channels=4),
        text_encoder=_clip(tokenizer, 192 // shrink, 12 // shrink),
        tokenizer=tokenizer,
        # As published, its widths divided by four.
        unet=diffusers.UNet2DConditionModel(
            sample_size=options.image_size // 8,
            cross_attention_dim=192 // shrink,
            attention_head_dim=8,
            norm_num_groups=8 // shrink,
            block_out_channels=tuple(width // shrink for width in (80, 160, 320, 320)),
        ),
        scheduler=diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd3(options: Any, shrink: int) -> Any:
    import diffusers
    import transformers

    from align_anything.testing.tiny.pipeline_parts import clip_tokenizer, t5_tokenizer

    tokenizers, third = [clip_tokenizer(options) for _ in range(2)], t5_tokenizer(options)
    clips = [
        _clip(tokenizer, width // shrink, layers // shrink, projected=True)
        for tokenizer, width, layers in zip(tokenizers, (192, 320), (4, 8), strict=True)
    ]
    width = 768 // shrink
    t5 = transformers.T5Config(
        vocab_size=len(third),
        d_model=width,
        d_kv=64,
        d_ff=5 * width // 2,
        num_layers=10 // shrink,
        num_heads=width // 64,
        feed_forward_proj='gated-gelu',
        pad_token_id=third.pad_token_id,
        eos_token_id=third.eos_token_id,
        decoder_start_token_id=third.pad_token_id,
    )
    # 64 x 64 latents, as published at 512 pixels, here at 256.
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=options.image_size // 4,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=4,
            attention_head_dim=64,
            num_attention_heads=6 // shrink,
            caption_projection_dim=384 // shrink,
            joint_attention_dim=width,
            pooled_projection_dim=512 // shrink,
            pos_embed_max_size=options.image_size // 8,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_autoencoder(
            tuple(width // shrink for width in (24, 48, 96)),
            latent_channels=16,
            shift_factor=0.0609,
            scaling_factor=1.5305,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=clips[0],
        tokenizer=tokenizers[0],
        text_encoder_2=clips[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=transformers.T5EncoderModel(t5).eval(),
        tokenizer_3=third,
    )


def _autoencoder(widths: tuple[int, ...], **more: Any) -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        down_block_types=('DownEncoderBlock2D',) * len(widths),
        up_block_types=('UpDecoderBlock2D',) * len(widths),
        block_out_channels=widths,
        layers_per_block=2,
        norm_num_groups=4,
        **more,
    ).eval()


def _clip(tokenizer: Any, width: int, layers: int, projected: bool = False) -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config).eval()
