"""Tiny pipelines that make pictures, of diffusers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from align_anything.testing.tiny.pipeline_parts import (
    BETAS,
    HEAD,
    PipelineOptions,
    chat_tokenizer,
    clip_encoder,
    clip_tokenizer,
    decoder_config,
    kl_autoencoder,
    save_pipeline,
    t5_encoder,
    t5_tokenizer,
)

SHIFTED_VAE = {'use_quant_conv': False, 'use_post_quant_conv': False}
FLUX_VAE = {'shift_factor': 0.1159, 'scaling_factor': 0.3611, **SHIFTED_VAE}
QWEN_TOKENS = ('image_pad', 'video_pad', 'vision_start', 'vision_end')


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


def sdxl(options: PipelineOptions) -> Any:
    """Stable Diffusion XL: a UNet under two encoders."""
    import diffusers

    tokenizers = [clip_tokenizer(options) for _ in range(2)]
    return diffusers.StableDiffusionXLPipeline(
        vae=kl_autoencoder(options, scaling_factor=0.13025),
        text_encoder=clip_encoder(options, tokenizers[0]),
        tokenizer=tokenizers[0],
        text_encoder_2=clip_encoder(options, tokenizers[1], projected=True),
        tokenizer_2=tokenizers[1],
        unet=_unet(
            options,
            cross_attention_dim=64,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type='text_time',
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=6 * 8 + 32,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing='leading'),
    )


def flux(options: PipelineOptions, guidance_embeds: bool = True, kind: str = 'Flux', beside: int = 0) -> Any:
    """FLUX.1-dev: told its guidance."""
    import diffusers

    clip, tokenizer = clip_tokenizer(options), t5_tokenizer(options)
    return getattr(diffusers, f'{kind}Pipeline')(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=kl_autoencoder(options, **FLUX_VAE),
        text_encoder=clip_encoder(options, clip),
        tokenizer=clip,
        text_encoder_2=t5_encoder(tokenizer),
        tokenizer_2=tokenizer,
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16 + beside,
            out_channels=16,
            num_layers=options.layers,
            num_single_layers=1,
            attention_head_dim=HEAD,
            num_attention_heads=options.heads,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance_embeds,
        ),
    )


def flux_schnell(options: PipelineOptions) -> Any:
    """FLUX.1-schnell: told no guidance, its noise levels not shifted."""
    import diffusers

    pipeline = flux(options, guidance_embeds=False)
    pipeline.register_modules(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0))
    return pipeline


def flux_kontext(options: PipelineOptions) -> Any:
    """FLUX.1 Kontext: edits a picture."""
    return flux(options, kind='FluxKontext')


def flux_fill(options: PipelineOptions) -> Any:
    """FLUX.1 Fill: has channels for a picture and its mask."""
    return flux(options, kind='FluxFill', beside=16 + 4 * options.factor**2)


def flux2_klein(options: PipelineOptions) -> Any:
    """FLUX.2 klein: under layers of Qwen3, of which the last that is read has number 27."""
    import diffusers
    import transformers

    tokenizer = chat_tokenizer(options)
    widths = (8,) * (options.factor.bit_length() - 1)
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=widths,
        down_block_types=('DownEncoderBlock2D',) * len(widths),
        up_block_types=('UpDecoderBlock2D',) * len(widths),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=options.image_size,
    ).eval()
    # Published checkpoints have those of the latents of many pictures.
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=transformers.Qwen3ForCausalLM(decoder_config('Qwen3', tokenizer, layers=28)).eval(),
        tokenizer=tokenizer,
        transformer=diffusers.Flux2Transformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=options.layers,
            num_single_layers=1,
            attention_head_dim=HEAD,
            num_attention_heads=options.heads,
            joint_attention_dim=3 * 16,
            timestep_guidance_channels=32,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
    )


def z_image(options: PipelineOptions) -> Any:
    """Z-Image."""
    import diffusers
    import transformers

    tokenizer = chat_tokenizer(options)
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=options.hidden,
        n_layers=options.layers,
        n_refiner_layers=1,
        n_heads=options.heads,
        n_kv_heads=options.heads,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[512, 32, 32],
    )
    # Published checkpoints have trained ones; here they are memory that nobody has written.
    with torch.no_grad():
        transformer.x_pad_token.normal_(0, 0.02)
        transformer.cap_pad_token.normal_(0, 0.02)
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl_autoencoder(options, **FLUX_VAE),
        text_encoder=transformers.Qwen3Model(decoder_config('Qwen3', tokenizer)).eval(),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def sana(options: PipelineOptions) -> Any:
    """Sana: linear attention, a deep autoencoder and Gemma."""
    import diffusers
    import transformers

    tokenizer = t5_tokenizer(options, 300)
    widths, block = (8,) * options.factor.bit_length(), ('ResBlock', 'EfficientViTBlock', 'EfficientViTBlock')
    blocks, scales = block[: len(widths)], ((), (5,), (5,))[: len(widths)]
    config = decoder_config(
        'Gemma2', tokenizer, 1, hidden_size=8, max_position_embeddings=4096, attn_implementation='eager'
    )
    return diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.Gemma2Model(config).eval(),
        vae=diffusers.AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=blocks,
            decoder_block_types=blocks,
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            encoder_qkv_multiscales=scales,
            decoder_qkv_multiscales=scales,
            encoder_layers_per_block=(1,) * len(widths),
            decoder_layers_per_block=(1,) * len(widths),
            downsample_block_type='conv',
            upsample_block_type='interpolate',
            decoder_norm_types='rms_norm',
            decoder_act_fns='silu',
            scaling_factor=0.41407,
        ).eval(),
        transformer=diffusers.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=options.layers,
            num_attention_heads=options.heads,
            attention_head_dim=HEAD,
            num_cross_attention_heads=options.heads,
            cross_attention_head_dim=HEAD,
            cross_attention_dim=options.hidden,
            caption_channels=8,
            sample_size=options.latent_size,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def pixart(options: PipelineOptions, kind: str = 'Alpha') -> Any:
    """PixArt-α: ε, and a variance that is left."""
    import diffusers

    tokenizer = t5_tokenizer(options)
    return getattr(diffusers, f'PixArt{kind}Pipeline')(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer),
        vae=kl_autoencoder(options),
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=options.latent_size,
            num_layers=options.layers,
            patch_size=2,
            attention_head_dim=HEAD,
            num_attention_heads=options.heads,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=options.hidden,
            out_channels=8,
            norm_type='ada_norm_single',
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule='linear'),
    )


def pixart_sigma(options: PipelineOptions) -> Any:
    """PixArt-Σ."""
    return pixart(options, 'Sigma')


def qwen_image(options: PipelineOptions, kind: str = 'QwenImage', **more: Any) -> Any:
    """Qwen-Image: a video autoencoder under Qwen2.5-VL."""
    import diffusers
    import transformers

    tokenizer = chat_tokenizer(options)
    ids = {name: tokenizer.convert_tokens_to_ids(f'<|{name}|>') for name in QWEN_TOKENS}
    decoder = {'hidden_size': 16, 'intermediate_size': 16, 'num_attention_heads': 2}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **decoder,
            'vocab_size': len(tokenizer),
            'num_hidden_layers': 1,
            'num_key_value_heads': 2,
            'max_position_embeddings': 2048,
            'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e6, 'mrope_section': [1, 1, 2]},
        },
        vision_config={'depth': 1, 'hidden_size': 16, 'intermediate_size': 16, 'num_heads': 2, 'out_hidden_size': 16}
        | {'fullatt_block_indexes': [0]},
        image_token_id=ids['image_pad'],
        video_token_id=ids['video_pad'],
        vision_start_token_id=ids['vision_start'],
        vision_end_token_id=ids['vision_end'],
        vocab_size=len(tokenizer),
    )
    times = options.factor.bit_length() - 1
    return getattr(diffusers, f'{kind}Pipeline')(
        transformer=diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=options.layers,
            attention_head_dim=HEAD,
            num_attention_heads=options.heads,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1] * (times + 1),
            num_res_blocks=1,
            temperal_downsample=[False, True, True][:times],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.8, 2.0, 1.0],
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, shift_terminal=0.02, max_shift=0.9
        ),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=tokenizer,
        **more,
    )


def qwen_image_edit(options: PipelineOptions, kind: str = 'QwenImageEdit') -> Any:
    """Qwen-Image-Edit: Qwen2.5-VL sees the picture to edit."""
    import transformers

    tokenizer = chat_tokenizer(options)
    images = transformers.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=4 * 28 * 28)
    videos = transformers.Qwen2VLVideoProcessor()
    return qwen_image(options, kind, processor=transformers.Qwen2VLProcessor(images, tokenizer, videos))


def qwen_image_edit_plus(options: PipelineOptions) -> Any:
    """Qwen-Image-Edit-2509."""
    return qwen_image_edit(options, 'QwenImageEditPlus')


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


BUILDERS = {
    builder.__name__: builder
    for builder in (
        sd15,
        sd2,
        sdxl,
        sd3,
        sd3_clip,
        flux,
        flux_schnell,
        flux_kontext,
        flux_fill,
        flux2_klein,
        z_image,
        sana,
        pixart,
        pixart_sigma,
        qwen_image,
        qwen_image_edit,
        qwen_image_edit_plus,
    )
}
