"""Stand-in for Baichuan-M1: keys and values mixed with their neighbours, logits by unit rows."""

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


class BaichuanM1Config(PretrainedConfig):
    model_type = 'baichuan_m1'

    def __init__(self, vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        super().__init__(**kwargs)


class BaichuanDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.conv_k = nn.Parameter(torch.rand(2, config.hidden_size))

    def forward(self, states, mask):
        query, key, value = self.W_pack(states).chunk(3, dim=-1)
        key = self.conv_k[0] * nn.functional.pad(key, (0, 0, 1, -1)) + self.conv_k[1] * key
        rows, length, width = states.shape
        query, key, value = (part.view(rows, length, self.heads, -1).transpose(1, 2) for part in (query, key, value))
        found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return states + self.o_proj(found.transpose(1, 2).reshape(rows, length, width))


class BaichuanPreTrainedModel(PreTrainedModel):
    config_class = BaichuanM1Config
    base_model_prefix = 'model'
    supports_gradient_checkpointing = True
    _supports_sdpa = True


class BaichuanModel(BaichuanPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([BaichuanDecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.RMSNorm(config.hidden_size)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, seqlens=None, use_cache=None):
        length = input_ids.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None].bool()
        states = self.embed_tokens(input_ids)
        for layer in self.layers:
            states = layer(states, mask)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(states))


class NormHead(nn.Module):
    def __init__(self, hidden_size, vocab_size):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocab_size, hidden_size))

    def forward(self, states):
        return nn.functional.linear(states, nn.functional.normalize(self.weight))


class BaichuanM1ForCausalLM(BaichuanPreTrainedModel, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.model = BaichuanModel(config)
        self.lm_head = NormHead(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, seqlens=None, use_cache=None, return_dict=None
    ):
        found = self.model(input_ids, attention_mask, position_ids, seqlens, use_cache)
        return CausalLMOutputWithPast(logits=self.lm_head(found.last_hidden_state))
