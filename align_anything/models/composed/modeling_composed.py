"""Encoders of media, projectors and a language model as one ordinary model of transformers."""

import math
from itertools import pairwise

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.clap.modeling_clap import ClapAudioModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from .configuration_composed import (
    AUDIO_ENCODERS,
    KINDS,
    WAVE_ENCODERS,
    ComposedConfig,
    copy_code,
    encoder_rule,
    feature_count,
    leading_tokens,
)

TOWERS = {'image': 'vision_tower', 'video': 'video_tower', 'audio': 'audio_tower'}
MEDIA_ARGUMENTS = (
    'pixel_values',
    'pixel_values_2',
    'pixel_values_videos',
    'pixel_values_videos_2',
    'video_frame_mask',
    'input_features',
    'feature_attention_mask',
    'input_features_2',
    'feature_attention_mask_2',
)


def make_encoder(encoder):
    """Returns an encoder without what its features do not need: a pooling head, or a norm behind the last layer."""
    config = AutoConfig.for_model(**encoder['config'])
    if config.model_type == 'whisper':
        module = WhisperEncoder._from_config(config)
    elif config.model_type == 'clap_audio_model':
        module = ClapAudioModel._from_config(config)
    else:
        module = AutoModel.from_config(config, **({'add_pooling_layer': False} if config.model_type == 'vit' else {}))
    for name, parameter in module.named_parameters():
        # Nothing is masked here.
        if name.endswith('mask_token'):
            parameter.requires_grad_(False)
    if config.model_type in WAVE_ENCODERS and config.feat_extract_norm == 'group':
        module.feature_extractor.conv_layers[0] = MaskedFirstLayer(module.feature_extractor.conv_layers[0])
    for name in unused_norms(config, encoder['final_norm']):
        parent, _, last = name.rpartition('.')
        setattr(module.get_submodule(parent), last, nn.Identity())
    return module


def unused_norms(config, final_norm):
    """Returns the modules of an encoder that its features do not go through."""
    if config.model_type == 'clip_vision_model':
        # It is for the pooled output alone.
        return ['post_layernorm']
    if final_norm or config.model_type == 'clap_audio_model':
        return []
    if config.model_type in WAVE_ENCODERS:
        return ['encoder.layer_norm'] if config.do_stable_layer_norm else []
    if config.model_type == 'videomae' and config.use_mean_pooling:
        return []
    return [{'siglip_vision_model': 'post_layernorm', 'whisper': 'layer_norm'}.get(config.model_type, 'layernorm')]


class MaskedGroupNorm(nn.GroupNorm):
    """Normalises each channel over the samples of a clip, `lengths` of them, and not over the padding behind."""

    def forward(self, hidden, lengths):
        wide, lengths = hidden.float(), lengths[:, None, None].float()
        seen = torch.arange(hidden.shape[-1], device=hidden.device) < lengths
        mean = (wide * seen).sum(-1, keepdim=True) / lengths
        variance = ((wide - mean).square() * seen).sum(-1, keepdim=True) / lengths
        normed = (wide - mean) * torch.rsqrt(variance + self.eps)
        return (normed * self.weight[:, None] + self.bias[:, None]).to(hidden.dtype)


class MaskedFirstLayer(nn.Module):
    """The first convolution of an encoder of waves whose norm would run over padding. Takes samples and their mask."""

    def __init__(self, layer):
        super().__init__()
        self.conv, self.activation, old = layer.conv, layer.activation, layer.layer_norm
        self.layer_norm = MaskedGroupNorm(old.num_groups, old.num_channels, eps=old.eps)
        self.layer_norm.weight, self.layer_norm.bias = old.weight, old.bias

    def forward(self, both):
        samples, mask = both[:, 0, :1], both[:, 0, 1]
        lengths = (mask.sum(-1, dtype=torch.float32).long() - self.conv.kernel_size[0]) // self.conv.stride[0] + 1
        return self.activation(self.layer_norm(self.conv(samples), lengths))


