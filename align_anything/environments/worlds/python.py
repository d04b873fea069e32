"""Python to run code with before answering, in a sandbox."""

from __future__ import annotations

from align_anything.core.errors import WorldError
from align_anything.environments.base import register_environment
from align_anything.environments.golden import GoldenNumber
from align_anything.environments.sandbox import Bounds, refusal, run_python
from align_anything.environments.tools import ToolFailed


@register_environment('python')
class Python(GoldenNumber):
    """Lends Python, and rewards an answer whose last number is the golden one of the row (`ground_truth`) by 1.

    Code runs as a cell of a notebook, each in a process of its own, without a network, with no files but Python's own
    and those that it writes, and none of the variables of the run; see `sandbox.py`. An error is shown to the policy.

    Args:
        seconds: that code may take.
        memory: MiB that it may use.
        processes: that it may have.
        max_chars: of the longest output.

    Raises:
        WorldError: this machine has no sandbox.
    """

    def __init__(self, seconds: float = 5.0, memory: int = 512, processes: int = 16, max_chars: int = 10_000) -> None:
        problem = refusal()
        if problem:
            raise WorldError(f"the environment 'python': {problem}")
        bounds = Bounds(seconds, memory, processes, max_chars)

        def python(code: str) -> str:
            """Runs Python code and returns what it prints, and the value of its last expression.

            Args:
                code: a whole program; nothing is left of earlier ones.
            """
            ran = run_python(code, bounds)
            if ran.failed:
                raise ToolFailed(ran.output)
            return ran.output

        super().__init__([python])
