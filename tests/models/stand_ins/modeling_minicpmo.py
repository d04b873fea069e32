"""Stand-in for MiniCPM-o: MiniCPM-V's images, and audio clips through one layer."""

import torch
from torch import nn

from .configuration_minicpm import MiniCPMOConfig
from .modeling_minicpmv import MiniCPMV


class Ear(nn.Module):
    """Spectra `(sounds, mels, frames)` at half the rate; the mask is added to the scores."""

    def __init__(self, mels, width):
        super().__init__()
        self.conv1 = nn.Conv1d(mels, width, 3, stride=2, padding=1)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, features, attention_mask):
        states = self.conv1(features).transpose(1, 2)
        return states + self.attention(states, states, states, attn_mask=attention_mask)[0]


class MiniCPMO(MiniCPMV):
    config_class = MiniCPMOConfig

    def __init__(self, config):
        super().__init__(config)
        self.apm = Ear(config.audio_config.num_mel_bins, config.audio_config.d_model)
        self.audio_avg_pooler = nn.AvgPool1d(config.audio_pool_step, stride=config.audio_pool_step)
        self.audio_projection_layer = nn.Linear(config.audio_config.d_model, config.hidden_size)
        if config.init_tts:
            raise ImportError('speech needs packages that are not there')
        self.post_init()

    def get_audio_embedding(self, data, chunk_length=-1):
        features, lengths = data['audio_features'], data['audio_feature_lens']
        if not len(features):
            return []
        flat = torch.hstack(list(lengths))
        frames = (features.shape[-1] - 1) // 2 + 1
        # By the length before the convolution, as the published code has it: part of the padding is seen.
        hidden = torch.arange(frames) >= flat[:, None]
        mask = hidden[:, None].expand(-1, frames, -1).repeat_interleave(2, dim=0)
        states = self.audio_projection_layer(self.apm(features, mask))
        states = self.audio_avg_pooler(states.transpose(1, 2)).transpose(1, 2)
        step = self.config.audio_pool_step
        numbers = (((flat - 1) // 2 + 1) - step) // step + 1
        found = iter([states[index, :number] for index, number in enumerate(numbers.tolist())])
        return [[next(found) for _ in row] for row in lengths]

    def get_omni_embedding(self, data, input_embeddings, chunk_length=-1):
        found = self.get_audio_embedding(data, chunk_length)
        if not len(data.get('audio_features', [])):
            return input_embeddings + found[0].mean() * 0 if self.training else input_embeddings
        for row, sounds in enumerate(found):
            for features, (begin, end) in zip(sounds, data['audio_bounds'][row].tolist(), strict=True):
                input_embeddings[row, begin:end] = features.to(input_embeddings.dtype)
        return input_embeddings

    def forward(self, data, **kwargs):
        embeddings, _ = self.get_vllm_embedding(data)
        if self.config.init_audio:
            embeddings = self.get_omni_embedding(data, embeddings, self.config.audio_chunk_length)
        return self.llm(input_ids=None, position_ids=data['position_ids'].long(), inputs_embeds=embeddings, **kwargs)
