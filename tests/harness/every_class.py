"""Every causal and image-text-to-text class of transformers as a small model with random weights and short windows.

`python -m tests.harness.every_class` writes docs/layouts.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from align_anything.core.errors import ModelError
from align_anything.core.types import Example, Piece
from align_anything.models.any_model import AnyModel
from align_anything.models.architecture import plain_attention, transformers_class
from align_anything.models.families import family_module
from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import set_text_attention
from align_anything.models.structure import logit_transform
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.plan import fit_attention
from align_anything.policies.token.policy import TokenPolicy

WINDOW = 8
VOCABULARY = 64
_SIZES = {
    32: 'hidden_size d_model n_embd embed_dim word_embed_proj_dim embedding_size hidden_dim embedding_dim emb_dim '
    'input_embedding_size output_embedding_size encoder_hidden_size backbone_hidden_size attention_hidden_size '
    'lru_width ple_embed_dim',
    48: 'intermediate_size ffn_dim n_inner d_ff ffn_hidden_size intermediate_dim intermediate_size_mlp dff '
    'dense_intermediate_size shared_intermediate_size encoder_ffn_dim decoder_ffn_dim',
    24: 'shared_expert_intermediate_size moe_intermediate_size expert_ffn_hidden_size share_expert_dim '
    'moe_shared_expert_intermediate_size centroid_intermediate_top_k',
    2: 'num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers '
    'num_encoder_layers num_experts_per_tok moe_topk moe_k num_experts_per_token num_key_value_heads num_kv_heads '
    'n_kv_heads num_query_groups swa_num_key_value_heads depth index_n_heads num_layers_per_stack layers '
    'mamba_n_groups',
    4: 'num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads '
    'swa_num_attention_heads num_sliding_attention_heads num_experts num_local_experts n_routed_experts '
    'moe_num_experts num_centroids mamba_n_heads linear_num_key_heads linear_num_value_heads mamba_num_heads',
    8: 'head_dim attention_head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim kv_channels global_head_dim '
    'swa_head_dim query_pre_attn_scalar hidden_size_per_layer_input index_head_dim linear_key_head_dim '
    'linear_value_head_dim attention_head_size mamba_d_head mamba_head_dim ssm_state_size mamba_d_state rotary_dim '
    'd_rel hc_lowrank o_lora_rank',
    16: 'q_lora_rank kv_lora_rank qk_head_dim rel_extent',
    1: 'n_shared_experts num_shared_experts moe_num_shared_experts n_group topk_group n_groups max_window_layers '
    'moe_layer_start_index',
    0: 'num_kv_shared_layers first_k_dense_replace num_nextn_predict_layers',
    VOCABULARY: 'vocab_size vocab_size_per_layer_input',
    256: 'max_position_embeddings n_positions max_seq_len context_length',
    WINDOW: 'sliding_window attention_chunk_size window_size attention_window_size local_attention '
    'sliding_window_size keep_window_size index_topk',
}
SIZES = {name: size for size, names in _SIZES.items() for name in names.split()}
_ROPE = {'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e4}}
_MROPE = {'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e4, 'mrope_section': [2, 1, 1]}}
_HALF_MROPE = {
    'rope_parameters': {**_MROPE['rope_parameters'], 'partial_rotary_factor': 0.5, 'mrope_section': [1, 1, 0]}
}
EXTRA: dict[str, dict[str, Any]] = {
    **dict.fromkeys(('ministral', 'hunyuan_v1_dense', 'hunyuan_v1_moe', 'hunyuan_vl_text'), _ROPE),
    **dict.fromkeys(('qwen2_vl_text', 'qwen2_5_vl_text', 'glm4v_text'), _MROPE),
    **dict.fromkeys(('glm4v_moe_text', 'glm_ocr_text', 'glmga_text'), _HALF_MROPE),
    'ernie4_5_vl_moe_text': {'moe_intermediate_size': [24, 24]},
    'gemma3n_audio': {'hidden_size': 32},
    'lfm2_moe': {'layer_types': ['full_attention', 'full_attention']},
    'gpt_neo': {'attention_types': [[['global', 'local'], 1]]},
}
PAGE = Path(__file__).parents[2] / 'docs' / 'layouts.md'
_OPENING = """# Layouts that each class of transformers bears

<!-- Written by `python -m tests.harness.every_class`. Do not edit by hand. -->

Before the first step a run compares its layout with one sequence at a time, on its own model. The probe is longer than
every attention window that a sequence of the run can be longer than, and what rounding may do is measured on the model:
lone sequences are scored by two kernels, and beside copies of themselves. A layout that is wrong gives way to `padded`,
with a warning; a class that is wrong there too is refused.

