"""Worlds that a policy acts in by turns: tools, games, and users' own."""

from align_anything.environments.base import Call, Environment, Observation, Said, Step, register_environment

__all__ = ['Call', 'Environment', 'Observation', 'Said', 'Step', 'register_environment']