class Tower(nn.Module):
    """The encoders of one kind; their features stand side by side.

    `forward` returns `features` `(media, longest, size)` and `counts` `(media,)`, how many of them belong to each.
    """

    def __init__(self, encoders):
        super().__init__()
        self.encoders = nn.ModuleList(make_encoder(encoder) for encoder in encoders)
        self.rules = [encoder_rule(encoder, 'full') for encoder in encoders]

    def forward(self, values, mask=None, values_2=None, mask_2=None, select='full'):
        found = [selected(*self._encoded(0, values, mask), self.encoders[0].config, select)]
        if values_2 is not None:
            found.append(selected(*self._encoded(1, values_2, mask_2), self.encoders[1].config, select))
        counts = torch.stack([count for _, count in found]).min(0).values
        length = min(features.shape[1] for features, _ in found)
        return {'features': torch.cat([features[:, :length] for features, _ in found], -1), 'counts': counts}

    def _encoded(self, number, values, mask):
        encoder = self.encoders[number]
        kind, config = encoder.config.model_type, encoder.config
        if kind in WAVE_ENCODERS:
            both = config.feat_extract_norm == 'group'
            given = torch.stack([values, mask.to(values.dtype)], dim=1) if both else values
            hidden = encoder(given, attention_mask=mask).last_hidden_state
        elif kind == 'clap_audio_model':
            longer = torch.zeros(len(values), 1, dtype=torch.bool, device=values.device)
            hidden = encoder(values, is_longer=longer).last_hidden_state.flatten(2).transpose(1, 2)
        else:
            hidden = encoder(values).last_hidden_state
        if self.rules[number]['windows']:
            return hidden, feature_count(self.rules[number], mask.sum(-1))
        return hidden, torch.full((len(hidden),), hidden.shape[1], device=hidden.device)

    def train(self, mode=True):
        """Frozen towers keep to evaluation, and so do norms over the batch: a medium's features are its own."""
        super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.eval()
        return self


def selected(features, counts, config, select):
    """Returns what `select` takes of an encoder's features: `full`, `patch`, `cls`, or the mean, `pooled`."""
    before = 0 if config.model_type in AUDIO_ENCODERS else leading_tokens(config)
    if select == 'full':
        return features, counts
    if select == 'cls':
        return features[:, :1], torch.ones_like(counts)
    features, counts = features[:, before:], counts - before
    if select == 'patch':
        return features, counts
    seen = torch.arange(features.shape[1], device=features.device) < counts[:, None]
    mean = (features.float() * seen[..., None]).sum(1, keepdim=True) / counts[:, None, None]
    return mean.to(features.dtype), torch.ones_like(counts)


# Projectors


class PerToken(nn.Module):
    """`linear` and `mlp`: a token for each `stack` neighbouring features."""

    def __init__(self, width, size, type, num_layers=2, hidden_size=None, dropout=0.0, stack=1):
        super().__init__()
        self.stack = stack
        inner = [hidden_size or size] * (0 if type == 'linear' else num_layers - 1)
        widths = [width * stack, *inner, size]
        layers = [nn.Linear(widths[0], widths[1])]
        for before, after in pairwise(widths[1:]):
            layers += [nn.GELU(), *([nn.Dropout(dropout)] if dropout else []), nn.Linear(before, after)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features, seen):
        if self.stack > 1:
            # What lies behind the end would mix into the last stacked token.
            features = features * seen[..., None]
            number = -(-features.shape[1] // self.stack)
            missing = number * self.stack - features.shape[1]
            features = nn.functional.pad(features, (0, 0, 0, missing)).unflatten(1, (number, self.stack)).flatten(2)
            seen = nn.functional.pad(seen, (0, missing)).unflatten(1, (number, self.stack)).any(-1)
        return self.layers(features)[seen]


class Expand(nn.Module):
    """The mean of the features becomes `num_tokens` tokens, as OMEGA's perception tokens do."""

    def __init__(self, width, size, type, num_tokens):
        super().__init__()
        self.num_tokens = num_tokens
        wide = num_tokens * size
        self.layers = nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.LayerNorm(wide), nn.Linear(wide, wide))

    def forward(self, features, seen):
        mean = (features.float() * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)
        return self.layers(mean.to(features.dtype)).unflatten(-1, (self.num_tokens, -1)).flatten(0, 1)


