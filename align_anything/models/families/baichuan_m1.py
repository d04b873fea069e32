"""Baichuan-M1: text, through an output embedding of unit rows; the class comes with the checkpoint."""

from __future__ import annotations

from align_anything.models.own_code import OwnCodeSpec


class AccustomedBaichuanM1Model:
    """Baichuan-M1 with a language-model head."""


class BaichuanM1Spec(OwnCodeSpec):
    """Text alone."""

    brings_processor = False
    component_prefixes = {'language_model': ('model', 'lm_head')}


MODEL, SPEC = AccustomedBaichuanM1Model, BaichuanM1Spec
