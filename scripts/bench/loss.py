"""The chunked log-probability op against the full-logits form, and among the codes of a book against all tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.bench.measure import cpu_seconds, in_child, peak, reset_peak, resident
from scripts.bench.report import Ratio
from scripts.bench.work import Size

HIDDEN = 512
PASSES = 4


def loss(folder: Path, size: Size) -> list[Ratio]:
    """Forward and backward of the mean negative log-likelihood of `tokens` rows: memory and speed of both forms."""
    rounds: dict[str, list[tuple[float, float]]] = {'full': [], 'chunked': []}
    for _ in range(max(size.rounds, 1)):
        for form in rounds:
            rounds[form].append(in_child(_measure, form, size.vocabulary, size.tokens))
    most = {form: min(memory for memory, _ in values) for form, values in rounds.items()}
    seconds = {form: min(spent for _, spent in values) for form, values in rounds.items()}
    shape = f'{size.tokens} tokens, vocabulary {size.vocabulary}'
    memory = f'{most["chunked"] / 2**20:.0f} against {most["full"] / 2**20:.0f} MiB, {shape}'
    speed = f'{seconds["chunked"]:.2f} against {seconds["full"]:.2f} CPU s, {shape}'
    return [
        Ratio('loss memory: chunked / full logits', most['chunked'] / most['full'], 1 / 8, at_most=True, detail=memory),
        Ratio('loss speed: chunked / full logits', seconds['full'] / seconds['chunked'], 0.9, detail=speed),
    ]


def ranges(folder: Path, size: Size) -> list[Ratio]:
    """Forward and backward of codes that are one among those of their book, against one among all tokens."""
    forms = ('range', 'whole')
    spent = {form: min(in_child(_score, form, size) for _ in range(max(size.rounds, 1))) for form in forms}
    detail = (
        f'{spent["range"]:.3f} against {spent["whole"]:.3f} CPU s, {size.units} codes of {size.book} '
        f'among {size.code_vocabulary} tokens'
    )
    return [Ratio('codes: range / whole head', spent['whole'] / spent['range'], 4.0, detail=detail)]


def _score(form: str, size: Size) -> float:
    """CPU seconds of the quickest of a few passes after the first."""
    import torch

    from align_anything.policies.token.logprob import Group, chunked_logprob

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows, first = size.code_vocabulary, size.code_vocabulary - size.book
    hidden = torch.randn(size.units, HIDDEN, requires_grad=True)
    weight = (torch.randn(rows, HIDDEN) / HIDDEN**0.5).requires_grad_()
    targets = torch.randint(first, rows, (size.units,))
    groups = [Group(spans=[(first, rows)])] if form == 'range' else None
    seconds = []
    for _ in range(PASSES):
        started = cpu_seconds()
        (-chunked_logprob(hidden, weight, targets, groups=groups)[0].mean()).backward()
        seconds.append(cpu_seconds() - started)
    return min(seconds[1:])


def _measure(form: str, vocabulary: int, tokens: int) -> tuple[float, float]:
    """Peak memory of the second pass above what was there before it, in bytes, and CPU seconds of the third."""
    import torch

    from align_anything.policies.token.logprob import chunked_logprob

    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden = torch.randn(tokens, HIDDEN, requires_grad=True)
    weight = (torch.randn(vocabulary, HIDDEN) / HIDDEN**0.5).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,))

    def step() -> Any:
        if form == 'full':
            value = torch.nn.functional.cross_entropy(hidden @ weight.t(), targets)
        else:
            value = -chunked_logprob(hidden, weight, targets)[0].mean()
        value.backward()
        return value

    # The gradients are the result, the same for both forms; they exist before the peak is taken.
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)
    before = resident()
    reset_peak()
    step()
    most = peak() - before
    started = cpu_seconds()
    step()
    return most, cpu_seconds() - started
