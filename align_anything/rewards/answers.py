"""Where the answer stands in a response that may reason first."""

from __future__ import annotations

import re

ANSWER = re.compile(r'<answer>(.*?)</answer>', re.DOTALL)


def answer_of(response: str) -> str:
    """Returns the text of the answer, stripped.

    That is what stands in the last `<answer>…</answer>`, else what follows `</think>`, else the whole response. It is
    empty where a `<think>` was never closed: what is thought there is no answer yet.
    """
    thought, closed, rest = response.rpartition('</think>')
    if not closed and '<think>' in response:
        return ''
    tagged = ANSWER.findall(rest)
    return (tagged[-1] if tagged else rest).strip()
