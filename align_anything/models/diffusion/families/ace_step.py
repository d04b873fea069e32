"""ACE-Step 1.5 (Gong et al., 2025): a flow over the latents of music, under Qwen3 and a condition encoder."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.models.diffusion.prepared import Size
from align_anything.models.diffusion.sounds import WaveformSpec


class AceStepSpec(WaveformSpec):
    """Predicts the velocity at σ of latents `(length, channels)`: instrumental, since rows have no lyrics.

    Its attention masks no padding. Prompts of one length are one call, of several as many as there are rows: in a run
    that partitions parameters (ZeRO-3) ranks would wait for each other, unless a micro-batch has one prompt.
    """

    pipelines = ('AceStepPipeline',)
    channel_dim = 1
    default_text_length = 256

    @property
    def seconds(self) -> float:
        """Length of a clip."""
        return self.sizing.seconds or 60.0

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Returns `(length, channels)`."""
        return self._length, self.configs[self.denoiser]['audio_acoustic_hidden_dim']

    @property
    def _length(self) -> int:
        return math.ceil(self.seconds * (self.audio_rate / self.factor))

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Returns `text` `(length, size)`, its `mask` of ones, and the `context` `(length of latents, size)` of each.

        No prompt is what the condition encoder has learnt for none.
        """
        return [self._encoded_prompt(pipeline, prompt) for prompt in prompts]

    def _encoded_prompt(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        device, encoder = pipeline.device, pipeline.condition_encoder
        text, text_mask, lyrics, lyrics_mask = pipeline.encode_prompt(
            [prompt], [''], device, audio_duration=self.seconds, max_text_length=self.text_length
        )
        timbre = encoder.silence_latent[:, : math.ceil(30 * pipeline.latents_per_second)].to(text.dtype)
        hidden, _ = encoder(
            text_hidden_states=text,
            text_attention_mask=text_mask,
            lyric_hidden_states=lyrics,
            lyric_attention_mask=lyrics_mask,
            refer_audio_acoustic_hidden_states_packed=timbre,
            refer_audio_order_mask=torch.arange(1, device=device),
        )
        if not prompt:
            hidden = encoder.null_condition_emb.to(hidden.dtype).expand_as(hidden)
        source, length = pipeline.prepare_src_latents(device, text.dtype, latent_length=self._length)
        mask = pipeline._build_chunk_mask('text2music', length, 1, device, text.dtype, source.shape[-1])
        context = torch.cat([source, mask], -1)
        return {
            'text': hidden[0].cpu(),
            'mask': torch.ones(hidden.shape[1], dtype=torch.bool),
            'context': context[0].cpu(),
        }

    def encode_media(self, pipeline: Any, fitted: Tensor) -> Tensor:
        """Returns the mode of the autoencoder's distribution, `(batch, length, channels)`."""
        return self.encoded(pipeline, fitted, self._length).transpose(1, 2).contiguous()

    @torch.no_grad()
    def decode_latents(self, pipeline: Any, latents: Tensor) -> list[Any]:
        """Returns clips, brought to a peak of -1 dB as the pipeline does."""
        vae = pipeline.vae
        waves = vae.decode(latents.to(vae.device, vae.dtype).transpose(1, 2)).sample.float()
        peak = waves.abs().amax(dim=(1, 2), keepdim=True)
        waves = waves / peak.clamp(min=1.0)
        peak = waves.abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-6)
        return self.as_clips(waves * (10 ** (-1 / 20) / peak))

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """Returns the velocity."""
        lengths = conditions['mask'].sum(1)
        text, context = conditions['text'].to(sample.dtype), conditions['context'].to(sample.dtype)
        if bool((lengths == lengths[0]).all()):
            groups = [slice(None)]
        else:
            groups = [slice(row, row + 1) for row in range(len(sample))]
        time = level * self.timesteps
        predicted = [
            denoiser(
                hidden_states=sample[group],
                timestep=time[group],
                timestep_r=time[group],
                encoder_hidden_states=text[group, : int(lengths[group][0])],
                context_latents=context[group],
                return_dict=False,
            )[0]
            for group in groups
        ]
        return torch.cat(predicted).float()

    def sigmas(self, steps: int) -> list[float] | None:
        """Returns noise levels evenly from 1 to 0, shifted as the pipeline shifts them itself."""
        shift = self.shift(())
        even = torch.linspace(1.0, 0.0, steps + 1)
        return (shift * even / (1 + (shift - 1) * even))[:-1].tolist()

    def shift(self, shape: Sequence[int]) -> float:
        """Returns the shift that the pipeline has by default, which its scheduler does not know."""
        from diffusers import AceStepPipeline

        return float(inspect.signature(AceStepPipeline.__call__).parameters['shift'].default)


SPEC = AceStepSpec
