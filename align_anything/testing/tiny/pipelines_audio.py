"""Tiny pipelines that make sounds, of diffusers' own classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from align_anything.testing.tiny.pipeline_parts import (
    BETAS,
    HEAD,
    PipelineOptions,
    chat_tokenizer,
    decoder_config,
    kl_autoencoder,
    save_pipeline,
    t5_encoder,
    t5_tokenizer,
)
from align_anything.testing.tiny.tokenizers import CORPUS

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


def audioldm2(options: PipelineOptions) -> Any:
    """AudioLDM 2: spectrograms of 8 bins."""
    import diffusers
    import transformers

    roberta, t5 = _roberta_tokenizer(options), _t5_pieces(options)
    sound = {'spec_size': 8, 'window_size': 4, 'num_mel_bins': 8, 'intermediate_size': 32, 'depths': [1, 1]}
    clap = transformers.ClapConfig(
        text_config=_clap_text(roberta),
        audio_config={
            **sound,
            'num_attention_heads': [1, 1],
            'num_hidden_layers': 1,
            'hidden_size': 192,
            'projection_dim': 16,
            'patch_size': 2,
            'patch_stride': 2,
            'patch_embeds_hidden_size': 96,
        },
        projection_dim=16,
    )
    gpt = transformers.GPT2Config(
        n_embd=16, n_head=2, n_layer=1, vocab_size=len(roberta), n_positions=128, bos_token_id=1, eos_token_id=2
    )
    language_model = transformers.GPT2LMHeadModel(gpt).eval()
    language_model.config.max_new_tokens = 4
    return diffusers.AudioLDM2Pipeline(
        vae=kl_autoencoder(replace(options, factor=2), channels=1),
        text_encoder=transformers.ClapModel(clap).eval(),
        text_encoder_2=t5_encoder(t5),
        projection_model=diffusers.AudioLDM2ProjectionModel(
            text_encoder_dim=16, text_encoder_1_dim=32, langauge_model_dim=16
        ),
        language_model=language_model,
        tokenizer=roberta,
        tokenizer_2=t5,
        feature_extractor=transformers.ClapFeatureExtractor(feature_size=8, hop_length=480),
        unet=diffusers.AudioLDM2UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=options.layers,
            norm_num_groups=8,
            sample_size=options.latent_size,
            in_channels=4,
            out_channels=4,
            down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
            up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'),
            cross_attention_dim=[[None, 16, 32]] * 2,
        ),
        scheduler=diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False),
        vocoder=_vocoder(),
    )


def audioldm(options: PipelineOptions) -> Any:
    """AudioLDM: spectrograms of 8 bins."""
    import diffusers
    import transformers

    roberta = _roberta_tokenizer(options)
    return diffusers.AudioLDMPipeline(
        vae=kl_autoencoder(replace(options, factor=2), channels=1),
        text_encoder=transformers.ClapTextModelWithProjection(
            transformers.ClapTextConfig(**_clap_text(roberta))
        ).eval(),
        tokenizer=roberta,
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=options.layers,
            norm_num_groups=8,
            sample_size=options.latent_size,
            in_channels=4,
            out_channels=4,
            down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
            up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'),
            attention_head_dim=8,
            # Nothing is read across: its second attention is to the sample too.
            cross_attention_dim=(8, 16),
            class_embed_type='simple_projection',
            projection_class_embeddings_input_dim=16,
            class_embeddings_concat=True,
        ),
        scheduler=diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False),
        vocoder=_vocoder(),
    )


def _clap_text(tokenizer: Any) -> dict[str, Any]:
    """The configuration of the text tower of CLAP."""
    return {
        'vocab_size': len(tokenizer),
        'hidden_size': 16,
        'intermediate_size': 32,
        'num_attention_heads': 2,
        'num_hidden_layers': 1,
        'projection_dim': 16,
        'pad_token_id': tokenizer.pad_token_id,
        'max_position_embeddings': 128,
    }


def _vocoder() -> Any:
    import transformers

    config = transformers.SpeechT5HifiGanConfig(
        model_in_dim=8,
        sampling_rate=RATE,
        upsample_initial_channel=16,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        normalize_before=False,
        # Else nobody would hear what it makes.
        initializer_range=0.15,
    )
    return transformers.SpeechT5HifiGan(config).eval()


def _roberta_tokenizer(options: PipelineOptions) -> Any:
    """A tokenizer of the class that alone is handed the prompt."""
    import transformers

    model = json.loads(t5_tokenizer(options).backend_tokenizer.to_str())['model']
    merges = [tuple(pair.split(' ')) if isinstance(pair, str) else tuple(pair) for pair in model['merges']]
    special = ['<s>', '<pad>', '</s>', '<unk>', '<mask>']
    pieces = [*special, *(piece for piece in model['vocab'] if piece not in special)]
    return transformers.RobertaTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges, model_max_length=77
    )


def _t5_pieces(options: PipelineOptions) -> Any:
    """A tokenizer of the class of T5, of the words of the corpus and letters."""
    import transformers

    words = sorted({word for word in ' '.join(options.corpus or CORPUS).lower().split() if word.isalpha()})
    pieces = [('<pad>', 0.0), ('</s>', 0.0), ('<unk>', 0.0), *((f'\u2581{word}', -2.0) for word in words)]
    pieces += [*((chr(code), -5.0) for code in range(97, 123)), ('\u2581', -3.0)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=77)


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


BUILDERS = {builder.__name__: builder for builder in (stable_audio, ace_step, audioldm, audioldm2)}
