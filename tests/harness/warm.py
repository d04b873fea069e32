"""Imports once in the process that ranks are forked from, where each of them would take ten seconds for it."""

from __future__ import annotations


def import_vllm() -> None:
    """Imports vLLM with the modules that an engine on a CPU imports as it starts.

    Nothing is compiled in this process from now on: each engine would take seconds to compile how vLLM counts which
    tokens are likelier than that sampled.
    """
    import compressed_tensors
    import torch._dynamo
    import vllm.entrypoints.llm
    import vllm.v1.core.sched.scheduler
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.cpu_model_runner
    import vllm.v1.worker.cpu_worker

    assert all((compressed_tensors, vllm))
    torch._dynamo.config.disable = True