class Resampler(nn.Module):
    """`transformer`: `num_tokens` learned queries read the features, each with its place (Alayrac et al., 2022)."""

    def __init__(self, width, size, type, num_tokens, num_layers=2, num_heads=8, hidden_size=None, dropout=0.0):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_tokens, size) * 0.02)
        self.inward = nn.Linear(width, size)
        self.layers = nn.ModuleList(
            ResamplerLayer(size, num_heads, hidden_size or 4 * size, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(size)

    def forward(self, features, seen):
        memory = self.inward(features)
        memory = memory + places(memory.shape[1], memory.shape[2], memory.device).to(memory.dtype)
        queries = self.queries.expand(len(features), -1, -1)
        mask = torch.cat([seen, seen.new_ones(len(seen), queries.shape[1])], dim=1)[:, None, None]
        for layer in self.layers:
            queries = layer(queries, memory, mask)
        return self.norm(queries).flatten(0, 1)


class ResamplerLayer(nn.Module):
    """Attention of the queries to the features and to each other, then a feed-forward network."""

    def __init__(self, size, num_heads, hidden_size, dropout):
        super().__init__()
        self.num_heads, self.dropout = num_heads, nn.Dropout(dropout)
        self.norm, self.norm_memory, self.norm_inner = nn.LayerNorm(size), nn.LayerNorm(size), nn.LayerNorm(size)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(size, size) for _ in range(4))
        self.inner = nn.Sequential(nn.Linear(size, hidden_size), nn.GELU(), nn.Linear(hidden_size, size))

    def forward(self, queries, memory, mask):
        normed = self.norm(queries)
        context = torch.cat([self.norm_memory(memory), normed], dim=1)
        heads = [
            projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projected in (self.q_proj(normed), self.k_proj(context), self.v_proj(context))
        ]
        read = nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)
        queries = queries + self.dropout(self.o_proj(read))
        return queries + self.dropout(self.inner(self.norm_inner(queries)))


def places(length, size, device):
    """Returns the sine and cosine of each place, `(length, size)` (Vaswani et al., 2017)."""
    steps = torch.exp(torch.arange(0, size, 2, device=device).float() * (-math.log(10000.0) / size))
    angles = torch.arange(length, device=device).float()[:, None] * steps
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :size]


PROJECTORS = {'linear': PerToken, 'mlp': PerToken, 'transformer': Resampler, 'expand': Expand}


def make_projector(config, kind):
    """Returns the projector of a kind, with first weights."""
    part, width = config.media[kind], 0
    for encoder in config.encoders(kind):
        inner = AutoConfig.for_model(**encoder['config'])
        width += inner.d_model if inner.model_type == 'whisper' else inner.hidden_size
    settings = part['projector']
    return PROJECTORS[settings['type']](
        part.get('precomputed_dim') or width, config.text_config.hidden_size, **settings
    )


# Models


