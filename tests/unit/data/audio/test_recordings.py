"""Recordings are decoded, resampled and joined as they say, and what cannot be is named."""

import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from sounds import content, cut, tone, write_tone

from flame.data.audio.decoding import AudioError, blocks, read_header
from flame.data.audio.recording import Part, Recording, join
from flame.errors import DataError


def recording(path, start: float = 0.0, stop: float | None = None) -> Recording:
    return Recording((Part(str(path), start, stop),))


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_every_format_and_rate_gives_the_same_sound(tmp_path, suffix, rate):
    path = write_tone(tmp_path / f"a.{suffix}", 1.0, rate)
    audio = recording(path).load(16000)
    assert audio.dtype == np.float32 and audio.shape == (16000,)
    error = (audio - tone(1.0, 16000))[800:-800]
    assert np.abs(error).max() < (0.05 if suffix in ("ogg", "mp3") else 0.001)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "PCM_U8", "FLOAT", "DOUBLE", "ULAW"])
def test_integer_and_floating_samples_are_scaled_alike(tmp_path, subtype):
    path = write_tone(tmp_path / "a.wav", subtype=subtype)
    assert np.abs(recording(path).load(16000) - tone(0.5, 16000)).max() < 0.02


def test_opus_is_read_too(tmp_path):
    soundfile.write(tmp_path / "a.opus", tone(1.0, 48000), 48000, format="OGG", subtype="OPUS")
    audio = recording(tmp_path / "a.opus").load(16000)
    assert len(audio) == 16000 and np.abs(audio - tone(1.0, 16000))[800:-800].max() < 0.1


def test_what_workers_import_is_light():
    modules = ("audio_source", "augment", "cache", "recording", "rows")
    program = f"import sys, {', '.join(f'flame.data.audio.{module}' for module in modules)}"
    heavy = "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", f"{program}; {heavy}"], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_channels_are_averaged(tmp_path):
    left, right = tone(0.5, 16000), tone(0.5, 16000, 330)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(recording(tmp_path / "a.wav").load(16000), (left + right) / 2, atol=1e-6)


def test_what_is_too_loud_or_silent_is_left_as_it_is(tmp_path):
    soundfile.write(tmp_path / "loud.wav", 5 * tone(0.5, 16000), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 16000)
    assert recording(tmp_path / "loud.wav").load(16000).max() > 1.5
    assert not recording(tmp_path / "silent.wav").load(16000).any()


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_segment_is_that_part_of_the_whole(tmp_path, suffix):
    path = write_tone(tmp_path / f"a.{suffix}", 20, 16000)
    whole = recording(path).load(16000)
    segment = recording(path, 9.9, 11.2)
    np.testing.assert_allclose(segment.load(16000), whole[158400:179200], atol=1e-4)
    assert segment.duration == pytest.approx(1.3)


def test_parts_are_joined_with_silence_between(tmp_path):
    first, second = write_tone(tmp_path / "a.wav", 0.5, 8000), write_tone(tmp_path / "b.flac", 0.25, 16000)
    joined = Recording((Part(str(first)), Part(str(second)), Part("memory", 0.1, None, content(0.3))), (0.1, 0.0))
    assert joined.duration == pytest.approx(0.5 + 0.1 + 0.25 + 0.2)
    audio = joined.load(16000)
    assert len(audio) == round(16000 * joined.duration)
    assert not audio[8000:9600].any()
    np.testing.assert_array_equal(audio[9600:13600], recording(second).load(16000))
    assert join([joined, joined], [1.0]).silences == (0.1, 0.0, 1.0, 0.1, 0.0)


def test_recordings_travel_and_their_keys_change_with_what_is_heard(tmp_path):
    path = write_tone(tmp_path / "a.wav")
    one = recording(path)
    assert pickle.loads(pickle.dumps(one)) == one and len(one.key) == 32 and one.key == recording(path).key
    others = {recording(path, 0.1).key, recording(path, 0.1, 0.2).key, join([one, one], [0.1]).key}
    others |= {join([one, one], [0.2]).key, Recording((Part("a", data=path.read_bytes()),)).key}
    write_tone(path, 0.6)
    others.add(recording(path).key)
    assert len(others) == 6 and one.key in others  # the file has changed: what was one's is the last's now


@pytest.mark.parametrize(
    "suffix, share",
    [("wav", 0.5), ("flac", 0.5), ("ogg", 0.5), ("mp3", 0.5), ("wav", 0.99), ("ogg", 0.95)]
    + [("aiff", 0.7), ("au", 0.7), ("w64", 0.7)],
)
def test_a_truncated_file_is_named(tmp_path, suffix, share):
    path = cut(write_tone(tmp_path / f"a.{suffix}", 20), share)
    with pytest.raises(AudioError, match=r"a\.\w+: truncated audio \(.*\): mend the file, or leave it out"):
        recording(path).load(16000)
    with pytest.raises(AudioError, match="truncated audio"):
        list(blocks(str(path), 16000, 1.0))


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_wave_file_written_to_a_pipe_is_whole(tmp_path, size):
    path = write_tone(tmp_path / "a.wav")
    data = bytearray(path.read_bytes())
    place = data.find(b"data")
    data[place + 4 : place + 8] = struct.pack("<I", size)
    path.write_bytes(data)
    assert len(recording(path).load(16000)) == 8000


