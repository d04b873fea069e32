"""`PromptOnlyDataset` of text and images, where the documentation of align-anything has it."""

from align_anything.trainers.runs.torch_datasets import PromptOnlyDataset

__all__ = ['PromptOnlyDataset']
