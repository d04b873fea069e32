"""Worlds that a policy acts in by turns: tools, games, and users' own."""

from align_anything.environments.base import (
    BatchEnvironment,
    Call,
    Environment,
    Observation,
    Said,
    Step,
    register_environment,
)

__all__ = ['BatchEnvironment', 'Call', 'Environment', 'Observation', 'Said', 'Step', 'register_environment']
