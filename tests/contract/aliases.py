"""Import paths that documents name and that are not where things live, each with the present one."""

from __future__ import annotations

import ast

DATASETS = {
    'supervised': ('SupervisedDataset', 'UnmatchedSupervisedDataset'),
    'preference': ('PreferenceDataset', 'SafetyPreferenceDataset'),
    'prompt_only': ('PromptOnlyDataset',),
}
PAIRS = ('text_to_text', 'text_image_to_text', 'text_video_to_text', 'text_audio_to_text', 'any_to_text')
ALIASES = {
    'align_anything.configs.format_dataset.BaseFormatter': 'align_anything.datasets.formatters.base.BaseFormatter',
    'align_anything.configs.template.ChatTemplate': 'align_anything.trainers.runs.chat_text.ChatTemplate',
    'align_anything.utils.template_registry.register_template': (
        'align_anything.datasets.formatters.base.register_template'
    ),
    **{
        f'align_anything.datasets.template_registry.{name}': f'align_anything.datasets.formatters.base.{name}'
        for name in ('get_template', 'make_formatter', 'register_template', 'template_names', 'templates_with')
    },
    **{
        f'align_anything.models.{family}.{name}': f'align_anything.models.families.{family}.{name}'
        for family, name in (
            ('llama', 'AccustomedLlamaModel'),
            ('llava', 'AccustomedLlavaModel'),
            ('llava_next', 'AccustomedLlavaNextModel'),
            ('minicpmv', 'AccustomedMiniCPMVModel'),
            ('mllama', 'AccustomedMllamaModel'),
            ('qwen2_audio', 'AccustomedQwen2AudioModel'),
            ('qwen2_vl', 'AccustomedQwen2VLModel'),
        )
    },
    'align_anything.models.minicpmv.AccustomedMiniCPMV': (
        'align_anything.models.families.minicpmv.AccustomedMiniCPMVModel'
    ),
    **{
        f'align_anything.datasets.{pair}{module}.{name}': f'align_anything.trainers.runs.torch_datasets.{name}'
        for pair in PAIRS
        for file, names in DATASETS.items()
        for module in ('', f'.{file}')
        for name in names
    },
    'align_anything.models.tiny.KINDS': 'align_anything.testing.tiny.KINDS',
    'align_anything.models.tiny.build': 'align_anything.testing.tiny.build',
    'align_anything.models.tiny.main': 'align_anything.testing.tiny.__main__.main',
}
ALIAS_MODULES = frozenset({'align_anything.utils', *(path.rpartition('.')[0] for path in ALIASES)})
MAIN = "if __name__ == '__main__':\n    sys.exit(main())"


def beyond_an_alias(source: str) -> list[str]:
    """Returns what a module holds besides a docstring, imports of this package, `__all__` of them, and a start."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) else ['no docstring']
    imported, exported = set(), set()
    for node in tree.body[1:]:
        text = ast.unparse(node)
        if isinstance(node, ast.ImportFrom):
            imported |= {name.asname or name.name for name in node.names}
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__':
            exported = set(ast.literal_eval(node.value))
        elif text not in ('import sys', MAIN):
            found.append(text)
    return found if imported == exported else [*found, f'__all__ is {sorted(exported)}, not {sorted(imported)}']
