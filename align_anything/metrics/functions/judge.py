"""How often a language model behind an endpoint finds one checkpoint's answers better than another's."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from align_anything.metrics import statistics
from align_anything.metrics.base import Measured, register_metric
from align_anything.metrics.judging import FILE, INSTRUCTION, Endpoint, chat_of, verdict_of, worth_of
from align_anything.metrics.samples import Samples


@register_metric('judge', compares=True)
def judge(
    samples: Samples,
    others: Samples,
    *,
    url: str,
    model: str,
    instruction: str = INSTRUCTION,
    key_variable: str = 'OPENAI_API_KEY',
    max_tokens: PositiveInt = 512,
    workers: PositiveInt = 8,
    timeout: PositiveFloat = 120.0,
    retries: NonNegativeInt = 3,
) -> Measured:
    """How often a judge finds a response better than that of the other checkpoint; neither is half.

    Each pair is judged in both orders (Zheng et al., 2023, arXiv:2306.05685), and is worth the mean, so that a liking
    for the first answer falls out. Pairs with an answer of the judge that has no verdict are left out and counted.

    Args:
        samples: the responses.
        others: those of the other checkpoint; each response is compared with the one of the same number.
        url: base address of an endpoint of OpenAI's form, such as `http://localhost:8000/v1`.
        model: what it calls the model.
        instruction: what the judge is told; it must make it end with [[A]], [[B]] or [[C]].
        key_variable: environment variable with the key of the endpoint; none is sent without it.
        max_tokens: most tokens of a judgement.
        workers: judgements that are waited for at once.
        timeout: seconds without any word after which a request has failed.
        retries: how often a request is sent again.
    """
    pairs = [
        (number, sample, rivals[sample.number])
        for number, sample in enumerate(samples)
        for rivals in [others.by_prompt.get(sample.prompt, [])]
        if sample.number < len(rivals)
    ]
    chats = [chat_of(*pair, instruction) for _, one, other in pairs for pair in ((one, other), (other, one))]
    with Endpoint(
        *(url, model),
        key_variable=key_variable,
        workers=workers,
        timeout=timeout,
        retries=retries,
        kept=samples.folder / FILE,
    ) as endpoint:
        verdicts = [verdict_of(said) for said in endpoint.say(chats, max_tokens)]
    values: list[float | None] = [None] * len(samples)
    for (number, _, _), one, swapped in zip(pairs, verdicts[0::2], verdicts[1::2], strict=True):
        values[number] = worth_of(one, swapped)
    known = [value for value in values if value is not None]
    return Measured(
        values,
        details={
            'ties': known.count(statistics.TIE),
            'orders_agree': sum(value in (0.0, statistics.TIE, 1.0) for value in known),
            'unparsed': verdicts.count(None),
            'not_compared': len(samples) - len(pairs),
        },
    )
