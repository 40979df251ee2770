"""The tracks of video files: what of them can be read, what can be copied, and which encoder writes new ones."""

from __future__ import annotations

import io
import os
import re
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from console import UserError
from images.files import MAX_PIXELS
from photos.frames import Colours

ENCODERS = {
    "h264": "libx264", "hevc": "libx265", "prores": "prores_ks", "vp8": "libvpx", "vp9": "libvpx-vp9",
    "av1": "libsvtav1",
}  # fmt: skip
# Videos with other codecs, or whose encoder is not installed, are written with the first of these that opens. The keys
# are the bits of a channel.
WEBM_ENCODERS = {8: ("libvpx-vp9",), 10: ("libsvtav1",)}
MP4_ENCODERS = {8: ("libx264",), 10: ("libx265", "libx264")}
CRF = "18"  # At this constant rate factor the loss is hardly visible.
# Encoders look ahead at this many frames, whose pixels they keep in memory; HEVC needs a few. 20 is libx265's default.
MIN_QUEUE, MAX_QUEUE, QUEUED_PIXELS = 8, 20, 60_000_000
STATED_LENGTH = re.compile(r"(\d{1,5}):(\d\d):(\d\d(?:\.\d{1,12})?)")  # hours, minutes and seconds
MAX_RATE = 240  # SVT-AV1 refuses more frames a second than this; time stamps say more exactly when a frame is shown.


# --- Reading


def open_video(source: Path) -> Any:
    """Open a video to read it. Text that is not UTF-8 is no reason to fail, and absurd sizes no reason to allocate."""
    import av

    return av.open(str(source.absolute()), options={"max_pixels": str(MAX_PIXELS)}, metadata_errors="replace")


def find_video(reader: Any) -> Any:
    """The first video track of a file that is not a picture of its cover, and can be decoded.

    Raises:
        UserError: there is none, or its frames are too large.
    """
    videos = [stream for stream in reader.streams.video if not _is_cover(stream)]
    video = next((stream for stream in videos if stream.codec_context is not None), None)
    if video is None:
        raise UserError(
            "not a readable video: its codec is unknown" if videos else "not a video: it has no video track"
        )
    width, height = video.codec_context.width, video.codec_context.height
    if width * height > MAX_PIXELS:
        raise UserError(f"too large: {width}x{height} px, over {MAX_PIXELS} pixels")
    video.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return video


def _is_cover(stream: Any) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


def read_first(source: Path) -> Any:
    """The first frame of a video that can be read; UserError if there is none."""
    with open_video(source) as reader:
        error: Exception | None = None
        for part in read_parts(reader, find_video(reader)):
            if not isinstance(part, Exception):
                return part
            error = part
    raise UserError(f"not one frame can be read: {getattr(error, 'strerror', None) or 'there are none'}")


def read_parts(reader: Any, video: Any, *others: Any) -> Iterator[Any]:
    """The frames of a video and the packets of other tracks, as they come, and an error in place of each lost frame."""
    import av

    num_packets = num_unused = num_frames = num_errors = 0
    # AVI files say when a packet is to be decoded, and FFmpeg believes that its frame is to be shown then.
    stamps: deque[int | None] = deque()
    progress = True
    while progress:  # Some formats can go on reading after an error.
        progress = False
        try:
            for packet in reader.demux(video, *others):
                progress = True
                if packet.stream_index != video.index:
                    if packet.dts is not None:  # An empty packet without a time stamp ends each track.
                        yield packet
                elif packet.size:
                    num_packets += 1
                    num_unused += packet.is_discard  # An edit list hides the frame, but others are built upon it.
                    if reader.format.name == "avi":
                        stamps.append(packet.dts)
                    frames, errors = _decode(video, packet, stamps)
                    num_frames, num_errors = num_frames + len(frames), num_errors + len(errors)
                    yield from (*frames, *errors)
            break
        except av.FFmpegError as error:
            num_errors += 1
            yield error
    frames, errors = _decode(video, None, stamps)
    yield from (*frames, *errors)
    num_frames, num_errors = num_frames + len(frames), num_errors + len(errors)
    # One damaged frame takes those with it that are built upon it, and a file that was cut off lacks the last ones.
    num_expected = max(num_packets, len(video.index_entries))
    if num_errors or num_packets < num_expected:
        yield from [EOFError("missing")] * (num_expected - num_unused - num_frames - num_errors)


