"""Decoding videos: which frames, when they are shown, how large, which way up; from any source."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from align_anything.core.errors import SampleError
from align_anything.core.types import Media, Video
from align_anything.datasets.media import decode, make_media, video
from align_anything.datasets.media.sampling import pick
from tests.datasets.clips import clip, grey, tone

LEVELS = [10 * number for number in range(20)]
CLIP = clip(LEVELS)
"""Two seconds at 10 frames a second; frame i is grey 10 * i."""


WEBM = clip(LEVELS, 'webm', 'libvpx')


def video_of(source: Any, **options: Any) -> Video:
    return decode(make_media('video', source, options=options))


def levels(decoded: Video) -> list[int]:
    """The grey of each frame, to the next ten."""
    return [round(float(frame.mean()) / 10) * 10 for frame in decoded.frames]


def test_every_source_gives_the_same_video(tmp_path: Path) -> None:
    path = tmp_path / 'a.mp4'
    path.write_bytes(CLIP)
    sources = [
        str(path),
        path,
        CLIP,
        bytearray(CLIP),
        {'bytes': CLIP, 'path': None},
        {'bytes': None, 'path': str(path)},
        'data:video/mp4;base64,' + base64.b64encode(CLIP).decode(),
    ]
    for source in sources:
        decoded = video_of(source)
        assert decoded.frames.shape == (4, 48, 64, 3) and decoded.frames.dtype == numpy.uint8
        # Two seconds at 2 frames a second: every fifth frame.
        assert levels(decoded) == [0, 50, 100, 150]
        numpy.testing.assert_allclose(decoded.timestamps, [0, 0.5, 1, 1.5], atol=1e-9)
        assert decoded.fps == pytest.approx(10) and decoded.audio is None
    assert levels(decode(make_media('video', 'a.mp4', str(tmp_path)))) == [0, 50, 100, 150]
    assert video_of(decoded) is decoded


@pytest.mark.parametrize(
    ('kind', 'codec', 'pixels'),
    [
        ('mp4', 'libx264', 'yuv420p'),
        ('mp4', 'libx264', 'yuv444p'),
        ('mp4', 'libx264', 'yuv420p10le'),
        ('mkv', 'ffv1', 'gray'),
        ('mp4', 'mpeg4', 'yuv420p'),
        ('webm', 'libvpx', 'yuv420p'),
        ('webm', 'libvpx-vp9', 'yuv420p'),
        ('mov', 'mjpeg', 'yuvj420p'),
        ('mov', 'prores_ks', 'yuv422p10le'),
        ('mkv', 'ffv1', 'bgr0'),
        ('mkv', 'ffv1', 'yuva420p'),
        ('mkv', 'libx264', 'yuv420p'),
        ('avi', 'mpeg4', 'yuv420p'),
        ('avi', 'rawvideo', 'rgb24'),
        ('ts', 'libx264', 'yuv420p'),
        ('gif', 'gif', 'gray'),
    ],
)
def test_containers_codecs_and_pixel_formats(kind: str, codec: str, pixels: str) -> None:
    content = clip(LEVELS, kind, codec, pixels)
    assert levels(video_of(content)) == [0, 50, 100, 150]
    assert levels(video_of(content, num_frames=20)) == LEVELS


def test_frames_are_in_rgb() -> None:
    red = numpy.zeros((48, 64, 3), numpy.uint8)
    red[..., 0] = 255
    frame = video_of(clip([red] * 10, 'mkv', 'ffv1', 'bgr0')).frames[0]
    assert frame[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        ({'num_frames': 1}, [0]),
        ({'num_frames': 8}, [0, 20, 50, 70, 100, 120, 150, 170]),  # floor(i * 20 / 8)
        ({'num_frames': 500}, LEVELS),
        ({'fps': 5.0}, LEVELS[::2]),
        ({'fps': 100.0}, LEVELS),
        ({'fps': 1.0, 'min_frames': 1}, [0, 100]),
        ({'fps': 1.0, 'min_frames': 4}, [0, 50, 100, 150]),
        ({'fps': 5.0, 'max_frames': 4}, [0, 50, 100, 150]),
        ({'fps': 0.01, 'min_frames': 1}, [0]),
        ({'fps': 5.0, 'num_frames': 2}, [0, 100]),
    ],
)
def test_which_frames_are_taken(options: dict[str, Any], expected: list[int]) -> None:
    decoded = video_of(CLIP, **options)
    assert levels(decoded) == expected
    numpy.testing.assert_allclose(decoded.timestamps, [level / 100 for level in expected], atol=1e-9)


def test_what_a_medium_asks_for_itself_goes_before_the_run() -> None:
    def of(own: dict[str, Any]) -> list[int]:
        run = {'num_frames': 2, 'fps': 2.0, 'min_frames': 1}
        return levels(decode(make_media('video', Media('video', CLIP, own), options=run)))

    assert of({}) == [0, 100]
    assert of({'num_frames': 4}) == [0, 50, 100, 150]
    assert of({'fps': 5}) == LEVELS[::2]
    for bad in (0, -1, 2.5, 'all', True):
        with pytest.raises(SampleError, match='num_frames of the video should be a whole number above 0'):
            of({'num_frames': bad})


def test_variable_frame_rates_go_by_time_not_by_number() -> None:
    # Ten frames in 1.9 s; the fourth is held from 0.3 s to 1.3 s.
    shown = [0, 100, 200, 300, 1300, 1400, 1500, 1600, 1700, 1800]
    for kind in ('mp4', 'mkv'):
        content = clip(LEVELS[:10], kind, milliseconds=shown)
        decoded = video_of(content, num_frames=5)
        # The instants 0, 0.38, 0.76, 1.14 and 1.52 s show frames 0, 3, 3, 3 and 6.
        assert levels(decoded) == [0, 30, 30, 30, 60]
        numpy.testing.assert_allclose(decoded.timestamps, [0, 0.3, 0.76, 1.14, 1.5], atol=2e-3)
        assert decoded.fps == pytest.approx(10 / 1.9, rel=0.01)


def test_times_of_30_frames_a_second_survive_rounding_to_milliseconds() -> None:
    for kind in ('mp4', 'mkv', 'webm'):
        codec = 'libvpx' if kind == 'webm' else 'libx264'
        decoded = video_of(clip([number * 4 for number in range(60)], kind, codec, rate=30), num_frames=20)
        numpy.testing.assert_allclose(decoded.timestamps, numpy.arange(20) * 0.1, atol=1.1e-3)


def test_pick_never_leaves_the_video() -> None:
    random = numpy.random.default_rng(0)
    for _ in range(200):
        times = numpy.cumsum(random.random(random.integers(1, 40))) - 0.01
        times -= times[0]
        duration = times[-1] + random.random() + 1e-3
        picked, shown = pick(times, duration, {'num_frames': int(random.integers(1, 50))})
        assert picked.min() >= 0 and picked.max() < len(times) and (numpy.diff(picked) >= 0).all()
        assert (numpy.diff(shown) > 0).all() and shown[-1] < duration


@pytest.mark.parametrize(('rotation', 'corner'), [(90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1)), (0, (0, 0))])
def test_rotated_recordings_are_upright(rotation: int, corner: tuple[int, int]) -> None:
    picture = grey(0)
    picture[:16, :16] = 255  # the upper left corner as stored
    for kind in ('mp4', 'mov'):
        frame = video_of(clip([picture] * 4, kind, rotation=rotation)).frames[0]
        assert frame.shape == ((64, 48, 3) if abs(rotation) == 90 else (48, 64, 3))
        # Turned counter-clockwise by 90 degrees, the upper left corner becomes the lower left one.
        assert frame[corner].min() > 200
        assert sum(int(frame[y, x].mean() > 128) for y in (0, -1) for x in (0, -1)) == 1


def test_frames_are_scaled_down_to_their_budgets() -> None:
    decoded = video_of(CLIP, num_frames=4, max_frame_pixels=48 * 64 // 4)
    assert decoded.frames.shape == (4, 24, 32, 3)
    # 4 * 48 * 64 pixels with a quarter of the budget: half of each side.
    assert video_of(CLIP, num_frames=4, max_video_pixels=48 * 64).frames.shape == (4, 24, 32, 3)
    assert video_of(CLIP, num_frames=1, max_video_pixels=48 * 64).frames.shape == (1, 48, 64, 3)
    for frame in decoded.frames:
        assert numpy.ptp(frame) <= 2, 'one grey stays one grey'
    turned = video_of(clip([0] * 4, rotation=90), max_frame_pixels=48 * 64 // 4)
    assert turned.frames.shape[1:3] == (32, 24)
    assert video_of(numpy.zeros((4, 48, 64, 3), numpy.uint8), max_frame_pixels=768).frames.shape == (4, 24, 32, 3)


def test_few_frames_of_a_long_video_are_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    content = clip([number % 25 * 10 for number in range(500)], rate=25, keyframes=25)
    decoded_frames = 0
    whole = av.container.InputContainer.decode

    class Counting:
        """Counts what the decoder gives out."""

        def __init__(self, container: Any) -> None:
            self._container = container

        def __enter__(self) -> Counting:
            return self

        def __exit__(self, *error: Any) -> None:
            self._container.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._container, name)

        def decode(self, stream: Any) -> Any:
            nonlocal decoded_frames
            for frame in whole(self._container, stream):
                decoded_frames += 1
                yield frame

    real = video.open_container
    monkeypatch.setattr(video, 'open_container', lambda source, media: Counting(real(source, media)))
    # Twenty seconds, four frames: at 0, 5, 10 and 15 s, each on a keyframe.
    assert levels(video_of(content, num_frames=4)) == [0, 0, 0, 0]
    assert decoded_frames <= 12
    decoded_frames = 0
    assert levels(video_of(content, num_frames=500)) == [number % 25 * 10 for number in range(500)]
    assert decoded_frames == 500


def test_sought_frames_are_those_that_decoding_everything_gives() -> None:
    content = clip([number % 25 * 10 for number in range(100)], rate=25, keyframes=10)
    everything = levels(video_of(content, num_frames=100))
    for number in (3, 7, 13, 33):
        expected = [everything[index * 100 // number] for index in range(number)]
        assert levels(video_of(content, num_frames=number)) == expected


def test_the_audio_track_comes_along_when_asked() -> None:
    second = tone(2.0)
    content = clip(LEVELS, audio=second)
    audio = video_of(content, audio=True, rate=8000).audio
    assert audio is not None and audio.rate == 8000 and abs(len(audio.samples) - 16000) < 1100
    assert video_of(content, audio=False).audio is None
    assert video_of(CLIP, audio=True).audio is None
    cut = video_of(content, audio=True, rate=16000, max_seconds=0.5).audio
    assert cut is not None and len(cut.samples) == 8000


def test_frames_without_a_container(tmp_path: Path) -> None:
    array = numpy.stack([grey(level) for level in LEVELS])
    for index, frame in enumerate(array):
        Image.fromarray(frame).save(tmp_path / f'frame{index}.png')  # frame10 must not come before frame2
    (tmp_path / 'notes.txt').write_text('not a frame')
    paths = [str(tmp_path / f'frame{index}.png') for index in range(20)]
    sources = [
        array,
        array.transpose(0, 3, 1, 2),
        array.astype(numpy.float32) / 255,
        array[..., 0],
        array.tolist(),
        list(array),
        [Image.fromarray(frame) for frame in array],
        paths,
        [{'bytes': None, 'path': path} for path in paths],
        str(tmp_path),
        {'frames': array},
        {'frames': paths},
        {'frames': str(tmp_path)},
    ]
    for source in sources:
        decoded = video_of(source)
        # Sampled at 2 frames a second already, so that all 20 are taken.
        assert levels(decoded) == LEVELS
        numpy.testing.assert_allclose(decoded.timestamps, numpy.arange(20) / 2)
        assert levels(video_of(source, num_frames=4)) == [0, 50, 100, 150]
    # A clock of 10 frames a second makes it two seconds, that is four frames at 2 a second.
    assert levels(video_of({'frames': array, 'fps': 10})) == [0, 50, 100, 150]
    relative = decode(make_media('video', [f'frame{index}.png' for index in range(4)], str(tmp_path)))
    assert levels(relative) == LEVELS[:4]


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        (b'not a clip', 'is damaged or no video of a known format'),
        (CLIP[: len(CLIP) // 2], 'is damaged or no video'),
        (WEBM[: len(WEBM) // 2], 'ends early'),
        (numpy.zeros((4,)), 'is no video'),
        (numpy.zeros((0, 4, 4, 3)), 'has no frames'),
        (numpy.full((2, 4, 4, 3), 300), 'should be 0 to 255'),
        (numpy.full((2, 4, 4, 3), numpy.nan), 'should lie in 0 to 1'),
        ([], 'is no video'),
        ([Image.new('RGB', (2, 2)), Image.new('RGB', (3, 2))], 'frames of different sizes'),
        ([b'junk'], 'is not an image'),
        (3, 'nothing that a video can be made from'),
        ({'frames': None}, 'nothing that a video can be made from'),
        ('/nowhere/a.mp4', 'does not exist'),
    ],
)
def test_bad_sources_say_what_is_wrong(source: Any, message: str) -> None:
    with pytest.raises(SampleError) as caught:
        video_of(source)
    assert message in str(caught.value)


def test_playlists_and_other_addresses_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / 'secret.mp4').write_bytes(CLIP)
    playlist = tmp_path / 'list.m3u8'
    playlist.write_text('#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nsecret.mp4\n#EXT-X-ENDLIST\n')
    (tmp_path / 'list.ffconcat').write_text(f"ffconcat version 1.0\nfile '{tmp_path}/secret.mp4'\n")
    for source in (playlist, tmp_path / 'list.ffconcat', playlist.read_bytes()):
        with pytest.raises(SampleError, match='no video of a known format'):
            video_of(source)
    for source in (f'concat:{tmp_path}/secret.mp4', f'subfile,,start,0,end,0,,:{tmp_path}/secret.mp4'):
        with pytest.raises(SampleError, match='does not exist'):
            video_of(source)


def test_huge_frames_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, 'MAX_PIXELS', 48 * 64 - 1)
    with pytest.raises(SampleError, match='64 x 48 is over 3071 pixels'):
        video_of(io.BytesIO(CLIP).getvalue())