What a kernel lacks is computed another way:

- Windows: attention by segment heeds those that a class states in its mask alone (`qwen2_moe`, `phimoe`). Kernels of
  flash-attention do not; such a run is refused, with the advice to set `attn_implementation: sdpa`.
- Soft caps of attention scores (`gemma2`, `vaultgemma`, PaliGemma 2) and attention sinks (`gpt_oss`): sdpa has neither.
  Padded rows are computed by `eager`, rows without padding by segment with the scores written out; those with soft caps
  on CUDA in half precision by FlexAttention of torch, with heads of 16 to 256 numbers.
- Rotary tables that transformers chooses by the longest sequence of a batch (`longrope`, `dynamic`): a run has one
  table, that of `model_max_length`, so that no neighbour changes a score.

Below is what the check said of each class with small random weights, windows of 8 tokens and longer sequences of text;
`python -m pytest -m extended tests/policies/test_every_class.py` says it again. All scores that it let pass were those
of the plain class.

| class | layouts |
|---|---|
"""
OWN_TINY = 'tested with a tiny checkpoint of its own (tests/invariants)'
NO_TEXT = 'reads no text without media or other inputs'
NO_SMALL = 'no small model of it is made here'
NOT_SCANNED = {
    name: reason
    for reason, names in {
        OWN_TINY: 'gemma3n paligemma qwen2_5_omni_thinker qwen3_omni_moe_thinker',
        NO_TEXT: 'blip blip-2 idefics instructblip instructblipvideo kosmos-2 musicgen musicgen_melody pi0 pix2struct '
        'pp_formulanet qwen2_5_omni qwen3_omni_moe t5gemma2 udop vision-encoder-decoder voxtral_realtime evolla',
        NO_SMALL: 'blt chameleon codegen cohere_compass cohere_compass_text dbrx deepseek_ocr2 diffusion_gemma emu3 '
        'ernie4_5_vl_moe fast_vlm florence2 fun_asr_nano gemma4_assistant gemma4_unified_assistant glm5_next gptj '
        'granite4_vision helium hunyuan_v1_dense hunyuan_v1_moe hunyuan_vl janus kimi_linear kyutai_speech_to_text '
        'longcat_flash mamba2 ministral muse_glimmer nemotron_h_omni perception_lm reformer vibevoice_asr xmod '
        'zamba zamba2 zaya',
    }.items()
    for name in names.split()
}
"""Classes that are left out of the scan, and why."""
SPECIAL = ('pad_token_id', 'bos_token_id', 'eos_token_id', 'decoder_start_token_id', 'sep_token_id')


def model_types() -> list[str]:
    """Returns the `model_type` of every class that `transformers_class` finds."""
    mappings = (
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )
    return sorted({name for mapping in mappings for name in mapping})


def small_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """Returns the configuration of `model_type` made small, every window `WINDOW` tokens long.

    `changes` are settings of its language model.
    """
    return CONFIG_MAPPING[model_type](**_settings(CONFIG_MAPPING[model_type], True, changes))


def _settings(kind: type[PreTrainedConfig], is_language: bool, changes: dict[str, Any]) -> dict[str, Any]:
    default = kind()
    known = default.to_dict()
    found = {name: size for name, size in SIZES.items() if name in known}
    if 'use_sliding_window' in known:
        found['use_sliding_window'] = True
    if 'kv_lora_rank' in known:
        # Latent attention has as many keys as queries.
        found['num_key_value_heads'] = found['num_attention_heads']
    found |= {name: 1 for name in SPECIAL if isinstance(known.get(name), int)}
    found |= EXTRA.get(kind.model_type, {})
    text = default.get_text_config(decoder=True)
    for name in kind.sub_configs:
        sub = vars(default).get(name)
        if isinstance(sub, PreTrainedConfig):
            inner = _settings(type(sub), is_language and sub is text, changes if sub is text else {})
            found[name] = {'model_type': sub.model_type, **inner}
    if is_language and text is default:
        found |= changes
    return found


def random_model(config: PreTrainedConfig, attention: str = 'eager', deviation: float = 1.5) -> PreTrainedModel:
    """Returns the model of `config` whose matrices have entries of `deviation / sqrt(fan-in)`, the same each time.

    That is far from the usual start, under which attention is nearly uniform and hides what it is given to see.
    """
    torch.manual_seed(0)
    names = attention if config.get_text_config(decoder=True) is config else {'': 'eager', **_text(config, attention)}
    model = AnyModel.from_config(config, attn_implementation=names).eval()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() >= 2:
                parameter.normal_(0.0, 1.0 if 'embed' in name else deviation / parameter.shape[-1] ** 0.5)
    return model


def _text(config: PreTrainedConfig, attention: str) -> dict[str, str]:
    text = config.get_text_config(decoder=True)
    return {key: attention for key in config.sub_configs if vars(config).get(key) is text}


@dataclass
class Words:
    """A tokenizer without text: what the check reads of one."""

    all_special_ids: tuple[int, ...] = (0, 1)
    added_tokens_decoder: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return VOCABULARY


def spec_of(config: PreTrainedConfig, max_length: int = 64) -> FamilySpec:
    """Returns the rules of the family for text alone, without a tokenizer that splits any."""
    module = family_module(config.model_type)
    kind = FamilySpec if module is None else module.SPEC
    spec = kind.__new__(kind)
    spec.config, spec.model_type, spec.tokenizer, spec.processor = config, config.model_type, Words(), None
    spec.pad_token_id, spec.max_length = 1, max_length
    spec.media_token_ids, spec.reads, spec.token_tensor_names = frozenset(), frozenset(), ()
    spec.softcap, spec.logit_scale = logit_transform(config.get_text_config())
    return spec


def examples() -> list[Example]:
    """One response, and two to one prompt: each sequence is longer than `WINDOW`, and they are of unequal length."""
    generator = torch.Generator().manual_seed(0)

    def piece(length: int, weight: float) -> Piece:
        return Piece(torch.randint(5, 60, (length,), generator=generator), torch.full((length,), weight))

    return [
        Example(piece(14, 0.0), [piece(9, 1.0)]),
        Example(piece(20, 0.0), [piece(5, 1.0), piece(17, 1.0)]),
    ]


@torch.no_grad()
def plain_scores(model: nn.Module) -> Tensor:
    """Scores of `examples` by the plain class, one sequence at a time, with transformers' own eager attention."""
    found = []
    for example in examples():
        for response in example.responses:
            ids = torch.cat([example.prompt.ids, response.ids])[None]
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
            scores = logits.float().log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
            found.append(scores[len(example.prompt) - 1 :])
    return torch.cat(found)


