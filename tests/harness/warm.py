"""Imports once in the process that ranks are forked from, where each of them would take ten seconds for it."""

from __future__ import annotations


def import_vllm() -> None:
    """Imports vLLM with the modules that an engine on a CPU imports as it starts."""
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.cpu_model_runner
    import vllm.v1.worker.cpu_worker  # noqa: F401
