"""Captions of images, videos and audio clips, in columns of any name."""

from __future__ import annotations

from align_anything.core.errors import SampleError
from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import Row, text
from align_anything.datasets.formatters.mapped import MappedFormatter
from align_anything.datasets.formatters.turns import Sample, assistant, request_for, user_with
from align_anything.datasets.turn_keys import listed


@register_template('Captioning')
class Captioning(MappedFormatter):
    """One medium, perhaps as an embedding, and what is to be written about it.

    Attributes:
        caption: column with the caption; by default `caption`, `description` or `text`.
        requests: ways to ask for it; each row is asked in one of them. `{kind}` in them is the kind of the medium, and
            `<{kind}>` where it stands, by default in front.
    """

    caption: str | None = None
    requests: tuple[str, ...] = ('Caption the {kind}.', 'Describe this {kind}.', 'Write a caption for this {kind}.')

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        caption = text(raw_sample, self.require(raw_sample, 'caption', ('caption', 'description', 'text')))
        beside = self.beside(raw_sample)
        media = [(kind, source) for kind, source in self.media(raw_sample).items() if listed(source)]
        number = sum(len(listed(source)) for _, source in media)
        if number != 1:
            raise SampleError(f'the row has {number} media, and a caption is about one: map it with {_OPTIONS}.')
        kind, source = media[0]
        question = user_with(kind, source, request_for(caption, self.requests).replace('{kind}', kind))
        return [*self.opening_of(raw_sample, False), question, assistant(caption)], beside


_OPTIONS = 'the template options images, videos and audios'
