"""Stand-in for the processors of MiniCPM-V and MiniCPM-o: one text with its media at a time."""

import math
import re

import torch
from transformers import BatchFeature, ProcessorMixin


class MiniCPMVProcessor(ProcessorMixin):
    attributes = ['image_processor', 'tokenizer']
    image_processor_class = 'AutoImageProcessor'
    tokenizer_class = 'AutoTokenizer'

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(self, text, images=None, audios=None, **kwargs):
        images = [[] for _ in text] if images is None else images
        found = self.image_processor(images)
        features, lengths, sounds = self.audio_feature_extract(audios) if audios else ([], [], [[] for _ in text])
        (text,) = text
        for number, size in enumerate(found['image_sizes'][0]):
            written = self.image_processor.get_slice_image_placeholder(size, number)
            text = text.replace('(<image>./</image>)', written, 1)
        for written in sounds[0]:
            text = text.replace('(<audio>./</audio>)', written, 1)
        ids = torch.tensor(self.tokenizer.encode(text))
        data = {**found, 'input_ids': ids[None], 'image_bound': [self.bounds(ids, r'<image>|<slice>')]}
        data |= {'audio_features': features, 'audio_feature_lens': lengths}
        return BatchFeature({**data, 'audio_bounds': [self.bounds(ids, r'<\|audio_start\|>')]})

    def bounds(self, ids, opening):
        tokens = self.tokenizer.convert_ids_to_tokens(ids.tolist())
        starts = [place + 1 for place, token in enumerate(tokens) if re.fullmatch(opening, token)]
        return torch.tensor(
            [(start, next(p for p in range(start, len(tokens)) if tokens[p] != '<unk>')) for start in starts]
        ).reshape(-1, 2)


class MiniCPMOProcessor(MiniCPMVProcessor):
    attributes = ['image_processor', 'feature_extractor', 'tokenizer']
    feature_extractor_class = 'WhisperFeatureExtractor'

    def __init__(self, image_processor=None, feature_extractor=None, tokenizer=None, **kwargs):
        ProcessorMixin.__init__(self, image_processor, feature_extractor, tokenizer, **kwargs)

    def audio_feature_extract(self, audios, audio_parts=None, chunk_input=False, sampling_rate=16000):
        features, lengths, written = [], [], []
        for row in audios:
            found = self.feature_extractor(
                row, sampling_rate=sampling_rate, return_attention_mask=True, return_tensors='pt'
            )
            lengths.append(found['attention_mask'].sum(dim=1))
            features.extend(f[:, :n].T for f, n in zip(found['input_features'], lengths[-1], strict=True))
            frames = [math.ceil(len(sound) / self.feature_extractor.hop_length) for sound in row]
            numbers = [((count - 1) // 2 + 1 - 2) // 2 + 1 for count in frames]
            written.append(['<|audio_start|>' + '<unk>' * number + '<|audio_end|>' for number in numbers])
        padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
        return padded.permute(0, 2, 1), lengths, written
