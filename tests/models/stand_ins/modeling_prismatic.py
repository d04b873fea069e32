"""Stand-in for OpenVLA: patches of two towers behind the first token, one row where it generates, its own bins."""

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_prismatic import OpenVLAConfig

WIDTH = 16


class PrismaticVisionBackbone(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.featurizer = nn.Conv2d(3, WIDTH, 14, 14)
        self.fused_featurizer = nn.Conv2d(3, WIDTH, 14, 14)
        self.embed_dim = 2 * WIDTH

    def forward(self, pixel_values):
        one, other = torch.split(pixel_values, [3, 3], dim=1)
        both = torch.cat([self.featurizer(one), self.fused_featurizer(other)], dim=1)
        return both.flatten(2).transpose(1, 2)


class PrismaticProjector(nn.Module):
    def __init__(self, vision_dim, llm_dim):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(vision_dim, llm_dim), nn.Linear(llm_dim, llm_dim)

    def forward(self, patches):
        return self.fc2(nn.functional.gelu(self.fc1(patches)))


class OpenVLAForActionPrediction(PreTrainedModel):
    config_class = OpenVLAConfig
    base_model_prefix = 'model'
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.vision_backbone = PrismaticVisionBackbone(config)
        self.projector = PrismaticProjector(self.vision_backbone.embed_dim, config.text_config.hidden_size)
        self.language_model = AutoModelForCausalLM.from_config(
            config.text_config, attn_implementation=config._attn_implementation
        )
        self.norm_stats = config.norm_stats
        self.bins = np.linspace(-1, 1, config.n_action_bins)
        self.bin_centers = (self.bins[:-1] + self.bins[1:]) / 2.0
        self.vocab_size = config.text_config.vocab_size - config.pad_to_multiple_of
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self):
        return self.language_model.get_output_embeddings()

    def forward(
        self, input_ids=None, attention_mask=None, pixel_values=None, past_key_values=None, use_cache=None, labels=None
    ):
        if pixel_values is None:
            return self.language_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)
        if len(input_ids) != len(pixel_values) or past_key_values is not None:
            raise ValueError('one picture for each row, and no cache')
        patches, words = self.projector(self.vision_backbone(pixel_values)), self.get_input_embeddings()(input_ids)
        embeds = torch.cat([words[:, :1], patches, words[:, 1:]], dim=1)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long) if attention_mask is None else None
        if mask is None:
            seen = attention_mask.new_ones(patches.shape[:2])
            mask = torch.cat([attention_mask[:, :1], seen, attention_mask[:, 1:]], dim=1)
        found = self.language_model(inputs_embeds=embeds, attention_mask=mask, use_cache=use_cache)
        return CausalLMOutputWithPast(logits=found.logits, past_key_values=found.past_key_values)

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        if len(input_ids) > 1:
            raise ValueError('Generation with batch size > 1 is not currently supported!')
        raise NotImplementedError('that of an older transformers')

    def unnormalized(self, ids, unnorm_key):
        """What `predict_action` makes of the ids that it generated."""
        stats = self.norm_stats[unnorm_key]['action']
        found = np.clip(self.vocab_size - np.asarray(ids) - 1, 0, len(self.bin_centers) - 1)
        values, low, high = self.bin_centers[found], np.array(stats['q01']), np.array(stats['q99'])
        return np.where(stats['mask'], 0.5 * (values + 1) * (high - low) + low, values)
