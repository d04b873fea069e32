"""`POST /v1/rewards`: what a reward model thinks of answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from align_anything.core.errors import SampleError
from align_anything.serve.errors import NOT_FOUND, RequestError, json_answer
from align_anything.serve.messages import decoded_of, rows_of
from align_anything.serve.requests import RewardsBody

if TYPE_CHECKING:
    from fastapi import Request
    from fastapi.responses import Response as Answer

    from align_anything.serve.server import Server


async def rewards(server: Server, request: Request) -> Answer:
    """Returns the score of the answer that ends each conversation."""
    from fastapi.concurrency import run_in_threadpool

    judge = server.judge
    if judge is None:
        raise RequestError('this server has no reward model (--reward_model_name_or_path).', status=NOT_FOUND)
    asked = await server.body(request, RewardsBody)
    server.check_model(asked.model, judge.name)

    def scored() -> list[float]:
        limits = server.limits.media
        rows = [rows_of(turns, limits, judge.reads) for turns in asked.conversations]
        return judge.scores([decoded_of(own, limits) for own in rows])

    try:
        with server.judging():
            found = await run_in_threadpool(scored)
    except SampleError as error:
        raise RequestError(str(error), param='conversations', code='unusable_prompt') from error
    data: list[dict[str, Any]] = [
        {'object': 'reward', 'index': number, 'reward': value} for number, value in enumerate(found)
    ]
    return json_answer({'object': 'list', 'model': judge.name, 'data': data})
