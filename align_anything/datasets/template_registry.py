"""Templates by name, where earlier releases had them: files of users import them from here."""

from align_anything.datasets.formatters.base import (
    get_template,
    make_formatter,
    register_template,
    template_names,
    templates_with,
)

__all__ = ['get_template', 'make_formatter', 'register_template', 'template_names', 'templates_with']
