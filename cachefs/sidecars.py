"""Which files of a folder go with a video: subtitles, audio tracks, ``.nfo`` and artwork of the same stem.

Called by planning, with the names it has listed, and by the planner, with the names in the cache. Pure: knows names,
never touches a disk. A name belongs to the video with the longest stem that fits, so that ``Film.Extended.srt`` is
``Film.Extended.mkv``'s where that exists, and ``Film.mkv``'s where it does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


VIDEO_EXTENSIONS = _words(
    "3gp asf avi divx flv m2ts m4v mk3d mkv mov mp4 mpeg mpg mts ogm ogv rm rmvb ts vob webm wmv wtv"
)
SUBTITLE_EXTENSIONS = _words("ass dfxp idx mks psb sbv smi srt ssa sub sup ttml usf vtt")
AUDIO_EXTENSIONS = _words("aac ac3 dts dtshd eac3 ec3 flac m4a mka mp2 mp3 ogg opus thd truehd wav")
ARTWORK_EXTENSIONS = _words("bmp gif jpeg jpg png tbn webp")

_TAGGED_EXTENSIONS = SUBTITLE_EXTENSIONS | AUDIO_EXTENSIONS | {"nfo"}
"""Between the stem and these, anything may stand: ``.en``, ``.en.forced``, ``.pt-BR.sdh``, ``.5.1``."""
_ARTWORK_ROLE = re.compile(
    r"-(thumb|poster|fanart|landscape|banner|backdrop|background|cover|folder|keyart|logo|clearlogo|clearart"
    r"|characterart|disc|discart|square)\d*",
    re.IGNORECASE,
)
_EXTRA = re.compile(
    r"(^|[-. _])(sample|trailer|featurette|behindthescenes|deleted|interview|scene|short|other)$", re.IGNORECASE
)
_SUBTITLE_FOLDERS = frozenset({"sub", "subs", "subtitle", "subtitles"})


def is_video(name: str) -> bool:
    """Whether the name's extension is a video's."""
    return _split(name)[1] in VIDEO_EXTENSIONS


def sidecars_of(video_name: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names of the video's own folder that go with it, in their order; ``names`` may hold the video itself."""
    stem = _split(video_name)[0]
    ours = [name for name in names if _fits(name, stem)]
    rivals = [other for other in _stems(names) if len(other) > len(stem) and other.startswith(stem)]
    return tuple(name for name in ours if not any(_fits(name, rival) for rival in rivals))


def videos_of(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """The videos among ``names`` that ``name`` goes with: none, one, or several versions of the same stem."""
    fitting = [other for other in names if is_video(other) and _fits(name, _split(other)[0])]
    longest = max((len(_split(video)[0]) for video in fitting), default=0)
    return tuple(video for video in fitting if len(_split(video)[0]) == longest)


def subtitle_folders(video_name: str, names: Iterable[str]) -> tuple[str, ...]:
    """Which of these folder names hold subtitles: ``Subs`` beside the video; in it, one of the video's stem."""
    stem = _split(video_name)[0]
    return tuple(name for name in names if name.casefold() in _SUBTITLE_FOLDERS or name == stem)


def subtitles_in(video_name: str, siblings: Sequence[str], folder: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names of a subtitle folder that go with the video.

    ``siblings`` are the names beside the video. In a folder named as the video's stem, or when the video is the only
    one beside it (samples and trailers aside), every subtitle is the video's, whatever it is called
    (``Subs/2_English.srt``). Otherwise the name must fit, as beside the video.
    """
    stem = _split(video_name)[0]
    features = {other for other in _stems(siblings) if not _EXTRA.search(other)}
    if folder == stem or features == {stem}:
        return tuple(name for name in names if _split(name)[1] in SUBTITLE_EXTENSIONS)
    videos = [name for name in siblings if is_video(name)]
    fitting = sidecars_of(video_name, [*videos, *names])
    return tuple(name for name in fitting if _split(name)[1] in SUBTITLE_EXTENSIONS)


def _split(name: str) -> tuple[str, str]:
    """Stem and extension; the extension in lower case, without its dot, empty for ``.hidden`` and ``README``."""
    stem, dot, extension = name.rpartition(".")
    return (stem, extension.lower()) if dot and stem else (name, "")


def _stems(names: Iterable[str]) -> set[str]:
    return {_split(name)[0] for name in names if is_video(name)}


def _fits(name: str, stem: str) -> bool:
    """Whether ``name`` could go with a video of this stem, were there no other."""
    if not name.startswith(stem):
        return False
    rest, dot, extension = name[len(stem) :].rpartition(".")
    kind = extension.lower() if dot else ""
    if kind in _TAGGED_EXTENSIONS:
        return not rest or rest.startswith(".")
    return kind in ARTWORK_EXTENSIONS and (not rest or _ARTWORK_ROLE.fullmatch(rest) is not None)
