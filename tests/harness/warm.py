"""Imports once in the process that ranks are forked from, where each of them would take ten seconds for it."""

from __future__ import annotations


def import_vllm() -> None:
    """Imports vLLM with the modules that an engine on a CPU imports as it starts.

    Its sampler is compiled by none of them: each engine would take seconds for how it counts which tokens are likelier
    than that sampled.
    """
    import compressed_tensors
    import vllm.entrypoints.llm
    import vllm.v1.core.sched.scheduler
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.cpu_model_runner
    import vllm.v1.worker.cpu_worker
    from torch._dynamo.eval_frame import innermost_fn
    from vllm.v1.sample import sampler
    from vllm.v1.sample.ops import topk_topp_sampler

    assert all((compressed_tensors, vllm))
    sampler.batched_count_greater_than = innermost_fn(sampler.batched_count_greater_than)
    topk_topp_sampler.compiled_random_sample = innermost_fn(topk_topp_sampler.compiled_random_sample)
