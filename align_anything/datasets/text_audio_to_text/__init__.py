"""Datasets of torch over text and audio, where the documentation of align-anything has them."""

from align_anything.trainers.runs.torch_datasets import (
    PreferenceDataset,
    PromptOnlyDataset,
    SupervisedDataset,
    UnmatchedSupervisedDataset,
)

__all__ = ['PreferenceDataset', 'PromptOnlyDataset', 'SupervisedDataset', 'UnmatchedSupervisedDataset']
