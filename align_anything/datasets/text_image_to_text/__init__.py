"""Datasets of torch over text and images, where the documentation of align-anything has them."""

from align_anything.trainers.runs.torch_datasets import (
    PreferenceDataset,
    PromptOnlyDataset,
    SafetyPreferenceDataset,
    SupervisedDataset,
    UnmatchedSupervisedDataset,
)

__all__ = [
    'PreferenceDataset',
    'PromptOnlyDataset',
    'SafetyPreferenceDataset',
    'SupervisedDataset',
    'UnmatchedSupervisedDataset',
]
