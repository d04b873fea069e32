"""A reward function as a service: `python -m align_anything.rewards.server --reward math --port 6000`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, JsonValue, model_validator

from align_anything.core.asgi import MEBIBYTE, Guarded, bound_socket, serve_app
from align_anything.core.errors import AlignAnythingError, DataError, RewardError, SampleError, SettingsError
from align_anything.core.logging import get_logger
from align_anything.core.types import Conversation
from align_anything.datasets.formatters.columns import first_of, text
from align_anything.datasets.sources import load_rows
from align_anything.rewards.base import (
    Completion,
    NoGroundTruth,
    RewardFunction,
    call_reward,
    check_options,
    get_reward,
)
from align_anything.rewards.messages import from_json

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = get_logger(__name__)

USER_ERROR = 2
BAD_REQUEST, SERVER_ERROR = 400, 500
LONGEST = 2**53
"""The largest integer up to which all are numbers of JSON."""
BODY_MIB = 256


class Message(BaseModel):
    """A turn of a conversation: text, or a list of parts, and beside it what a turn in normal form may hold."""

    model_config = ConfigDict(extra='allow')

    role: str
    content: str | list[dict[str, JsonValue]]


class Question(BaseModel):
    """What is asked of the service: lists with one entry for each completion."""

    prompts: list[str]
    responses: list[str]
    conversations: list[list[Message]] | None = None
    messages: list[Message] | None = None
    prefixes: list[str] | None = None
    prefills: list[str] | None = None
    ground_truths: list[str | None] | None = Field(
        None, validation_alias=AliasChoices('ground_truths', 'golden_responses')
    )
    lengths: list[Annotated[int, Field(ge=0, le=LONGEST)]] | None = None
    finished: list[bool] | None = None

    @model_validator(mode='after')
    def _same_length(self) -> Question:
        count = len(self.prompts)
        for name in type(self).model_fields:
            values = getattr(self, name)
            if values is not None and len(values) != count:
                raise ValueError(f'{name} has {len(values)} entries for {count} prompts')
        return self


def make_app(
    name: str,
    function: RewardFunction,
    options: Mapping[str, Any],
    golden: Mapping[str, str] | None = None,
    limit: int = BODY_MIB * MEBIBYTE,
) -> FastAPI:
    """Returns the web application.

    `POST /get_reward` takes a `Question` and answers `{"rewards": [float]}`, null for what the function does not judge.
    Errors are `{"error": str}`: 400 where the question is at fault, 413 where it is larger than `limit`, 500 where the
    function is. `GET /health` answers with the name of the reward.

    Args:
        name: what the function goes by.
        function: the reward function.
        options: its options, as `check_options` returns them.
        golden: golden answers by prompt, for questions that bring none.
        limit: bytes of the largest body.
    """
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse

    app = FastAPI(title=f'reward {name}')
    app.add_middleware(Guarded, limit=limit)

    def failed(status: int, reason: str) -> JSONResponse:
        return JSONResponse({'error': reason}, status_code=status)

    @app.exception_handler(RequestValidationError)
    def refuse(_: Any, error: RequestValidationError) -> JSONResponse:
        problems = [f'{".".join(map(str, problem["loc"]))}: {problem["msg"]}' for problem in error.errors()]
        return failed(BAD_REQUEST, '; '.join(problems))

    @app.get('/health')
    def health() -> dict[str, str]:
        return {'status': 'ok', 'reward': name}

    @app.post('/get_reward')
    def rewards(question: Question) -> JSONResponse:
        try:
            completions = _completions(question, golden or {})
        except (RewardError, SampleError) as error:
            return failed(BAD_REQUEST, str(error))
        try:
            return JSONResponse({'rewards': call_reward(name, function, completions, options)})
        except NoGroundTruth as error:
            return failed(BAD_REQUEST, f'{error} Or send ground_truths, or start the service with --dataset.')
        except AlignAnythingError as error:
            # What a function says may quote the prompt, which is nobody's business who reads the log.
            logger.error("reward '%s' failed with %s", name, type(error.__cause__ or error).__name__)
            return failed(SERVER_ERROR, str(error))

    return app


def golden_answers(sources: Sequence[str]) -> dict[str, str]:
    """Returns the golden answer of each prompt in the data sources: columns `question` or `prompt`, and `answer`.

    Raises `DataError` when a source cannot be read, a row lacks a column, or a prompt has two different answers.
    """
    golden: dict[str, str] = {}
    for source in sources:
        rows = load_rows(source)
        for index in range(len(rows)):
            where = rows.row_name(index)
            try:
                row = rows[index]
                prompt, answer = text(row, first_of(row, ('question', 'prompt'))).strip(), text(row, 'answer')
            except SampleError as error:
                raise DataError(f'{where} gives no golden answer: {error}') from error
            if golden.setdefault(prompt, answer) != answer:
                raise DataError(f'{where} has another answer to a prompt that stood before it. Leave one of them out.')
    return golden


def serve(
    reward: Annotated[str, typer.Option(help='Name of the reward function, or path/to/file.py:name.')],
    options: Annotated[str, typer.Option(help='Options of the reward function, as YAML: "{timeout: 3}".')] = '{}',
    dataset: Annotated[
        list[str] | None, typer.Option(help='Data with columns question and answer; may be given several times.')
    ] = None,
    host: Annotated[str, typer.Option(help='Address to listen at; 0.0.0.0 lets other machines in.')] = '127.0.0.1',
    port: Annotated[int, typer.Option(min=1, max=65535, help='Port to listen at.')] = 6000,
    max_body_mib: Annotated[int, typer.Option(min=1, help='MiB of the largest request.')] = BODY_MIB,
) -> None:
    """Serve a reward function to remote training runs."""
    with bound_socket(host, port) as bound:
        function = get_reward(reward)
        given = yaml.safe_load(options)
        if not isinstance(given, dict):
            raise SettingsError([f'--options is {options!r}, but should be a mapping, such as "{{timeout: 3}}"'])
        checked = check_options(reward, function, given)
        golden = golden_answers(dataset or [])
        try:
            import uvicorn  # noqa: F401

            app = make_app(reward, function, checked, golden, max_body_mib * MEBIBYTE)
        except ImportError as error:
            raise SettingsError(
                [f"the reward service needs {error.name}: pip install 'align-anything[serve]'"]
            ) from error
        logger.info("reward '%s' at http://%s:%d/get_reward, %d golden answers", reward, host, port, len(golden))
        serve_app(app, bound)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the service. An error that is the user's to mend is printed without a traceback and ends with code 2."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(serve)
    try:
        app(args=None if argv is None else list(argv), prog_name='python -m align_anything.rewards.server')
    except AlignAnythingError as error:
        logger.error('%s:\n%s', type(error).__name__, error)
        sys.exit(USER_ERROR)


def _completions(question: Question, golden: Mapping[str, str]) -> list[Completion]:
    completions = []
    for index, (prompt, response) in enumerate(zip(question.prompts, question.responses, strict=True)):
        conversation: Conversation = [{'role': 'user', 'content': [{'type': 'text', 'text': prompt}]}]
        if question.conversations is not None:
            conversation = from_json([message.model_dump() for message in question.conversations[index]])
        truth = question.ground_truths[index] if question.ground_truths else None
        truth = golden.get(prompt.strip()) if truth is None else truth
        message = question.messages[index] if question.messages else Message(role='assistant', content=response)
        completions.append(
            Completion(
                conversation=conversation,
                message=from_json([message.model_dump()])[0],
                prefix=question.prefixes[index] if question.prefixes else '',
                prefill=question.prefills[index] if question.prefills else None,
                meta={} if truth is None else {'ground_truth': truth},
                # Those who send no lengths get words for tokens: the service has no tokenizer.
                length=question.lengths[index] if question.lengths else len(response.split()),
                finished=question.finished[index] if question.finished else True,
                source=f'completion {index + 1} of the request',
            )
        )
    return completions


if __name__ == '__main__':
    main()
