"""What a run needs whose policy says the actions of a turn at once, checked before a model is loaded."""

from __future__ import annotations

from align_anything.algorithms.base import Algorithm
from align_anything.configs.schema import RunCfgs
from align_anything.core.errors import SettingsError
from align_anything.models.family import FamilySpec
from align_anything.policies.token.plan import FLASH
from align_anything.policies.token.selfcheck import windows_of


def require_parallel(cfgs: RunCfgs, spec: FamilySpec, algorithm: Algorithm) -> None:
    """Raises SettingsError where the tokens of a turn cannot be said at once (`ActionSpace.decoding`), with reasons."""
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
        'autoregressive': algorithm.scores == 'responses',
    }
    problems = [f'action_cfgs.action_decoding = parallel: {why}.' for why, holds in reasons.items() if holds]
    if problems:
        raise SettingsError(problems)
