"""The one form of errors over HTTP, that of OpenAI: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

if TYPE_CHECKING:
    from starlette.responses import Response

BAD_REQUEST, UNAUTHORIZED, NOT_FOUND, TIMEOUT, TOO_LARGE, UNSUPPORTED = 400, 401, 404, 408, 413, 415
SERVER_ERROR, OVERLOADED, TOO_SLOW = 500, 503, 504
TYPES = {
    UNAUTHORIZED: 'authentication_error',
    TIMEOUT: 'timeout_error',
    SERVER_ERROR: 'server_error',
    OVERLOADED: 'overloaded_error',
    TOO_SLOW: 'timeout_error',
}
PROBLEMS_TOLD = 5
UNKNOWN = 'extra_forbidden'


class RequestError(Exception):
    """A request that is not answered.

    Attributes:
        status: of the HTTP answer.
        message: what is wrong, and what to do.
        param: the parameter at fault, None where it is none.
        code: a short name for programs, None where the status says enough.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = BAD_REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body of the answer."""
        return error_body(self.status, self.message, self.param, self.code)


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Returns the JSON body of an error."""
    kind = TYPES.get(status, 'invalid_request_error' if status < SERVER_ERROR else 'server_error')
    return {'error': {'message': message, 'type': kind, 'param': param, 'code': code}}


def json_answer(record: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Returns a record as an answer, in ASCII: halves of surrogate pairs, which JSON may bring, have no UTF-8."""
    from starlette.responses import Response

    return Response(json.dumps(record), status, headers=headers, media_type='application/json')


def openai_form(status: int, said: Any) -> dict[str, Any]:
    """Returns the body of an error that the framework or a limit answers; see `core.asgi.ErrorForm`."""
    if isinstance(said, dict) and 'message' in said:
        return {'error': said}
    return error_body(status, said if isinstance(said, str) else json.dumps(said))


def invalid(error: ValidationError) -> RequestError:
    """Returns the error of a body that has not the form it should have: says what is wrong, not what was sent."""
    problems = error.errors()
    unknown = [_where(problem['loc']) for problem in problems if problem['type'] == UNKNOWN]
    if unknown:
        return RequestError(
            f'this server does not obey {", ".join(unknown)}, at least not with this value: leave it out.',
            param=unknown[0],
            code='unsupported_parameter',
        )
    told = [f'{_where(problem["loc"]) or "the body"}: {problem["msg"]}' for problem in problems[:PROBLEMS_TOLD]]
    if len(problems) > PROBLEMS_TOLD:
        told.append('…')
    return RequestError('; '.join(told), param=_where(problems[0]['loc']) or None)


def _where(path: Sequence[str | int]) -> str:
    """The path of a value, without the names that pydantic gives to the members of unions."""
    return '.'.join(str(step) for step in path if isinstance(step, int) or step.isidentifier())
