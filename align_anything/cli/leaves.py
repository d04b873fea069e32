"""The runs that the command knows: those of `trainers.leaves`."""

from align_anything.trainers.leaves import find_run, runs

__all__ = ['find_run', 'runs']