def _decode(video: Any, packet: Any, stamps: deque[int | None]) -> tuple[list[Any], list[Exception]]:
    """The frames that a packet completes, and errors if it is damaged; None as a packet completes the last frames.

    The frames get the first of the time stamps, if there are any.
    """
    import av

    try:
        frames = list(video.decode(packet))
    except av.FFmpegError as error:
        return [], [error]
    for frame in frames:
        if stamps:
            frame.pts = stamps.popleft()
    return frames, []


def missing_seconds(video: Any, end: float, *, others_end: float, num_damaged: int) -> float:
    """How much of a video is missing at its end: a file that was cut off still states the length that it had.

    Args:
        video: the track. Matroska states its length in a text, AVI its number of frames, Flash Video that of the file.
        end: when the last frame that could be read ends, s.
        others_end: when the last packet of the other tracks ends, s.
        num_damaged: how many frames are known to be lost, which may be the last ones.

    Returns:
        The seconds that are missing; 0 if that is no more than a frame, or if the file does not state its length.
    """
    import av

    rate = float(video.average_rate or video.guessed_rate or 0)
    stated = 0.0
    if match := STATED_LENGTH.fullmatch(video.metadata.get("DURATION", "")):
        stated = 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3])
    elif video.container.format.name == "avi" and rate:
        stated = video.frames / rate
    elif video.container.format.name == "flv":
        stated, end = (video.container.duration or 0) / av.time_base, max(end, others_end)
    missing = stated - end
    return missing if rate and missing > (num_damaged + 1.5) / rate else 0.0


# --- The other tracks


def sort_tracks(source: Path, container: str) -> tuple[list[int], list[str]]:
    """The indices of the tracks to copy, which are sound and subtitles, and the names of those to leave out."""
    copied, left_out, numbers = [], [], Counter[str]()
    with open_video(source) as reader:
        video = find_video(reader)
        if _is_transparent(video):
            left_out.append("transparency")
        tracks = [(stream.index, stream.type, _is_cover(stream)) for stream in reader.streams if stream is not video]
    numbers["video"] = 1
    for index, kind, is_cover in tracks:
        if is_cover:
            left_out.append("cover picture")
            continue
        numbers[kind] += 1
        obstacle = _find_obstacle(source, index, container) if kind in ("audio", "subtitle") else ""
        if obstacle is None:
            copied.append(index)
        else:
            left_out.append(f"{kind} track {numbers[kind]}{obstacle and f' ({obstacle})'}")
    return copied, left_out


def _is_transparent(video: Any) -> bool:
    """Whether a video has transparent areas: its pixels have a fourth value, or WebM stores it beside them."""
    format = video.codec_context.format
    return video.metadata.get("alpha_mode") == "1" or (format is not None and len(format.components) in (2, 4))


def _find_obstacle(source: Path, index: int, container: str) -> str | None:
    """Why a track cannot be copied into a container; None if it can.

    The first packet is copied into a file in memory, since some containers refuse only the packets, or the end.
    """
    import av

    with open_video(source) as reader:
        track = reader.streams[index]
        if track.codec_context is None:
            return "unknown codec"
        try:
            packet = next((packet for packet in reader.demux(track) if packet.dts is not None), None)
            if packet is None:
                return "empty"
            with create_video(io.BytesIO(), container) as trial:
                packet.stream = add_copy(trial, track)
                trial.mux(packet)
        except (av.FFmpegError, ValueError):
            return f"{track.codec_context.codec.canonical_name} does not fit into {container}"
    return None


# --- Writing


@contextmanager
def create_video(target: Path | io.BytesIO, container: str, *, comment: str = "") -> Iterator[Any]:
    """Open a file to write, with a comment in its metadata.

    An error while it is written stays the error, even if the file cannot be closed then.
    """
    import av

    file = target if isinstance(target, io.BytesIO) else str(target.absolute())
    writer = av.open(file, "w", format=container, options={"strict": "experimental"})
    if comment:
        writer.metadata["comment"] = comment
    try:
        yield writer
    except BaseException:
        with suppress(av.FFmpegError):
            writer.close()
        raise
    writer.close()


