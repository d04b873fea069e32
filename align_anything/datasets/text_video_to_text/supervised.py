"""`SupervisedDataset` of text and videos, where the documentation of align-anything has it."""

from align_anything.trainers.runs.torch_datasets import SupervisedDataset, UnmatchedSupervisedDataset

__all__ = ['SupervisedDataset', 'UnmatchedSupervisedDataset']