@torch.no_grad()
def checked_scores(model: PreTrainedModel, spec: FamilySpec, layout: str) -> tuple[str, Tensor]:
    """Has a run's check choose the layout, asked for `layout`; returns the choice and the scores of `examples` in it.

    Raises ModelError for a class that the check refuses.
    """
    policy = TokenPolicy(model, TokenCollator(spec, layout), dtype=torch.float32)
    fit_attention(model, policy.collate)
    policy.check(policy, torch.device('cpu'))
    return policy.collate.layout, policy(policy.collate(examples())).values


def load_as_run(model_type: str, **changes: Any) -> tuple[PreTrainedModel, FamilySpec, Tensor]:
    """Returns a class as a run loads it, its rules, and the plain scores of `examples`."""
    config = small_config(model_type, **changes)
    plain = plain_scores(random_model(config))
    config = small_config(model_type, **changes)
    model = random_model(config, plain_attention(transformers_class(config), config))
    return model, spec_of(config), plain


def bears(model_type: str) -> str:
    """Returns the layouts that a run of this class keeps, or `refused`; the scores in each are checked.

    Raises AssertionError when scores that the check lets pass are not those of the plain class.
    """
    model, spec, plain = load_as_run(model_type)
    kept: list[str] = []
    for asked in spec.layouts:
        try:
            set_text_attention(model, plain_attention(type(model), model.config))
            layout, scores = checked_scores(model, spec, asked)
        except ModelError:
            return 'refused'
        torch.testing.assert_close(
            scores, plain, atol=2e-3, rtol=0, msg=partial('{} {}: {}'.format, model_type, layout)
        )
        kept += [layout] if layout == asked else []
    return ', '.join(kept)


def page() -> str:
    """Returns docs/layouts.md, all classes scanned anew."""
    rows = []
    for model_type in model_types():
        found = f'not scanned: {NOT_SCANNED[model_type]}' if model_type in NOT_SCANNED else bears(model_type)
        rows.append(f'| `{model_type}` | {found} |')
    return _OPENING + '\n'.join(rows) + '\n'


def listed() -> dict[str, str]:
    """Returns what docs/layouts.md says of each class."""
    rows = (line.strip('|').split('|') for line in PAGE.read_text(encoding='utf-8').splitlines() if line[:3] == '| `')
    return {name.strip(' `'): found.strip() for name, found in rows}


if __name__ == '__main__':
    PAGE.write_text(page(), encoding='utf-8')
