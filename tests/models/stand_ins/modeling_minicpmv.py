"""Stand-in for MiniCPM-V: the forward pass takes what the published one takes, the towers are one layer each."""

import torch
from torch import nn
from transformers import Qwen2ForCausalLM, Qwen2PreTrainedModel

from .configuration_minicpm import MiniCPMVConfig


class Tower(nn.Module):
    """Patches of slices `(slices, 3, patch, patches * patch)`, a mask and the grid of each slice."""

    def __init__(self, width, patch, heads=2):
        super().__init__()
        self.embed_dim = width
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.places = nn.Embedding(64, width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, pixel_values, patch_attention_mask=None, tgt_sizes=None):
        states = self.patches(pixel_values).flatten(2).transpose(1, 2)
        states = states + self.places(torch.arange(states.shape[1], device=states.device))
        padding = None if patch_attention_mask is None else ~patch_attention_mask[:, 0]
        return states + self.attention(states, states, states, key_padding_mask=padding)[0]


class Resampler(nn.Module):
    def __init__(self, num_queries, embed_dim, kv_dim):
        super().__init__()
        self.query = nn.Parameter(torch.randn(num_queries, embed_dim))
        self.kv_proj = nn.Linear(kv_dim, embed_dim)
        self.attn = nn.MultiheadAttention(embed_dim, 2, batch_first=True)

    def forward(self, states, tgt_sizes):
        keys = self.kv_proj(states)
        hidden = torch.arange(keys.shape[1], device=keys.device) >= tgt_sizes.prod(-1)[:, None]
        return self.attn(self.query.expand(len(keys), -1, -1), keys, keys, key_padding_mask=hidden)[0]


class MiniCPMVPreTrainedModel(Qwen2PreTrainedModel):
    config_class = MiniCPMVConfig


class MiniCPMV(MiniCPMVPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.llm = Qwen2ForCausalLM(config)
        self.vpm = Tower(config.vision_config.hidden_size, config.patch_size)
        self.resampler = Resampler(config.query_num, config.hidden_size, self.vpm.embed_dim)
        self.post_init()

    def get_input_embeddings(self):
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self):
        return self.llm.lm_head

    def get_vllm_embedding(self, data):
        embeddings = self.llm.model.embed_tokens(data['input_ids'])
        rows = data['pixel_values']
        slices = [part.flatten(end_dim=1).permute(1, 0) for row in rows for part in row]
        if slices:
            grids = [grid for grid in data['tgt_sizes'] if isinstance(grid, torch.Tensor)]
            grids = torch.vstack(grids).type(torch.int32)
            longest = int(grids.prod(-1).max())
            pixels = torch.nn.utils.rnn.pad_sequence(slices, batch_first=True).permute(0, 2, 1)
            pixels = pixels.reshape(len(slices), 3, -1, pixels.shape[-1])
            mask = (torch.arange(longest) < grids.prod(-1)[:, None])[:, None]
            features = self.vpm(pixels, patch_attention_mask=mask, tgt_sizes=grids)
            features = list(self.resampler(features, grids).split([len(row) for row in rows]))
        elif self.training:
            size = self.config.patch_size
            features = self.vpm(torch.zeros(1, 3, size, size, dtype=embeddings.dtype))
            features = [self.resampler(features, torch.ones(1, 2, dtype=torch.int32))] * len(rows)
        else:
            features = [[] for _ in rows]
        for row, found in enumerate(features):
            bounds = data['image_bound'][row]
            if len(found) and len(bounds):
                places = torch.cat([torch.arange(begin, end) for begin, end in bounds.tolist()])
                flat = found.reshape(-1, found.shape[-1]).type(embeddings.dtype)
                embeddings[row].scatter_(0, places[:, None].expand(-1, flat.shape[-1]), flat)
            elif len(found) and self.training:
                embeddings[row] += found[0].mean() * 0
        return embeddings, features

    def forward(self, data, **kwargs):
        embeddings, _ = self.get_vllm_embedding(data)
        return self.llm(input_ids=None, position_ids=data['position_ids'].long(), inputs_embeds=embeddings, **kwargs)
