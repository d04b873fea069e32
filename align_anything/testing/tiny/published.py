"""Chat templates that behave as published ones do where they go beyond turns of text: thoughts, tools, roles.

Each is written anew, in the manner of the checkpoints it is named after.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from align_anything.testing.tiny.templates import BOS


def text_macro(media: Mapping[str, str] = MappingProxyType({})) -> str:
    """Returns the macro `said(content)`, which writes text or parts, `media` of each kind as their placeholder."""
    branches = ''.join(f"{{%- elif part['type'] == '{kind}' -%}}{{{{ {text!r} }}}}" for kind, text in media.items())
    return (
        '{%- macro said(content) -%}{%- if content is string -%}{{ content }}{%- elif content -%}'
        "{%- for part in content -%}{%- if part['type'] == 'text' -%}{{ part['text'] }}" + branches + '{%- endif -%}'
        '{%- endfor -%}{%- endif -%}{%- endmacro -%}'
    )


SPLIT = (
    "{%- set body = said(message['content']) -%}{%- set thought = message['reasoning_content'] | default('') -%}"
    "{%- if not thought and '</think>' in body -%}"
    "{%- set thought = body.split('</think>')[0].split('<think>')[-1] -%}{%- set body = body.split('</think>')[-1] -%}"
    '{%- endif -%}'
)
"""Parts the `thought` of an answer from its `body`."""


def qwen3(opened: bool = False, thinks: bool = True, media: Mapping[str, str] = MappingProxyType({})) -> str:
    """Returns Qwen3's manner, with `opened` that of its thinking models, whose generation prompt opens a thought.

    Without `thinks` it is that of its instruct models, which know no thoughts.
    Answers before the last question lose their thoughts; the last answer has one in any case, if only an empty one.
    Results of tools stand in a user turn, those of neighbouring tool turns in one.
    """
    thinking = (
        SPLIT + "{{ '<|im_start|>assistant\n' }}{%- if loop.index0 > seen.question and (loop.last or thought) -%}"
        "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + body.lstrip('\n') }}"
        "{%- else -%}{{ body.lstrip('\n') }}{%- endif -%}"
    )
    return (
        text_macro(media)
        + "{%- if tools or (messages and messages[0]['role'] == 'system') -%}{{ '<|im_start|>system\n' }}"
        "{%- if messages[0]['role'] == 'system' -%}{{ said(messages[0]['content']) }}{%- endif -%}"
        "{%- if tools -%}{{ '\n\nYou may call these tools:\n<tools>' }}{%- for tool in tools -%}"
        "{{ '\n' }}{{ tool | tojson }}{%- endfor -%}{{ '\n</tools>' }}{%- endif -%}{{ '<|im_end|>\n' }}{%- endif -%}"
        '{%- set seen = namespace(question=-1) -%}{%- for message in messages -%}'
        "{%- if message['role'] == 'user' -%}{%- set seen.question = loop.index0 -%}{%- endif -%}{%- endfor -%}"
        '{%- for message in messages -%}'
        "{%- if message['role'] == 'user' or (message['role'] == 'system' and not loop.first) -%}"
        "{{ '<|im_start|>' + message['role'] + '\n' + said(message['content']) + '<|im_end|>\n' }}"
        "{%- elif message['role'] == 'assistant' -%}"
        + (thinking if thinks else "{%- set body = said(message['content']) -%}{{ '<|im_start|>assistant\n' + body }}")
        + "{%- for call in message['tool_calls'] or [] -%}"
        "{%- if body.strip() or not loop.first -%}{{ '\n' }}{%- endif -%}"
        "{{ '<tool_call>\n{\"name\": \"' + call['function']['name'] + '\", \"arguments\": ' }}"
        "{{ call['function']['arguments'] | tojson }}{{ '}\n</tool_call>' }}{%- endfor -%}{{ '<|im_end|>\n' }}"
        "{%- elif message['role'] == 'tool' -%}"
        "{%- if loop.first or loop.previtem['role'] != 'tool' -%}{{ '<|im_start|>user' }}{%- endif -%}"
        "{{ '\n<tool_response>\n' + said(message['content']) + '\n</tool_response>' }}"
        "{%- if loop.last or loop.nextitem['role'] != 'tool' -%}{{ '<|im_end|>\n' }}{%- endif -%}"
        '{%- endif -%}{%- endfor -%}'
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n"
        + ('<think>\n' if opened else '')
        + "' }}{%- endif -%}"
    )


def llama3() -> str:
    """Returns Llama 3.1's manner: tools stand before the first question, an answer makes one call and no more."""
    return (
        text_macro() + BOS + "{%- if messages and messages[0]['role'] == 'system' -%}"
        "{{ '<|start_header_id|>system<|end_header_id|>\n\n' + said(messages[0]['content']) | trim + '<|eot_id|>' }}"
        '{%- endif -%}{%- set told = namespace(tools=false) -%}{%- for message in messages -%}'
        "{%- if message['role'] == 'user' and tools and not told.tools -%}{%- set told.tools = true -%}"
        "{{ '<|start_header_id|>user<|end_header_id|>\n\nAnswer with a call of one of these functions:\n\n' }}"
        "{%- for tool in tools -%}{{ tool | tojson }}{{ '\n\n' }}{%- endfor -%}"
        "{{ said(message['content']) | trim + '<|eot_id|>' }}"
        "{%- elif message['tool_calls'] -%}{%- if message['tool_calls'] | length != 1 -%}"
        "{{ raise_exception('one call at a time, please') }}{%- endif -%}"
        "{%- set called = message['tool_calls'][0]['function'] -%}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
        "{{ '{\"name\": \"' + called['name'] + '\", \"parameters\": ' }}{{ called['arguments'] | tojson }}"
        "{{ '}<|eot_id|>' }}{%- elif message['role'] == 'tool' -%}"
        "{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' }}{{ said(message['content']) | tojson }}"
        "{{ '<|eot_id|>' }}{%- elif message['role'] != 'system' or not loop.first -%}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{{ said(message['content']) | trim + '<|eot_id|>' }}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}"
    )


