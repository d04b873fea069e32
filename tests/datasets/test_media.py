"""Decoding images of every kind; broken ones cost their own sample and say why."""

from __future__ import annotations

import base64
import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from align_anything.core.errors import SampleError
from align_anything.core.types import Media
from align_anything.datasets.conversation import bind_media
from align_anything.datasets.media import MAX_PIXELS, decode, decode_conversations, make_media

RED = (255, 0, 0)


def encoded(image: Image.Image, kind: str = 'PNG', **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """Returns a PNG that claims a size without holding its pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')


def noisy(size: int = 64) -> Image.Image:
    return Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=numpy.uint8))


def image_of(source: Any, **options: Any) -> Image.Image:
    return decode(make_media('image', source, options=options))


@pytest.fixture
def red_file(tmp_path: Path) -> Path:
    path = tmp_path / 'red.png'
    path.write_bytes(encoded(Image.new('RGB', (5, 3), RED)))
    return path


def test_every_source_gives_the_same_image(red_file: Path) -> None:
    content = red_file.read_bytes()
    array = numpy.zeros((3, 5, 3), dtype=numpy.uint8)
    array[..., 0] = 255
    sources = [
        str(red_file),
        red_file,
        f'file://{red_file}',
        content,
        bytearray(content),
        {'bytes': content, 'path': None},
        {'bytes': content, 'path': 'gone.png'},
        {'bytes': None, 'path': str(red_file)},
        {'path': str(red_file)},
        'data:image/png;base64,' + base64.b64encode(content).decode(),
        Image.new('RGB', (5, 3), RED),
        Image.open(red_file),
        array,
        array.transpose(2, 0, 1),
        array.tolist(),
        array.astype(numpy.float32) / 255,
        array.astype(numpy.int64),
        array > 0,
        array.astype(numpy.uint16) * 257,
    ]
    for source in sources:
        image = image_of(source)
        assert (image.mode, image.size) == ('RGB', (5, 3)), source
        assert image.getpixel((4, 2)) == RED, source
    relative = decode(make_media('image', 'red.png', str(red_file.parent)))
    assert relative.getpixel((0, 0)) == RED


def with_alpha(mode: str, transparent: Any) -> Image.Image:
    """A red (or dark) pixel beside a transparent one."""
    image = Image.new(mode, (2, 1), transparent)
    image.putpixel((0, 0), (*RED, 255) if mode == 'RGBA' else (0, 255))
    return image


def palette(transparency: int | None) -> bytes:
    image = Image.new('P', (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    return encoded(image, **({} if transparency is None else {'transparency': transparency}))


@pytest.mark.parametrize(
    ('source', 'left', 'right'),
    [
        (encoded(Image.new('L', (2, 1), 128)), (128, 128, 128), (128, 128, 128)),
        (encoded(Image.new('1', (2, 1), 1)), (255, 255, 255), (255, 255, 255)),
        (encoded(with_alpha('RGBA', (0, 0, 0, 0))), RED, (255, 255, 255)),
        (encoded(with_alpha('LA', (0, 0))), (0, 0, 0), (255, 255, 255)),
        (palette(None), RED, (0, 0, 255)),
        (palette(1), RED, (255, 255, 255)),
        (encoded(Image.new('RGB', (2, 1), RED), transparency=RED), (255, 255, 255), (255, 255, 255)),
        (encoded(Image.new('CMYK', (2, 1), (0, 0, 0, 0)), 'TIFF'), (255, 255, 255), (255, 255, 255)),
        # 16 bit: 65535 is white and 32896 = 128 * 257 is 128; clipping would make both white.
        (encoded(Image.fromarray(numpy.array([[65535, 32896]], dtype=numpy.uint16))), (255,) * 3, (128,) * 3),
        (Image.fromarray(numpy.array([[65535, 32896]], dtype=numpy.int32)), (255,) * 3, (128,) * 3),
        (numpy.array([[0, 128]], dtype=numpy.uint8), (0, 0, 0), (128, 128, 128)),
        (numpy.array([[[0], [128]]], dtype=numpy.uint8), (0, 0, 0), (128, 128, 128)),
        (numpy.array([[[255, 0, 0, 255], [0, 0, 0, 0]]], dtype=numpy.uint8), RED, (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb_on_white(source: Any, left: tuple, right: tuple) -> None:
    image = image_of(source)
    assert image.mode == 'RGB'
    assert (image.getpixel((0, 0)), image.getpixel((1, 0))) == (left, right)


def test_cmyk_jpeg() -> None:
    image = image_of(encoded(Image.new('CMYK', (8, 8), (0, 255, 255, 0)), 'JPEG', quality=100))
    assert image.mode == 'RGB'
    red, green, blue = image.getpixel((4, 4))
    assert red > 240 and green < 15 and blue < 15


def test_exif_orientation_is_applied() -> None:
    picture = Image.new('RGB', (4, 2), 'blue')
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was turned: shown upright, width and height change places
    assert image_of(encoded(picture, 'JPEG', exif=exif)).size == (2, 4)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new('RGB', (2, 2), color) for color in ('red', 'blue')]
    image = image_of(encoded(frames[0], 'GIF', save_all=True, append_images=frames[1:]))
    assert image.getpixel((0, 0)) == RED


def test_one_pixel_is_an_image() -> None:
    assert image_of(encoded(Image.new('RGB', (1, 1), RED))).size == (1, 1)


def test_the_callers_image_stays_as_it_was() -> None:
    source = Image.new('RGB', (2, 2), RED)
    decoded = image_of(source)
    decoded.putpixel((0, 0), (0, 0, 0))
    assert source.getpixel((0, 0)) == RED


BROKEN = [
    ('empty.png', b'', 'is empty (0 bytes)'),
    ('text.png', b'not an image', 'is not an image'),
    ('page.jpg', b'<html>404</html>', 'is not an image'),
    ('cut.png', encoded(noisy())[:3000], 'cannot be decoded'),
    ('cut.jpg', encoded(noisy(), 'JPEG')[:900], 'cannot be decoded'),
    ('cut.gif', encoded(noisy(), 'GIF')[:900], 'cannot be decoded'),
    ('cut.webp', encoded(noisy(), 'WEBP')[:200], 'cannot be decoded'),
    ('header.png', encoded(noisy())[:20], ''),
    ('flipped.png', encoded(noisy())[:60] + b'\0' * 500 + encoded(noisy())[560:], 'cannot be decoded'),
    ('huge.png', png_of_size(20000, 10000), 'is too large'),
    ('bomb.png', png_of_size(60000, 60000), 'is too large'),
    ('nothing.png', png_of_size(0, 5), ''),
    ('float.tiff', encoded(Image.new('F', (2, 2)), 'TIFF'), 'float pixels'),
]


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize(('name', 'content', 'message'), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_broken_files_name_themselves_and_the_reason(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SampleError) as caught:
        image_of(path)
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=f"image '{tmp_path}' is a folder"):
        image_of(tmp_path)
    with pytest.raises(SampleError, match="gone.png' does not exist"):
        image_of(tmp_path / 'gone.png')
    closed = Image.open(io.BytesIO(encoded(noisy())))
    closed.close()
    with pytest.raises(SampleError, match='cannot be decoded'):
        image_of(closed)


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('data:image/png;base64,@', 'broken base64'),
        ('data:image/png,plain', 'no base64 data URI'),
        ('data:image/png;base64,', 'is empty (0 bytes)'),
        ({'bytes': b'', 'path': 'a.png'}, "image 'a.png' is empty (0 bytes)"),
        ({'bytes': b'junk', 'path': None}, 'image of 4 bytes is not an image'),
        ({'array': [1.0], 'sampling_rate': 16000}, 'nothing that an image can be made from'),
        (object(), 'image (object) is nothing that'),
        (3, 'image (int) is nothing that'),
        ([], 'is no image'),
        (numpy.zeros((2, 2, 2), dtype=numpy.uint8), 'shape (2, 2, 2) is no image'),
        (numpy.zeros((4,), dtype=numpy.uint8), 'shape (4,) is no image'),
        (numpy.full((2, 2), 300), 'should be 0 to 255'),
        (numpy.full((2, 2), -1), 'should be 0 to 255'),
        (numpy.full((2, 2), 16.0), 'should lie in 0 to 1'),
        (numpy.full((2, 2), numpy.nan), 'should lie in 0 to 1'),
        (numpy.full((2, 2), 'a'), 'cannot be decoded'),
        (Image.new('RGB', (0, 0)), 'has no pixels'),
    ],
)
def test_bad_sources_say_what_is_wrong(source: Any, message: str) -> None:
    with pytest.raises(SampleError) as caught:
        image_of(source)
    assert message in str(caught.value)


def test_max_pixels_is_an_option() -> None:
    picture = encoded(Image.new('RGB', (10, 10)))
    assert image_of(picture, max_pixels=100).size == (10, 10)
    with pytest.raises(SampleError, match='10 x 10 is over 99 pixels'):
        image_of(picture, max_pixels=99)
    assert MAX_PIXELS == 8192 * 8192


def test_decode_conversation_leaves_the_lazy_one_alone(red_file: Path) -> None:
    turns = [{'role': 'user', 'content': '<image>\nHi'}, {'role': 'assistant', 'content': 'Yes.'}]
    lazy = bind_media(turns, {'image': red_file.name}, {'image': str(red_file.parent)})
    lazy = pickle.loads(pickle.dumps(lazy))
    (decoded,) = decode_conversations([lazy])
    assert isinstance(lazy[0]['content'][0]['image'], Media)
    shown, text = decoded[0]['content']
    assert shown['type'] == 'image' and shown['image'].getpixel((0, 0)) == RED
    assert text == {'type': 'text', 'text': 'Hi'} and decoded[1] == lazy[1]
    assert decode_conversations([decoded]) == [decoded]
