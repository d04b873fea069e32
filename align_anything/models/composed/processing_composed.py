"""The processor of a composed model: a tokenizer, and what prepares media for each of its encoders."""

import numpy as np
from transformers import AutoFeatureExtractor, AutoImageProcessor, BatchFeature, ProcessorMixin

from .configuration_composed import CODE, copy_code, token_count

COMPONENTS = (
    'tokenizer',
    'image_processor',
    'image_processor_2',
    'video_processor',
    'feature_extractor',
    'feature_extractor_2',
)
ITSELF = {'image_processor': AutoImageProcessor, 'feature_extractor': AutoFeatureExtractor}


class _Attributes:
    """`get_attributes()`: of the class all components that a processor may have, of a processor those that it has."""

    def __get__(self, processor, owner):
        held = COMPONENTS if processor is None else [name for name in COMPONENTS if name in vars(processor)]
        return lambda: list(held)


class ComposedProcessor(ProcessorMixin):
    """Writes as many placeholders for each medium as the model makes features of it.

    `rules` has an entry for each kind that the model reads: how its tokens are counted (`counting_rule`), its
    placeholder `token`, and `frames`: how videos reach their encoder, `each` frame through `image_processor` or
    `video_processor`, or a fixed number of them at once. `with_code` saves the code of this class too.
    """

    get_attributes = _Attributes()

    def __init__(
        self,
        tokenizer=None,
        image_processor=None,
        image_processor_2=None,
        video_processor=None,
        feature_extractor=None,
        feature_extractor_2=None,
        rules=None,
        with_code=False,
        chat_template=None,
    ):
        given = (
            tokenizer,
            image_processor,
            image_processor_2,
            video_processor,
            feature_extractor,
            feature_extractor_2,
        )
        for name, component in zip(COMPONENTS, given, strict=True):
            if component is not None:
                setattr(self, name, component)
        self.rules, self.with_code, self.chat_template = dict(rules or {}), with_code, chat_template
        for kind, rule in self.rules.items():
            setattr(self, f'{kind}_token', rule['token'])
            setattr(self, f'{kind}_token_id', tokenizer.convert_tokens_to_ids(rule['token']))
        if with_code:
            self.auto_map = {'AutoProcessor': CODE['AutoProcessor']}

    def __call__(
        self,
        images=None,
        text=None,
        videos=None,
        audio=None,
        sampling_rate=None,
        video_metadata=None,
        do_sample_frames=None,
        return_tensors=None,
        **text_arguments,
    ):
        """Returns the ids of texts and the tensors of their media, which stand in the order of their placeholders.

        Videos are arrays of frames `(frames, height, width, 3)`, of which none is left out where they go frame by
        frame. Media of a kind that comes as vectors are arrays `(size,)`. Raises ValueError for a medium of a kind that
        the model does not read, a vector of another size, audio of another rate, and audio that its encoder cannot
        take.
        """
        texts, data = [text] if isinstance(text, str) else list(text), {}
        counts = {}
        unread = _flat if self.rules.get('video', {}).get('vectors') else _videos
        media = {'image': _flat(images), 'video': unread(videos), 'audio': _flat(audio)}
        for kind, items in media.items():
            if items and kind not in self.rules:
                raise ValueError(f'this model reads no {kind}')
            if items and self.rules[kind].get('vectors'):
                counts[kind] = self._vectors(kind, items, data)
        if media['image'] and 'image' not in counts:
            counts['image'] = self._images(media['image'], data)
        if media['video'] and 'video' not in counts:
            counts['video'] = self._videos(media['video'], data)
        if media['audio'] and 'audio' not in counts:
            counts['audio'] = self._audio(media['audio'], sampling_rate, data)
        for kind, numbers in counts.items():
            texts = self._expanded(texts, kind, numbers)
        ids = self.tokenizer(texts, return_tensors=return_tensors, **text_arguments)
        return BatchFeature({**ids, **data}, tensor_type=return_tensors)

    def _vectors(self, kind, vectors, data):
        rule = self.rules[kind]
        rows = [np.asarray(vector, np.float32) for vector in vectors]
        wrong = [row.shape for row in rows if row.shape != (rule['vectors'],)]
        if wrong:
            raise ValueError(f'this model takes {kind} as arrays of {rule["vectors"]} numbers, not of shape {wrong[0]}')
        data[NAMES[kind][0]] = np.stack(rows)
        return [token_count(rule, [1])] * len(rows)

    def _images(self, images, data):
        rule = self.rules['image']
        data['pixel_values'] = self.image_processor(images, return_tensors='pt')['pixel_values']
        if len(rule['encoders']) > 1:
            data['pixel_values_2'] = self.image_processor_2(images, return_tensors='pt')['pixel_values']
        return [token_count(rule, [1] * len(rule['encoders']))] * len(images)

    def _videos(self, videos, data):
        rule = self.rules['video']
        first = vars(self).get('video_processor') or self.image_processor
        if rule['frames'] != 'each':
            picked = [_evenly(video, rule['frames']) for video in videos]
            found = [first(list(frames), return_tensors='pt')['pixel_values'] for frames in picked]
            data['pixel_values_videos'] = np.stack([np.asarray(one).reshape(-1, *one.shape[-3:]) for one in found])
            return [token_count(rule, [1])] * len(videos)
        several = {'pixel_values_videos': first}
        if len(rule['encoders']) > 1:
            several['pixel_values_videos_2'] = self.image_processor_2
        longest = max(len(video) for video in videos)
        for name, processor in several.items():
            rows = [np.asarray(processor(list(video), return_tensors='pt')['pixel_values']) for video in videos]
            data[name] = np.stack([_filled(row, longest) for row in rows])
        data['video_frame_mask'] = np.stack([_filled(np.ones(len(video), np.int64), longest) for video in videos])
        return [token_count(rule, [len(video)] * len(rule['encoders'])) for video in videos]

    def _audio(self, clips, sampling_rate, data):
        rule = self.rules['audio']
        lengths = []
        for ending in ('', '_2')[: len(rule['encoders'])]:
            extractor = vars(self)[f'feature_extractor{ending}']
            if sampling_rate not in (None, extractor.sampling_rate):
                rate = extractor.sampling_rate
                raise ValueError(f'audio has {sampling_rate} samples a second, this model takes {rate}')
            values, mask = _heard(extractor, clips)
            data[f'input_features{ending}'], data[f'feature_attention_mask{ending}'] = values, mask
            lengths.append(mask.sum(-1).tolist())
        return [token_count(rule, own) for own in zip(*lengths, strict=True)]

    def _expanded(self, texts, kind, numbers):
        token, left = self.rules[kind]['token'], iter(numbers)
        written = []
        for text in texts:
            first, *others = text.split(token)
            written.append(first + ''.join(token * next(left, 0) + other for other in others))
        found = sum(text.count(token) for text in texts)
        if found != len(numbers):
            raise ValueError(f'the text has {found} placeholders {token} for {len(numbers)} media')
        return written

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Saves the processor, and its code where it was made `with_code`."""
        super().save_pretrained(save_directory, *args, **kwargs)
        # Of a class out of a checkpoint transformers copies the code itself.
        if self.with_code and self._auto_class is None:
            copy_code(save_directory)

    @property
    def model_input_names(self):
        """Names of what the model takes of this processor."""
        return [*self.tokenizer.model_input_names, *(name for kind in self.rules for name in NAMES[kind])]

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        known, components = processor_dict or {}, []
        for name in COMPONENTS:
            if name == 'tokenizer':
                components.append(cls._load_tokenizer_from_pretrained(name, pretrained_model_name_or_path, **kwargs))
            elif known.get(name) is None:
                components.append(None)
            elif name in ITSELF:
                components.append(ITSELF[name].from_pretrained(pretrained_model_name_or_path, **kwargs))
            else:
                kind = 'feature_extractor' if 'feature_extractor' in name else 'image_processor'
                settings = dict(known[name])
                components.append(cls.get_possibly_dynamic_module(settings[f'{kind}_type'])(**settings))
        return components


NAMES = {
    'image': ('pixel_values', 'pixel_values_2'),
    'video': ('pixel_values_videos', 'pixel_values_videos_2', 'video_frame_mask'),
    'audio': ('input_features', 'feature_attention_mask', 'input_features_2', 'feature_attention_mask_2'),
}


def _heard(extractor, clips):
    """Returns what an extractor makes of clips, and a mask over their time."""
    window = vars(extractor).get('nb_max_samples') or vars(extractor).get('n_samples')
    longest = max(len(clip) for clip in clips)
    if window is not None and longest > window:
        rate = extractor.sampling_rate
        raise ValueError(f'the audio lasts {longest / rate:.1f} s, and its encoder takes {window / rate:g} s at once')
    how = {'sampling_rate': extractor.sampling_rate, 'return_tensors': 'np'}
    if 'nb_max_samples' in vars(extractor):
        values = np.asarray(extractor(clips, **how)['input_features'])
        return values, np.ones((len(clips), 1), np.int64)
    padding = True if window is None else 'max_length'
    outputs = extractor(clips, padding=padding, return_attention_mask=True, **how)
    name = 'input_values' if 'input_values' in outputs else 'input_features'
    return np.asarray(outputs[name]), np.asarray(outputs['attention_mask']).astype(np.int64)


def _filled(rows, length):
    """Returns rows followed by zeros, so many in all."""
    return np.concatenate([rows, np.zeros((length - len(rows), *rows.shape[1:]), rows.dtype)])


def _evenly(video, number):
    """Returns so many frames of a video, evenly over its length; frames come twice where there are fewer."""
    return video[np.linspace(0, len(video) - 1, number).round().astype(int)]


def _flat(media):
    """Returns the media of all texts in one list."""
    if media is None:
        return []
    media = media if isinstance(media, (list, tuple)) else [media]
    return [item for row in media for item in (row if isinstance(row, (list, tuple)) else [row])]


def _videos(videos):
    """Returns the videos of all texts as arrays of frames; a video is an array, or a list of pictures."""
    if videos is None:
        return []
    found = []
    for row in videos if isinstance(videos, (list, tuple)) else [videos]:
        rows = row if isinstance(row, (list, tuple)) and np.ndim(row[0]) > 3 else [row]
        found += [np.stack([np.asarray(frame) for frame in video]) for video in rows]
    return found
