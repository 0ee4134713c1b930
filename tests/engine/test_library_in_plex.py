"""The sample library as Plex shows it, read with the real plexapi."""

from __future__ import annotations

from plexapi.server import PlexServer

from tests.standin.library import SampleLibrary
from tests.standin.library_in_plex import put_in_plex
from tests.standin.plex import run_stand_in_plex


def test_plex_has_every_video_under_its_own_paths(library: SampleLibrary) -> None:
    with run_stand_in_plex() as plex:
        items = put_in_plex(library, plex, "/data")
        server = PlexServer(plex.url, plex.token)  # type: ignore[no-untyped-call]
        videos = [*server.library.section("TV").searchEpisodes(), *server.library.section("Films").all()]
        shown = {part.file: part.size for video in videos for media in video.media for part in media.parts}
    assert shown == {f"/data/{path}": file.size for path, file in library.files.items() if path.endswith(".mkv")}
    assert items.episodes["Slow Tides S02E01"].season.number == 2
    assert items.films["Seek Time (2004)"].title == "Seek Time"
