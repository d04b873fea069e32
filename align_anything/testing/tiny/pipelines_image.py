"""Tiny pipelines that make pictures, of diffusers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align_anything.testing.tiny.pipeline_parts import (
    HEAD,
    PipelineOptions,
    clip_encoder,
    clip_tokenizer,
    kl_autoencoder,
    save_pipeline,
    t5_encoder,
    t5_tokenizer,
)

BETAS = {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear', 'steps_offset': 1}
SHIFTED_VAE = {'use_quant_conv': False, 'use_post_quant_conv': False}


def build(options: PipelineOptions, out: Path) -> None:
    """Writes one of `BUILDERS`."""
    save_pipeline(BUILDERS, options, out)


def sd15(options: PipelineOptions, prediction: str = 'epsilon') -> Any:
    """Stable Diffusion 1.5: a UNet that predicts ε."""
    import diffusers

    tokenizer = clip_tokenizer(options)
    return diffusers.StableDiffusionPipeline(
        vae=kl_autoencoder(options),
        text_encoder=clip_encoder(options, tokenizer),
        tokenizer=tokenizer,
        unet=_unet(options, cross_attention_dim=32),
        scheduler=diffusers.DDIMScheduler(
            **BETAS, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd2(options: PipelineOptions) -> Any:
    """Stable Diffusion 2: predicts v."""
    return sd15(options, 'v_prediction')


def sd3(options: PipelineOptions, third: bool = True) -> Any:
    """Stable Diffusion 3: a flow, with T5 as third encoder."""
    import diffusers

    tokenizers = [clip_tokenizer(options) for _ in range(2)]
    encoders = [clip_encoder(options, tokenizer, projected=True) for tokenizer in tokenizers]
    tokenizer = t5_tokenizer(options) if third else None
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=options.latent_size,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=options.layers,
            attention_head_dim=HEAD,
            num_attention_heads=options.heads,
            caption_projection_dim=options.hidden,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            pos_embed_max_size=max(16, options.latent_size // 2),
            qk_norm='rms_norm',
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl_autoencoder(options, shift_factor=0.0609, scaling_factor=1.5305, **SHIFTED_VAE),
        text_encoder=encoders[0],
        tokenizer=tokenizers[0],
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=t5_encoder(tokenizer, 64) if third else None,
        tokenizer_3=tokenizer,
    )


def sd3_clip(options: PipelineOptions) -> Any:
    """Stable Diffusion 3 without T5."""
    return sd3(options, third=False)


def _unet(options: PipelineOptions, **more: Any) -> Any:
    import diffusers

    settings = {'attention_head_dim': 8, **more}
    return diffusers.UNet2DConditionModel(
        sample_size=options.latent_size,
        in_channels=4,
        out_channels=4,
        layers_per_block=options.layers,
        block_out_channels=(16, options.hidden),
        norm_num_groups=8,
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
        up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'),
        **settings,
    )


BUILDERS = {builder.__name__: builder for builder in (sd15, sd2, sd3, sd3_clip)}