def mistral() -> str:
    """Returns Mistral's manner: no generation prompt, tools before the last question, ids of nine characters."""
    return (
        text_macro()
        + BOS
        + "{%- set system = said(messages[0]['content']) if messages and messages[0]['role'] == 'system' else '' -%}"
        '{%- set seen = namespace(question=-1) -%}{%- for message in messages -%}'
        "{%- if message['role'] == 'user' -%}{%- set seen.question = loop.index0 -%}{%- endif -%}{%- endfor -%}"
        '{%- for message in messages -%}'
        "{%- for call in message['tool_calls'] or [] if (call['id'] or '') | length != 9 -%}"
        "{{ raise_exception('ids of calls have nine letters and digits') }}{%- endfor -%}"
        "{%- if message['role'] == 'user' -%}{%- if tools and loop.index0 == seen.question -%}"
        "{{ '[AVAILABLE_TOOLS] ' }}{{ tools | tojson }}{{ '[/AVAILABLE_TOOLS]' }}{%- endif -%}{{ '[INST] ' }}"
        "{%- if system and loop.index0 == seen.question -%}{{ system + '\n\n' }}{%- endif -%}"
        "{{ said(message['content']) + ' [/INST]' }}"
        "{%- elif message['role'] == 'tool' -%}{%- if (message['tool_call_id'] or '') | length != 9 -%}"
        "{{ raise_exception('ids of results have nine letters and digits') }}{%- endif -%}"
        "{{ '[TOOL_RESULTS] {\"content\": ' }}{{ said(message['content']) | tojson }}"
        "{{ ', \"call_id\": \"' + message['tool_call_id'] + '\"}[/TOOL_RESULTS]' }}"
        "{%- elif message['tool_calls'] -%}{{ '[TOOL_CALLS] [' }}{%- for call in message['tool_calls'] -%}"
        "{{ dict(call['function'], id=call['id']) | tojson }}{%- if not loop.last -%}{{ ', ' }}{%- endif -%}"
        "{%- endfor -%}{{ ']' + eos_token }}"
        "{%- elif message['role'] == 'assistant' -%}{{ ' ' + said(message['content']) + eos_token }}"
        "{%- elif not (message['role'] == 'system' and loop.first) -%}"
        "{{ raise_exception('roles are system, user, assistant and tool') }}{%- endif -%}{%- endfor -%}"
    )


def gemma(refuses_system: bool = False) -> str:
    """Returns Gemma's manner: turns alternate; a system turn goes into the first user turn, or is refused (Gemma 2)."""
    system = (
        "{{ raise_exception('System role not supported') }}"
        if refuses_system
        else "{%- set opening = said(messages[0]['content']) + '\n\n' -%}{%- set turns = messages[1:] -%}"
    )
    return (
        text_macro()
        + BOS
        + "{%- set opening = '' -%}{%- set turns = messages -%}"
        + "{%- if messages and messages[0]['role'] == 'system' -%}"
        + (system + '{%- endif -%}{%- for message in turns -%}')
        + "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
        "{{ raise_exception('turns of user and assistant must alternate') }}{%- endif -%}"
        "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
        '{%- if loop.first -%}{{ opening }}{%- endif -%}'
        "{{ said(message['content']) | trim + '<end_of_turn>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
    )


def deepseek_r1() -> str:
    """Returns DeepSeek-R1's manner: generation begins in a thought, and finished answers show none."""
    return (
        text_macro()
        + BOS
        + '{%- for message in messages -%}'
        + SPLIT
        + "{%- if message['role'] == 'system' -%}{{ body }}"
        "{%- elif message['role'] == 'user' -%}{{ '<|User|>' + body }}"
        "{%- elif message['role'] == 'tool' -%}{{ '<|tool_output_begin|>' + body + '<|tool_output_end|>' }}"
        "{%- elif message['role'] == 'assistant' -%}{{ '<|Assistant|>' + body.lstrip('\n') }}"
        "{%- for call in message['tool_calls'] or [] -%}"
        "{{ '<|tool_call_begin|>function<|tool_sep|>' + call['function']['name'] + '\n```json\n' }}"
        # As text, as it is published: objects are refused.
        "{{ call['function']['arguments'] + '\n```<|tool_call_end|>' }}{%- endfor -%}"
        "{{ '<|end_of_sentence|>' }}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|Assistant|><think>\n' }}{%- endif -%}"
    )


