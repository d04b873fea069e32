"""How a token policy lays out the batches of a run, decided before a model is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import world_size
from align_anything.core.errors import SettingsError
from align_anything.models.architecture import skeleton
from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import set_text_attention
from align_anything.models.rope import fix_rope_tables
from align_anything.models.trainable import freeze_components
from align_anything.models.work import WorkOf, work_of_model
from align_anything.policies.token.attention import SEGMENT_ATTENTION, register_segment_attention
from align_anything.policies.token.collator import TokenCollator, work_in_tokens
from align_anything.policies.token.selfcheck import windows_of
from align_anything.policies.token.varlen import HALF

FLASH = {
    'flash_attention_2': ('flash_attn', "flash-attn (pip install 'align-anything[flash-attn]')"),
    'flash_attention_3': ('flash_attn_interface', 'flash-attn-3'),
}
"""Modules of flash-attention, and the packages that bring them."""


def plan_batches(
    cfgs: RunCfgs, spec: FamilySpec, kinds: Sequence[str], *, shares_prompts: bool, every_parameter: bool
) -> TokenCollator:
    """Returns the collator of the layout to try.

    Args:
        kinds: kinds of media that the Examples of the run may hold.
        shares_prompts: whether several responses share a prompt, or several sequences of one response.
        every_parameter: whether each micro-batch must reach each parameter, so that it needs media of every kind.

    Raises SettingsError for a layout that the family or its attention does not bear.
    """
    if cfgs.data_cfgs.audio_in_video and 'video' in kinds and 'audio' not in kinds:
        kinds = ('audio', *kinds)
    ranks = cfgs.train_cfgs.sequence_parallel_size
    layout = choose_layout(cfgs, spec, shares_prompts=shares_prompts)
    if ranks > 1:
        _require_shareable(cfgs, spec, layout, ranks)
    return TokenCollator(
        spec,
        layout,
        tuple(kinds),
        segmented=cfgs.model_cfgs.attn_implementation == 'sdpa',
        dummy_kinds=tuple(kinds) if every_parameter else (),
        work=work_in_tokens if cfgs.train_cfgs.max_length_per_batch is None else work_of(spec, cfgs),
        ranks_per_row=ranks,
    )


def _require_shareable(cfgs: RunCfgs, spec: FamilySpec, layout: str, ranks: int) -> None:
    """Raises SettingsError where so many ranks cannot share a row of the family."""
    text = spec.config.get_text_config(decoder=True).to_dict()
    heads = text['num_attention_heads']
    of_keys = text.get('num_key_value_heads') or heads
    reasons = {
        f'{world_size()} ranks do not make groups of {ranks}': world_size() % ranks != 0,
        f'the {heads} attention heads of {spec.model_type} cannot be divided by {ranks}': heads % ranks != 0,
        f'the {of_keys} heads of keys of {spec.model_type} can neither be divided by {ranks} nor be repeated to it': (
            of_keys % ranks != 0 and ranks % of_keys != 0
        ),
        f'it needs rows without padding, and this run has the layout {layout} with attn_implementation '
        f'{cfgs.model_cfgs.attn_implementation}': layout == 'padded' or cfgs.model_cfgs.attn_implementation != 'sdpa',
    }
    problems = [f'train_cfgs.sequence_parallel_size = {ranks}: {why}.' for why, holds in reasons.items() if holds]
    if problems:
        raise SettingsError(problems)


def require_parallel(cfgs: RunCfgs, spec: FamilySpec, *, judges: bool) -> None:
    """Raises SettingsError where the tokens of a turn cannot be said at once (`ActionSpace.decoding`), with reasons.

    `judges` says whether the model scores what others have done.
    """
    if spec.codes is None or spec.codes.parallel is None:
        return
    name, train, attention = spec.model_type, cfgs.train_cfgs, cfgs.model_cfgs.attn_implementation
    windows = [window for window in windows_of(spec.config) if window < spec.max_length]
    reasons = {
        f'models of type {name} make masks of their own, which keep placeholders from seeing each other': (
            'packed' not in spec.layouts
        ),
        f'images of models of type {name} see themselves by masks of their own, which placeholders have no part in': (
            spec.bidirectional_media
        ),
        f'the attention of this {name} has a window of {min(windows, default=0)} tokens, of which masks of ours know '
        f'nothing (model_cfgs.model_max_length: {min(windows, default=0)} keeps rows within it)': bool(windows),
        f'{attention} reads no masks; set model_cfgs.attn_implementation: sdpa': attention in FLASH,
        'ranks that share a row were not tried with it; set train_cfgs.sequence_parallel_size: 1': (
            train.sequence_parallel_size > 1
        ),
        'data_cfgs.train_on: all trains what stands behind the actions of a turn, which nothing would predict; set '
        'data_cfgs.train_on: all_assistant': cfgs.data_cfgs.train_on == 'all',
        'a model that judges would see placeholders in the place of what was done; set action_cfgs.action_decoding: '
        'autoregressive': judges,
    }
    problems = [f'action_cfgs.action_decoding = parallel: {why}.' for why, holds in reasons.items() if holds]
    if problems:
        raise SettingsError(problems)


def choose_layout(cfgs: RunCfgs, spec: FamilySpec, *, shares_prompts: bool) -> str:
    """The layout to try: the one asked for, or the fastest for this data that the family and its attention bear.

    Raises SettingsError for a layout that they do not bear.
    """
    attention = cfgs.model_cfgs.attn_implementation
    if attention in FLASH and importlib.util.find_spec(FLASH[attention][0]) is None:
        raise SettingsError(
            [
                f'model_cfgs.attn_implementation: {attention} needs the package {FLASH[attention][1]} and a GPU: '
                'install it, or use sdpa, which packs and shares prompts too.'
            ]
        )
    by_attention = {'sdpa': spec.layouts, 'eager': ('padded',)}.get(attention, ('padded', 'packed'))
    possible = [layout for layout in spec.layouts if layout in by_attention]
    asked = cfgs.train_cfgs.layout
    if asked == 'auto':
        # With one response per prompt there is nothing to share, and packing is the plainer of the two.
        wanted = ('shared_prefix', 'packed') if shares_prompts else ('packed',)
        return next((layout for layout in wanted if layout in possible), 'padded')
    if asked not in possible:
        raise SettingsError(
            [
                f"train_cfgs.layout: '{asked}' is not possible for model_type '{spec.model_type}' with "
                f"attn_implementation '{attention}'. Possible: {', '.join(possible)}."
            ]
        )
    return asked


def fit_attention(model: PreTrainedModel, collate: TokenCollator, compiled: bool = False) -> None:
    """Makes a model that was just loaded attend as the layout of its batches asks, with one rotary table.

    `compiled` says whether its layers will be compiled. Raises ModelError if it cannot.
    """
    fix_rope_tables(model, collate.spec.max_length)
    if not collate.pads and collate.segmented:
        register_segment_attention(compiled)
        set_text_attention(model, SEGMENT_ATTENTION)


def kernel_of_rows(spec: FamilySpec, dtype: torch.dtype) -> str:
    """Says what computes attention of rows without padding in `dtype`, by segment or in one call."""
    if not (torch.cuda.is_available() and dtype in HALF):
        return 'by segment, with sdpa'
    if spec.config.get_text_config(decoder=True).to_dict().get('attn_logit_softcapping') is not None:
        return 'FlexAttention with soft caps, compiled at the first rows'
    return "torch's kernel of variable lengths, by segment where it lacks something (sinks, media)"


def work_of(spec: FamilySpec, cfgs: RunCfgs) -> WorkOf:
    """How much computation an Example takes in this run, of a new adapter only what flows through it."""
    train, lora = cfgs.train_cfgs, cfgs.lora_cfgs
    model = skeleton(spec.config)
    freeze_components(
        model,
        spec.components,
        vision_tower=train.freeze_vision_tower,
        audio_tower=train.freeze_audio_tower,
        mm_proj=train.freeze_mm_proj,
        generation=train.freeze_generation,
        language_model=train.freeze_language_model,
        unfreeze_patterns=train.unfreeze_patterns,
    )
    again = train.gradient_checkpointing / train.gradient_checkpointing_every_n_layers
    adapted: list[str] = []
    if lora.use_lora:
        model.requires_grad_(False)
        adapted = ['language_model', *(['vision_tower'] if lora.vision_lora else [])]
    return WorkOf(spec, work_of_model(model, spec, again, adapted))