def test_a_flac_file_that_does_not_tell_its_length_is_counted(tmp_path):
    path = write_tone(tmp_path / "a.flac")
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = b"\0\0\0\0"
    path.write_bytes(data)
    assert recording(path).duration == 0.5 and len(recording(path).load(16000)) == 8000
    np.testing.assert_array_equal(recording(path, 0.2, 0.3).load(16000), recording(path).load(16000)[3200:4800])
    assert sum(map(len, blocks(str(path), 16000, 0.1))) == 8000


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
def test_damage_anywhere_gives_audio_or_a_named_fault(tmp_path, suffix):
    rng = np.random.default_rng(0)
    whole = write_tone(tmp_path / f"a.{suffix}", 0.5).read_bytes()
    for turn in range(60):
        data = bytearray(whole)
        for place in rng.integers(0, len(data) if turn % 2 else 200, 5):
            data[place] = rng.integers(256)
        (tmp_path / f"a.{suffix}").write_bytes(data)
        for part in (Part(str(tmp_path / f"a.{suffix}")), Part(str(tmp_path / f"a.{suffix}"), 0.1, 0.3)):
            try:
                assert np.isfinite(Recording((part,)).load(16000)).all()
            except AudioError as error:
                assert error.reason and "\n" not in str(error)


def test_a_header_that_claims_the_impossible_is_named(tmp_path):
    path = write_tone(tmp_path / "a.flac")
    data = bytearray(path.read_bytes())
    data[21] |= 0x07  # the upper bits of the number of samples
    path.write_bytes(data)
    with pytest.raises(AudioError, match="frames cannot be in"):
        _ = recording(path).duration


def test_what_is_no_audio_or_empty_or_missing_is_named(tmp_path):
    (tmp_path / "text.wav").write_bytes(b"no audio at all" * 100)
    (tmp_path / "nothing.wav").touch()
    (tmp_path / "data.raw").write_bytes(b"\1" * 1000)
    soundfile.write(tmp_path / "no_samples.wav", np.zeros(0), 16000)
    for name, reason in [
        ("text.wav", "not an audio file"),
        ("data.raw", "not an audio file"),
        ("nothing.wav", "empty audio"),
        ("no_samples.wav", "empty audio"),
        ("missing.wav", "unreadable audio"),
        ("", "unreadable audio"),
    ]:
        with pytest.raises(AudioError, match=reason) as caught:
            recording(tmp_path / name).load(16000)
        assert caught.value.reason == reason and "\n" not in str(caught.value)
        with pytest.raises(AudioError, match=reason):
            _ = recording(tmp_path / name).duration
    with pytest.raises(AudioError, match="empty audio"):
        read_header(b"", "memory")


def test_an_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(AudioError("empty audio", "a.wav", "0 bytes")))
    assert str(error) == "a.wav: empty audio (0 bytes): mend the file, or leave it out"
    assert str(error.bad_row("list.jsonl, row 3")) == "list.jsonl, row 3: empty audio (a.wav: 0 bytes)"


@pytest.mark.parametrize("rate", [1, 2_000_000])
def test_a_rate_that_nothing_is_recorded_at_is_named(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(0.5, 16000), rate)
    with pytest.raises(AudioError, match="impossible sample rate"):
        recording(tmp_path / "a.wav").load(16000)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_named_with_their_place(tmp_path, value):
    audio = tone(0.5, 16000)
    audio[1234:1237] = value
    soundfile.write(tmp_path / "a.wav", audio, 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"NaN or infinity in the audio \(3 samples, frame 1,234 first\)"):
        recording(tmp_path / "a.wav").load(16000)
    assert len(recording(tmp_path / "a.wav", 0.1).load(16000)) == 6400


@pytest.mark.parametrize("start, stop", [(0.6, None), (0.5, None), (-1.0, None), (0.0, 0.7), (0.3, 0.3), (0.3, 0.2)])
def test_a_segment_outside_its_file_is_named(tmp_path, start, stop):
    path = write_tone(tmp_path / "a.wav")
    for attempt in (lambda: recording(path, start, stop).load(16000), lambda: recording(path, start, stop).duration):
        with pytest.raises(AudioError, match="segment"):
            attempt()


def test_a_segment_may_end_a_little_after_its_file(tmp_path):
    path = write_tone(tmp_path / "a.wav")
    assert len(recording(path, 0.0, 0.504).load(16000)) == 8000 and recording(path, 0.0, 0.504).duration == 0.5


def test_a_recording_needs_a_silence_between_each_two_parts():
    with pytest.raises(DataError, match="2 parts with 0 silences"):
        Recording((Part("a"), Part("b")))
    with pytest.raises(DataError, match="-1"):
        Recording((Part("a"), Part("b")), (-1.0,))


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("seconds", [0.3, 1.0, 100.0])
def test_blocks_join_to_the_whole(tmp_path, rate, seconds):
    path = write_tone(tmp_path / "a.flac", 5.1234, rate)
    pieces = list(blocks(str(path), 16000, seconds))
    whole = recording(path).load(16000)
    assert sum(map(len, pieces)) == len(whole) and (len(pieces) > 3) == (seconds < 2)
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-4)


def test_two_hours_are_read_in_pieces(tmp_path):
    path = tmp_path / "long.flac"
    minute = tone(60, 4000)
    with soundfile.SoundFile(path, "w", 4000, 1) as file:
        for _ in range(120):
            file.write(minute)
    assert recording(path).duration == 7200
    np.testing.assert_allclose(recording(path, 6000.5, 6002).load(4000), minute[2000:8000], atol=1e-4)
    assert sum(len(block) for block in blocks(str(path), 2000, 60)) == 7200 * 2000