def nemotron() -> str:
    """Returns Nemotron's manner: as DeepSeek-R1's, but the last answer shows its thought; tools stand in the system."""
    return (
        text_macro() + "{{ '<SPECIAL_10>System\n' }}{%- if messages and messages[0]['role'] == 'system' -%}"
        "{{ said(messages[0]['content']) }}{%- endif -%}"
        "{%- if tools -%}{{ '\n<AVAILABLE_TOOLS>' }}{{ tools | tojson }}{{ '</AVAILABLE_TOOLS>' }}{%- endif -%}"
        "{{ '\n' }}{%- for message in messages -%}"
        + SPLIT
        + "{%- if message['role'] == 'user' -%}{{ '<SPECIAL_11>User\n' + body + '\n' }}"
        "{%- elif message['role'] == 'tool' -%}{{ '<SPECIAL_11>User\n<TOOL_RESPONSE>' + body + '</TOOL_RESPONSE>\n' }}"
        "{%- elif message['role'] == 'assistant' -%}{{ '<SPECIAL_11>Assistant\n' }}"
        "{%- if loop.last and thought -%}{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{%- endif -%}"
        "{{ body.lstrip('\n') }}{%- if message['tool_calls'] -%}{{ '<TOOLCALL>[' }}"
        "{%- for call in message['tool_calls'] -%}{{ call['function'] | tojson }}"
        "{%- if not loop.last -%}{{ ', ' }}{%- endif -%}{%- endfor -%}{{ ']</TOOLCALL>' }}{%- endif -%}"
        "{{ '<SPECIAL_12>\n' }}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<SPECIAL_11>Assistant\n<think>\n' }}{%- endif -%}"
    )


def gpt_oss() -> str:
    """Returns the manner of gpt-oss: channels, another end for the last answer than for earlier ones, `developer`."""
    return (
        text_macro() + "{{ '<|start|>system<|message|>Valid channels: analysis, commentary, final.<|end|>' }}"
        "{%- set known = messages and messages[0]['role'] in ('system', 'developer') -%}"
        "{%- if known or tools -%}{{ '<|start|>developer<|message|>' }}"
        "{%- if known -%}{{ '# Instructions\n\n' + said(messages[0]['content']) + '\n\n' }}{%- endif -%}"
        "{%- if tools -%}{{ '# Tools\n\n' }}{%- for tool in tools -%}{{ tool['function'] | tojson }}{{ '\n' }}"
        "{%- endfor -%}{%- endif -%}{{ '<|end|>' }}{%- endif -%}"
        '{%- set seen = namespace(name=none, answer=-1) -%}{%- for message in messages -%}'
        "{%- if message['role'] == 'assistant' and not message['tool_calls'] -%}"
        '{%- set seen.answer = loop.index0 -%}{%- endif -%}{%- endfor -%}{%- for message in messages -%}'
        "{%- set thought = message['thinking'] | default('') -%}"
        "{%- if message['role'] == 'assistant' and message['tool_calls'] -%}"
        '{%- if thought and loop.index0 > seen.answer -%}'
        "{{ '<|start|>assistant<|channel|>analysis<|message|>' + thought + '<|end|>' }}{%- endif -%}"
        "{%- set seen.name = message['tool_calls'][0]['function']['name'] -%}"
        "{{ '<|start|>assistant to=functions.' + seen.name + '<|channel|>commentary json<|message|>' }}"
        "{{ message['tool_calls'][0]['function']['arguments'] | tojson }}{{ '<|call|>' }}"
        "{%- elif message['role'] == 'assistant' -%}{%- set ends = loop.last and not add_generation_prompt -%}"
        '{%- if thought and ends -%}'
        "{{ '<|start|>assistant<|channel|>analysis<|message|>' + thought + '<|end|>' }}{%- endif -%}"
        "{{ '<|start|>assistant<|channel|>final<|message|>' + said(message['content']) }}"
        "{{ '<|return|>' if ends else '<|end|>' }}"
        "{%- elif message['role'] == 'tool' -%}{{ '<|start|>functions.' + (seen.name or 'tool') }}"
        "{{ ' to=assistant<|channel|>commentary<|message|>' }}{{ said(message['content']) | tojson }}{{ '<|end|>' }}"
        "{%- elif message['role'] == 'user' -%}"
        "{{ '<|start|>user<|message|>' + said(message['content']) + '<|end|>' }}"
        "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|start|>assistant' }}{%- endif -%}"
    )
