"""Tiny pipelines that make videos, of diffusers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from align_anything.testing.tiny.pipeline_parts import (
    BETAS,
    HEAD,
    PipelineOptions,
    clip_encoder,
    clip_tokenizer,
    decoder_config,
    kl_autoencoder,
    llama_tokenizer,
    save_pipeline,
    t5_encoder,
    t5_tokenizer,
)

FRAMES = 9
EIGHTH = (8,) * 4
"""Widths of the blocks of an autoencoder with 8 pixels of a side for one latent."""


def build(options: PipelineOptions, out: Path) -> None:
    """Writes one of `BUILDERS`."""
    save_pipeline(BUILDERS, options, out)


def wan(options: PipelineOptions, experts: bool = False, expand_timesteps: bool = False) -> Any:
    """Wan 2.1."""
    import diffusers

    tokenizer = t5_tokenizer(options)
    networks = [
        diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=options.heads,
            attention_head_dim=HEAD,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=32,
            ffn_dim=32,
            num_layers=options.layers,
            cross_attn_norm=True,
            qk_norm='rms_norm_across_heads',
            rope_max_seq_len=32,
        )
        for _ in range(2 if experts else 1)
    ]
    return diffusers.WanPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer, kind='UMT5'),
        vae=diffusers.AutoencoderKLWan(
            base_dim=3,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
        ).eval(),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=networks[0],
        transformer_2=networks[1] if experts else None,
        boundary_ratio=0.875 if experts else None,
        expand_timesteps=expand_timesteps,
    )


def wan22(options: PipelineOptions) -> Any:
    """Wan 2.2 with two experts."""
    return wan(options, experts=True)


def wan22_5b(options: PipelineOptions) -> Any:
    """Wan 2.2 with 5B parameters: a timestep for each token."""
    return wan(options, expand_timesteps=True)


def ltx(options: PipelineOptions) -> Any:
    """LTX-Video, with 4 pixels of a side for one latent."""
    import diffusers

    tokenizer = t5_tokenizer(options)
    scaling = (True, True, False, False)
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=EIGHTH,
        decoder_block_out_channels=EIGHTH,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=scaling,
        decoder_spatio_temporal_scaling=scaling,
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        patch_size=1,
        patch_size_t=1,
    ).eval()
    # Published checkpoints have those of the latents of many videos.
    vae.latents_mean.normal_()
    vae.latents_std.uniform_(0.5, 2.0)
    return diffusers.LTXPipeline(
        transformer=diffusers.LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            patch_size=1,
            patch_size_t=1,
            num_attention_heads=options.heads,
            attention_head_dim=HEAD,
            cross_attention_dim=options.hidden,
            num_layers=options.layers,
            caption_channels=32,
        ),
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1),
        text_encoder=t5_encoder(tokenizer),
        tokenizer=tokenizer,
    )


def cogvideox(options: PipelineOptions, rotary: bool = False) -> Any:
    """CogVideoX 2B: sine positions."""
    import diffusers

    tokenizer = t5_tokenizer(options)
    side = options.image_size // 8
    return diffusers.CogVideoXPipeline(
        transformer=diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=options.heads,
            attention_head_dim=HEAD,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=32,
            num_layers=options.layers,
            sample_width=side,
            sample_height=side,
            sample_frames=FRAMES,
            patch_size=2,
            temporal_compression_ratio=4,
            max_text_seq_length=16,
            use_rotary_positional_embeddings=rotary,
        ),
        vae=diffusers.AutoencoderKLCogVideoX(
            down_block_types=('CogVideoXDownBlock3D',) * 4,
            up_block_types=('CogVideoXUpBlock3D',) * 4,
            block_out_channels=EIGHTH,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        ).eval(),
        scheduler=diffusers.CogVideoXDDIMScheduler(
            prediction_type='v_prediction', rescale_betas_zero_snr=True, timestep_spacing='trailing'
        ),
        text_encoder=t5_encoder(tokenizer),
        tokenizer=tokenizer,
    )


def cogvideox_5b(options: PipelineOptions) -> Any:
    """CogVideoX 5B: rotary positions."""
    return cogvideox(options, rotary=True)


def hunyuan_video(options: PipelineOptions) -> Any:
    """HunyuanVideo."""
    import diffusers
    import transformers

    clip, tokenizer = clip_tokenizer(options), llama_tokenizer(options)
    return diffusers.HunyuanVideoPipeline(
        text_encoder=transformers.LlamaModel(decoder_config('Llama', tokenizer, 3)).eval(),
        tokenizer=tokenizer,
        transformer=diffusers.HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=options.heads,
            attention_head_dim=HEAD,
            num_layers=options.layers,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=2,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=16,
            pooled_projection_dim=32,
            rope_axes_dim=(4, 6, 6),
        ),
        vae=diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=4,
            down_block_types=('HunyuanVideoDownBlock3D',) * 4,
            up_block_types=('HunyuanVideoUpBlock3D',) * 4,
            block_out_channels=EIGHTH,
            layers_per_block=1,
            norm_num_groups=4,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip_encoder(options, clip),
        tokenizer_2=clip,
    )


def text_to_video_sd(options: PipelineOptions) -> Any:
    """ModelScope's text to video."""
    import diffusers

    tokenizer = clip_tokenizer(options)
    unet = diffusers.UNet3DConditionModel(
        sample_size=options.latent_size,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, options.hidden),
        layers_per_block=options.layers,
        norm_num_groups=8,
        down_block_types=('CrossAttnDownBlock3D', 'DownBlock3D'),
        up_block_types=('UpBlock3D', 'CrossAttnUpBlock3D'),
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            # Zeros at first, from which a trained one is far.
            if '.conv4.' in name:
                parameter.normal_(0, 0.05)
    return diffusers.TextToVideoSDPipeline(
        vae=kl_autoencoder(options),
        text_encoder=clip_encoder(options, tokenizer),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False),
    )


BUILDERS = {
    builder.__name__: builder
    for builder in (wan, wan22, wan22_5b, ltx, cogvideox, cogvideox_5b, hunyuan_video, text_to_video_sd)
}
