"""Rows and what published chat templates make of them: the answers to learn, and the history that inference shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from align_anything.core.types import Conversation, Example, Piece
from align_anything.models.family import FamilySpec
from tests.models.samples import assistant, user

# The manner of a checkpoint, and the family of the tiny one that has it.
MANNERS = {
    'qwen3': 'qwen3',
    'qwen3_thinking': 'qwen3',
    'llama': 'llama',
    'mistral': 'mistral',
    'gemma2': 'gemma2',
    'gemma3_text': 'gemma3_text',
    'deepseek_r1': 'qwen2',
    'nemotron': 'llama',
    'gpt_oss': 'llama',
}
END = {
    'qwen3': '<|im_end|>',
    'qwen3_thinking': '<|im_end|>',
    'llama': '<|eot_id|>',
    'mistral': '</s>',
    'gemma2': '<end_of_turn>',
    'gemma3_text': '<end_of_turn>',
    'deepseek_r1': '<|end_of_sentence|>',
    'nemotron': '<SPECIAL_12>',
    'gpt_oss': '<|return|>',
}
OPENS_THOUGHT = ('qwen3_thinking', 'deepseek_r1', 'nemotron')
WRITES_THOUGHTS = ('qwen3', *OPENS_THOUGHT, 'gpt_oss')
WRITES_TOOLS = ('qwen3', 'qwen3_thinking', 'llama', 'mistral', 'nemotron', 'gpt_oss')
REWRITES = WRITES_THOUGHTS

TOOL = {
    'type': 'function',
    'function': {
        'name': 'add',
        'description': 'Adds two numbers.',
        'parameters': {'type': 'object', 'properties': {'a': {'type': 'number'}, 'b': {'type': 'number'}}},
    },
}
CALL = {'id': 'c1', 'type': 'function', 'function': {'name': 'add', 'arguments': {'a': 2, 'b': 3}}}
PLAIN = [user('Hi.'), assistant('Hello.'), user('Bye.'), assistant('Goodbye.')]
WITH_TOOL: Conversation = [
    {**user('What is 2 + 3?'), 'tools': [TOOL]},
    {'role': 'assistant', 'content': [], 'tool_calls': [CALL]},
    {'role': 'tool', 'content': [{'type': 'text', 'text': '5'}], 'tool_call_id': 'c1', 'name': 'add'},
    assistant('It is 5.'),
]
THINKING: Conversation = [
    user('What is 2 + 3?'),
    {**assistant('5'), 'reasoning_content': 'Two and three are five.'},
    user('And 1 + 1?'),
    {**assistant('2'), 'reasoning_content': 'One and one are two.'},
]


def answer(manner: str, text: str, thought: str = '') -> str:
    """What is learnt of an answer, its end included."""
    if manner in OPENS_THOUGHT:
        return f'{thought}\n</think>\n\n{text}{END[manner]}'
    if manner == 'qwen3':
        return f'<think>\n{thought}\n</think>\n\n{text}{END[manner]}'
    if manner == 'gpt_oss':
        before = f'<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant' if thought else ''
        return f'{before}<|channel|>final<|message|>{text}{END[manner]}'
    return (' ' if manner == 'mistral' else '') + text + END[manner]


def call(manner: str) -> str:
    """What is learnt of the call, its end included."""
    arguments = '{"a": 2, "b": 3}'
    if manner in ('qwen3', 'qwen3_thinking'):
        return answer(manner, f'<tool_call>\n{{"name": "add", "arguments": {arguments}}}\n</tool_call>')
    return {
        'llama': f'{{"name": "add", "parameters": {arguments}}}<|eot_id|>',
        # c1 is too short an id; hexadecimal digits of its hash are not.
        'mistral': f'[TOOL_CALLS] [{{"name": "add", "arguments": {arguments}, "id": "d0f631ca1"}}]</s>',
        'nemotron': f'\n</think>\n\n<TOOLCALL>[{{"name": "add", "arguments": {arguments}}}]</TOOLCALL><SPECIAL_12>',
        'gpt_oss': f' to=functions.add<|channel|>commentary json<|message|>{arguments}<|call|>',
    }[manner]


def whole(example: Example, piece: Piece) -> tuple[Tensor, Tensor]:
    """The ids and weights of one sequence, its beginning of the prompt included."""
    start = len(example.prompt) if piece.prefix_length is None else piece.prefix_length
    return (
        torch.cat([example.prompt.ids[:start], piece.ids]),
        torch.cat([example.prompt.weights[:start], piece.weights]),
    )


def learnt(spec: FamilySpec, example: Example, response: int = 0) -> list[str]:
    """The trained tokens of a response as text, each stretch for itself, in order."""
    found = []
    for piece in example.responses[response].sequences:
        ids, weights = whole(example, piece)
        edges = torch.nn.functional.pad((weights > 0).long(), (1, 1)).diff()
        bounds = zip((edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten(), strict=True)
        found += [spec.tokenizer.decode(ids[start:stop]) for start, stop in bounds]
    return found


def shown_at_inference(spec: FamilySpec, conversation: Conversation, tools: Any = None) -> list[int]:
    """The ids that plain transformers would generate an answer to the conversation from."""
    messages = []
    for message in conversation:
        plain = {key: value for key, value in message.items() if key != 'tools'}
        plain['content'] = ''.join(part['text'] for part in message['content'])
        if 'reasoning_content' in plain and 'thinking' in spec.renderer.template:
            plain['thinking'] = plain['reasoning_content']
        messages.append(plain)
    return spec.tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=True
    )['input_ids']
