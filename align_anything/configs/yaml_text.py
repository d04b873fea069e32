"""YAML as people expect it: `1e-5` is a number, `no` and `none` are words, `None` is null, a key stands once."""

from __future__ import annotations

import re
from typing import Any

import yaml

_RESOLVERS = (
    ('null', r'~|null|Null|NULL|None|', ['~', 'n', 'N', '']),
    ('bool', r'true|True|TRUE|false|False|FALSE', list('tTfF')),
    ('int', r'[-+]?(?:0|[1-9][0-9]*)', list('-+0123456789')),
    (
        'float',
        r'[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|nan)',
        list('-+.0123456789'),
    ),
)


def parse_yaml(text: str) -> Any:
    """Returns the value that `text` spells. Raises ValueError when it is not YAML."""
    try:
        loader = SettingsLoader(text)
        node = loader.get_single_node()
        return None if node is None else loader.construct(node)
    except yaml.YAMLError as error:
        raise ValueError(f'not valid YAML: {" ".join(str(error).split())}') from error


def parse_lines(text: str) -> list[tuple[tuple[str, ...], Any, int]]:
    """Returns `(path, value, line)` for the top keys of a document and for the keys of the mappings under them.

    A top key without a mapping has a path of one part; an empty group yields nothing.
    Raises ValueError when the text is not YAML, or not a mapping.
    """
    try:
        loader = SettingsLoader(text)
        root = loader.get_single_node()
        if root is None:
            return []
        if not isinstance(root, yaml.MappingNode):
            raise ValueError('the top of the file must be a mapping of groups, such as `train_cfgs:`')
        loader.refuse_repeated_keys(root)
        found: list[tuple[tuple[str, ...], Any, int]] = []
        for key, value in root.value:
            if isinstance(value, yaml.MappingNode):
                found.extend(
                    ((key.value, inner.value), loader.construct(content), inner.start_mark.line + 1)
                    for inner, content in value.value
                )
            else:
                found.append(((key.value,), loader.construct(value), key.start_mark.line + 1))
        return found
    except yaml.YAMLError as error:
        raise ValueError(f'not valid YAML: {" ".join(str(error).split())}') from error


def dump_yaml(value: Any) -> str:
    """Returns YAML that both `parse_yaml` and plain YAML 1.1 readers take for the same value."""
    return yaml.dump(value, Dumper=SettingsDumper, sort_keys=False, allow_unicode=True, width=1000)


class SettingsLoader(yaml.SafeLoader):
    """Safe loader without YAML 1.1's surprises (`no` as False, dates, octal and base-60 numbers)."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct(self, node: yaml.Node) -> Any:
        """Returns the value of `node`, all of it. Raises yaml.YAMLError when a key stands twice."""
        self.refuse_repeated_keys(node)
        return self.construct_object(node, deep=True)

    def refuse_repeated_keys(self, node: yaml.Node) -> None:
        """Raises yaml.YAMLError when a mapping under `node` holds a key twice (the first would be lost) or no name."""
        visited: set[int] = set()
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if id(node) in visited or isinstance(node, yaml.ScalarNode):
                continue
            visited.add(id(node))
            if isinstance(node, yaml.SequenceNode):
                waiting.extend(node.value)
                continue
            seen: set[str] = set()
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.constructor.ConstructorError(None, None, 'a key must be a name', key.start_mark)
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key '{key.value}' stands twice", key.start_mark
                    )
                seen.add(key.value)
                waiting.append(value)


class SettingsDumper(yaml.SafeDumper):
    """Safe dumper that quotes whatever `SettingsLoader` would not read back as the same text."""


for _name, _pattern, _first in _RESOLVERS:
    for _class in (SettingsLoader, SettingsDumper):
        _class.add_implicit_resolver(f'tag:yaml.org,2002:{_name}', re.compile(f'^(?:{_pattern})$'), _first)
