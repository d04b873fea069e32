"""Tiny pipelines that make sounds, of diffusers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align_anything.testing.tiny.pipeline_parts import (
    HEAD,
    PipelineOptions,
    chat_tokenizer,
    decoder_config,
    save_pipeline,
    t5_encoder,
    t5_tokenizer,
)

RATE = 400
"""Samples per second."""


def build(options: PipelineOptions, out: Path) -> None:
    """Writes one of `BUILDERS`."""
    save_pipeline(BUILDERS, options, out)


def stable_audio(options: PipelineOptions) -> Any:
    """Stable Audio Open: clips of at most 1.28 seconds."""
    import diffusers

    tokenizer = t5_tokenizer(options, 25)
    return diffusers.StableAudioPipeline(
        vae=_oobleck(4),
        text_encoder=t5_encoder(tokenizer),
        projection_model=diffusers.StableAudioProjectionModel(32, HEAD, 0, 32),
        tokenizer=tokenizer,
        transformer=diffusers.StableAudioDiTModel(
            sample_size=64,
            in_channels=4,
            out_channels=4,
            num_layers=options.layers,
            attention_head_dim=HEAD,
            num_attention_heads=options.heads,
            num_key_value_attention_heads=options.heads,
            cross_attention_dim=options.hidden,
            time_proj_dim=16,
            global_states_input_dim=32,
            cross_attention_input_dim=HEAD,
        ),
        scheduler=diffusers.CosineDPMSolverMultistepScheduler(
            solver_order=2, prediction_type='v_prediction', sigma_data=1.0, sigma_schedule='exponential'
        ),
    )


def ace_step(options: PipelineOptions) -> Any:
    """ACE-Step: music, of which silence is a few hundred latents."""
    import diffusers
    import transformers
    from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder

    tokenizer = chat_tokenizer(options)
    common = {
        'hidden_size': options.hidden,
        'intermediate_size': options.hidden,
        'num_attention_heads': options.heads,
        'num_key_value_heads': options.heads,
        'head_dim': HEAD,
        'rope_theta': 1e4,
        'sliding_window': 16,
    }
    conditions = AceStepConditionEncoder(
        text_hidden_dim=16,
        timbre_hidden_dim=8,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
        **common,
    ).eval()
    # Published checkpoints have the latents of silence.
    conditions.silence_latent.normal_()
    return diffusers.AceStepPipeline(
        vae=_oobleck(8),
        text_encoder=transformers.Qwen3Model(decoder_config('Qwen3', tokenizer)).eval(),
        tokenizer=tokenizer,
        transformer=diffusers.AceStepTransformer1DModel(
            num_hidden_layers=options.layers, in_channels=24, audio_acoustic_hidden_dim=8, patch_size=2, **common
        ),
        condition_encoder=conditions,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )


def _oobleck(latents: int) -> Any:
    import diffusers

    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=2 * latents,
        downsampling_ratios=[2, 4],
        decoder_channels=8,
        decoder_input_channels=latents,
        audio_channels=2,
        channel_multiples=[1, 2],
        sampling_rate=RATE,
    ).eval()


BUILDERS = {builder.__name__: builder for builder in (stable_audio, ace_step)}