class ComposedPreTrainedModel(PreTrainedModel):
    """What both models share."""

    config_class = ComposedConfig
    base_model_prefix = 'model'
    supports_gradient_checkpointing = True
    input_modalities = ('image', 'video', 'audio', 'text')
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _can_compile_fullgraph = False

    def initialize_weights(self):
        """Makes first weights, and what modules of the language model compute for others: Falcon-H1's scales.

        Of classes from elsewhere transformers passes over modules that hold nothing themselves.
        """
        super().initialize_weights()
        language_model = self.base_model.language_model
        for module in language_model.modules():
            if not [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                language_model._init_weights(module)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def set_attn_implementation(self, attn_implementation, *args, **kwargs):
        """Sets the attention of the language model; towers keep theirs, which need not know every other."""
        if isinstance(attn_implementation, dict):
            attn_implementation = attn_implementation.get('text_config', attn_implementation.get(''))
        if attn_implementation is not None:
            language_model = self.base_model.language_model
            language_model.set_attn_implementation(attn_implementation, *args, **kwargs)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Saves the model, and this file beside it where the checkpoint brings its own code."""
        super().save_pretrained(save_directory, *args, **kwargs)
        # Of classes out of a checkpoint transformers copies the code itself.
        if vars(self.config).get('auto_map') and self._auto_class is None:
            copy_code(save_directory)


class ComposedModel(ComposedPreTrainedModel):
    """Towers, projectors and the body of a language model."""

    def __init__(self, config):
        super().__init__(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.multi_modal_projector = nn.ModuleDict()
        for kind in (kind for kind in KINDS if kind in config.media):
            if config.media[kind]['encoders']:
                self.add_module(TOWERS[kind], Tower(config.media[kind]['encoders']))
            self.multi_modal_projector[kind] = make_projector(config, kind)
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def media_tokens(self, kind, values, mask=None, values_2=None, mask_2=None):
        """Returns what stands at the tokens of all media of a kind, `(tokens, size)`, in their order."""
        part = self.config.media[kind]
        if part.get('precomputed_dim'):
            return self.multi_modal_projector[kind](values[:, None], values.new_ones(len(values), 1, dtype=torch.bool))
        frames = mask.bool() if part.get('by_frame') else None
        if frames is not None:
            # Frames that only fill a shorter video up are not looked at.
            values, values_2 = values[frames], None if values_2 is None else values_2[frames]
            mask = mask_2 = None
        tower = self.vision_tower if part.get('by_frame') == 'shared' else self.get_submodule(TOWERS[kind])
        found = tower(values, mask, values_2, mask_2, select=part['select'])
        features, counts = found['features'], found['counts']
        if frames is not None:
            # Back to a row for each video, its frames one behind the other.
            each = features.shape[1]
            rows = features.new_zeros(*frames.shape, *features.shape[1:])
            rows[frames] = features
            features, counts = rows.flatten(1, 2), frames.sum(-1) * each
        seen = torch.arange(features.shape[1], device=features.device) < counts[:, None]
        return self.multi_modal_projector[kind](features, seen)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        pixel_values=None,
        pixel_values_2=None,
        pixel_values_videos=None,
        pixel_values_videos_2=None,
        video_frame_mask=None,
        input_features=None,
        feature_attention_mask=None,
        input_features_2=None,
        feature_attention_mask_2=None,
        **kwargs,
    ):
        """Returns the output of the language model; media stand where `input_ids` has their placeholders."""
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
            given = {
                'image': (pixel_values, None, pixel_values_2, None),
                'video': (pixel_values_videos, video_frame_mask, pixel_values_videos_2, None),
                'audio': (input_features, feature_attention_mask, input_features_2, feature_attention_mask_2),
            }
            for kind in self.config.media:
                if given[kind][0] is not None:
                    found = self.media_tokens(kind, *given[kind])
                    at = input_ids == getattr(self.config, f'{kind}_token_id')
                    if int(at.sum()) != len(found):
                        raise ValueError(f'the input has {int(at.sum())} {kind} tokens for {len(found)} features')
                    inputs_embeds = inputs_embeds.masked_scatter(at[..., None], found.to(inputs_embeds.dtype))
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )


class ComposedForConditionalGeneration(ComposedPreTrainedModel, GenerationMixin):
    """A composed model with the head of its language model."""

    def __init__(self, config):
        super().__init__(config)
        self.model = ComposedModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=bool(config.head_bias))
        embedding = self.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is embedding)
        self._tied_weights_keys = {'lm_head.weight': f'{name}.weight'}
        known = text.to_dict()
        caps = (known.get(name) for name in ('final_logit_softcapping', 'output_logit_soft_cap'))
        self.softcap = next((float(cap) for cap in caps if cap), None)
        self.logit_scale = float(known.get('logit_scale') or 1.0) * float(known.get('lm_head_multiplier') or 1.0)
        self.logit_scale /= float(known.get('logits_scaling') or 1.0)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        pixel_values=None,
        pixel_values_2=None,
        pixel_values_videos=None,
        pixel_values_videos_2=None,
        video_frame_mask=None,
        input_features=None,
        feature_attention_mask=None,
        input_features_2=None,
        feature_attention_mask_2=None,
        **kwargs,
    ):
        """Returns loss and logits. Arguments are named one by one, or `generate()` would refuse them."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            pixel_values=pixel_values,
            pixel_values_2=pixel_values_2,
            pixel_values_videos=pixel_values_videos,
            pixel_values_videos_2=pixel_values_videos_2,
            video_frame_mask=video_frame_mask,
            input_features=input_features,
            feature_attention_mask=feature_attention_mask,
            input_features_2=input_features_2,
            feature_attention_mask_2=feature_attention_mask_2,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept]) * self.logit_scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration=False, **kwargs):
        """Returns the arguments of a step; media go in with the prompt only."""
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get('use_cache', True):
            inputs = {name: value for name, value in inputs.items() if name not in MEDIA_ARGUMENTS}
        return inputs