@dataclass(frozen=True)
class Look:
    """How new frames are written.

    Attributes:
        width: of the frames, px.
        height: of the frames, px.
        shape: width divided by height of a pixel.
        colours: see there.
        deep: 8 bits a channel are too few.
        hdr_options: for libx265, the light of the screen and of the video, where HDR says so.
    """

    width: int
    height: int
    shape: Fraction
    colours: Colours
    deep: bool
    hdr_options: str


def add_encoder(writer: Any, video: Any, look: Look) -> Any:
    """Add a track in place of another, with the first of the possible encoders that opens.

    Raises:
        UserError: none opens; the frames may be too large for all.
    """
    import av

    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 prints all its settings otherwise.
    container = writer.format.name
    for name, format in _encoders(video, container, look.deep):
        try:
            with create_video(io.BytesIO(), container) as trial:
                _add_video(trial, video, look, name=name, format=format).codec_context.open()
        except (av.FFmpegError, ValueError):  # It is not installed, or not for this container, size or pixel format.
            continue
        return _add_video(writer, video, look, name=name, format=format)
    raise UserError(f"no encoder writes {look.width}x{look.height} px into {container} files")


def _encoders(video: Any, container: str, deep: bool) -> Iterator[tuple[str, str]]:
    """Names of encoders and pixel formats, the best first: as deep as the source, with its codec and its format."""
    own = ENCODERS.get(video.codec_context.codec.canonical_name)
    others = WEBM_ENCODERS if container == "webm" else MP4_ENCODERS
    own_format = (video.codec_context.pix_fmt or "").replace("yuvj", "yuv")
    for bits in (10, 8) if deep else (8,):
        depth = "10le" if bits == 10 else ""
        if own and own_format.startswith("yuv4"):
            yield own, own_format
        for name in filter(None, (own, *others[bits])):
            yield name, f"yuv420p{depth}"
            yield name, f"yuv444p{depth}"  # Some codecs cannot halve the colour planes of videos with odd sides.


def _add_video(writer: Any, video: Any, look: Look, *, name: str, format: str) -> Any:
    """Add a track with the frame rate and time base of another; ValueError if the encoder does not fit."""
    import av
    from av.codec.context import Flags

    if format not in [known.name for known in av.Codec(name, "w").video_formats or ()]:
        raise ValueError(f"{name} does not know {format}")
    rate = video.average_rate or video.guessed_rate
    track = writer.add_stream(name, rate=min(rate, MAX_RATE) if rate else None)
    encoder = track.codec_context
    encoder.options = _options(look)
    encoder.width, encoder.height, encoder.pix_fmt = look.width, look.height, format
    encoder.time_base = video.time_base
    if look.shape != 1:
        encoder.sample_aspect_ratio = look.shape
    encoder.flags |= Flags.frame_duration  # so that the last frame, too, is shown as long as before
    encoder.colorspace, encoder.color_range = look.colours.matrix, look.colours.range
    encoder.color_primaries, encoder.color_trc = look.colours.primaries, look.colours.transfer
    if name == "libx265" and writer.format.name in ("mp4", "mov"):
        encoder.codec_tag = "hvc1"  # QuickTime, Photos and Safari do not play the other kind, hev1.
    return track


def _options(look: Look) -> dict[str, str]:
    """What the encoders are told; each ignores the others' options. Large frames are queued in small numbers."""
    queue = max(MIN_QUEUE, min(MAX_QUEUE, QUEUED_PIXELS // (look.width * look.height)))
    return {
        "crf": CRF,
        "rc-lookahead": str(queue),
        "lag-in-frames": str(queue),
        "x265-params": f"log-level=error:rc-lookahead={queue}{look.hdr_options}",
    }


def add_copy(writer: Any, track: Any) -> Any:
    """Add a track for copies of another's packets, with its language."""
    copy = writer.add_stream_from_template(track)
    copy.disposition = track.disposition
    if track.language:
        copy.metadata["language"] = track.language
    return copy
