"""``cachefs.yaml`` and its overrides as frozen values; every problem is reported at once, with its key.

The command line and the keeper call ``load``; everybody else is handed the part that concerns it. Nothing here touches
a source, the cache folder or Plex: what can be wrong with those is found by ``cachefs check`` and at start.
No token is ever part of a text or a ``repr``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    SecretStr,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from cachefs.config_text import Data, Key, explain, override, read_yaml, variables_of
from cachefs.errors import ConfigError, Problem
from cachefs.model import SourceName
from cachefs.paths import PathRule
from cachefs.units import Amount, Hours, parse_bandwidth, parse_duration, parse_size

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
LONGEST_SOCKET_PATH = 107  # sockaddr_un.sun_path holds 108 bytes, the last of them 0: unix(7)
_SMALLEST_BYTES = 1024**2
NO_TOKEN = "has no token; write token or token_file, or set CACHEFS_PLEX_TOKEN"


def _absolute(value: object, info: ValidationInfo) -> Path:
    """A folder or file; a relative one is relative to the folder of the configuration file."""
    folder = info.context["folder"] if info.context else Path("/")
    return _path(value, folder)


def _path(value: object, folder: Path) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError("is no path; write one that begins with /")
    try:
        return Path(os.path.normpath(folder / Path(value).expanduser()))
    except RuntimeError:
        raise ValueError("begins with the name of a user who has no home; write a path that begins with /") from None


def _web_address(value: object) -> str:
    """An http address without a trailing slash. Its text is never repeated in a problem: it may hold a token."""
    try:
        url = urlsplit(value.strip() if isinstance(value, str) else "")
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0
        (url.hostname or "").encode("idna")  # UnicodeError, a ValueError: an empty label, or too long a one
        usable = usable and not any(char.isspace() for char in url.netloc)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("is no web address; write it like http://127.0.0.1:32400")
    if url.username or url.password or url.query or url.fragment:
        raise ValueError("holds more than an address; the token belongs to plex.token, and nothing follows the path")
    return url.geturl().rstrip("/")


LocalPath = Annotated[Path, BeforeValidator(_absolute)]
Seconds = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[Amount, BeforeValidator(Amount.parse)]
WebAddress = Annotated[str, BeforeValidator(_web_address)]
Count = Annotated[int, Field(ge=0, le=1000)]
PathRules = Annotated[
    Annotated[Literal["auto"], Tag("auto")] | Annotated[tuple[PathRule, ...], Tag("rules")],
    Discriminator(lambda value: "auto" if isinstance(value, str) else "rules"),
]


class Section(BaseModel):
    """What all parts share. A section that was left empty has its defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, data: object) -> object:
        return {} if data is None else data


class SourceConfig(Section):
    """One slow media folder."""

    path: LocalPath = Field(examples=["/mnt/user/Media"])
    name: SourceName
    """By default the last part of the path; the folder's name in the mount when there are several sources."""
    timeout: Seconds = Field(default=30.0, ge=0.1)
    ttl: Seconds = 5.0
    """How long what was seen at the source is believed before it is asked again."""
    metadata: Literal["auto", "remembered", "asked"] = "auto"
    """Whether names and attributes that were seen once are believed until a change is heard."""

    @model_validator(mode="before")
    @classmethod
    def _named_after_its_folder(cls, data: object, info: ValidationInfo) -> object:
        if isinstance(data, dict) and data.get("name") is None and isinstance(data.get("path"), str | Path):
            return {**data, "name": _absolute(data["path"], info).name}
        return data

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: SourceName) -> SourceName:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ValueError("must be a folder's name, without a slash")
        return name


class CacheConfig(Section):
    """The SSD folder."""

    path: LocalPath = Field(examples=["/mnt/ssd/cachefs"])
    mode: Literal["copy", "move"] = "copy"
    max_size: Size = Amount(percent=100)
    min_free: Size = Amount(percent=5)

    @field_validator("max_size")
    @classmethod
    def _has_room(cls, amount: Amount) -> Amount:
        if amount.is_zero:
            raise ValueError("a cache of no size holds nothing; write it like 500GiB or 90%")
        return amount


class PlexConfig(Section):
    """The Plex server and how its paths relate to the mount's."""

    url: WebAddress = Field(examples=["http://127.0.0.1:32400"])
    token: SecretStr | None = None
    token_file: LocalPath | None = None
    path_map: PathRules = "auto"
    cloud_url: WebAddress | None = None

    @field_validator("token")
    @classmethod
    def _fits_into_a_header(cls, token: SecretStr | None) -> SecretStr | None:
        return None if token is None else SecretStr(_clean_token(token.get_secret_value()))

    def read_token(self) -> str:
        """The token itself. Reads ``token_file``, so call it in a thread; ``ConfigError`` when that cannot be read."""
        if self.token is not None:
            return self.token.get_secret_value()
        if self.token_file is None:
            raise ConfigError("plex", (Problem("plex", NO_TOKEN),))
        try:
            return _clean_token(self.token_file.read_text(encoding="utf-8"))
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        except UnicodeDecodeError:
            problem = "is no text; it must hold the token and nothing else"
        except ValueError as error:
            problem = str(error)
        raise ConfigError("configuration", (Problem("plex.token_file", f"{self.token_file} {problem}"),))


class PlayingPolicy(Section):
    """What is being played, once it has played for ``after`` seconds, and what comes next."""

    enabled: bool = True
    after: Seconds = 30.0
    next_episodes: Count = 2


class OnDeckPolicy(Section):
    """On Deck and Continue Watching, if last viewed within ``max_age``, and what comes next."""

    enabled: bool = True
    next_episodes: Count = 5
    max_age: Seconds = 60 * DAY_S


class WatchlistPolicy(Section):
    """What was put on a watchlist within ``max_age``; of a show its first ``episodes``."""

    enabled: bool = True
    episodes: Count = 3
    max_age: Seconds = 90 * DAY_S


class RecentPolicy(Section):
    """What was added to the library within ``max_age``."""

    enabled: bool = False
    max_age: Seconds = 7 * DAY_S


class PolicyConfig(Section):
    """Which interests make files wanted, and for how long they are kept."""

    playing: PlayingPolicy = PlayingPolicy()
    on_deck: OnDeckPolicy = OnDeckPolicy()
    watchlist: WatchlistPolicy = WatchlistPolicy()
    recently_added: RecentPolicy = RecentPolicy()
    keep_watched: Seconds = 12 * HOUR_S
    sidecars: bool = True


class CopyingConfig(Section):
    """How hard copying may work the sources."""

    workers: int = Field(default=2, ge=1, le=64)
    bandwidth: Annotated[int, BeforeValidator(parse_bandwidth)] | None = None
    """Bytes a second, all copies together; None for no limit."""
    hours: Annotated[Hours, BeforeValidator(Hours.parse)] | None = None


def default_socket(environ: Mapping[str, str], uid: int) -> Path:
    """Where the daemon listens and the command line looks when the configuration does not say."""
    if uid == 0:
        return Path("/run/cachefs/cachefs.sock")
    runtime = environ.get("XDG_RUNTIME_DIR")
    return (Path(runtime, "cachefs") if runtime else Path(f"/tmp/cachefs-{uid}")) / "cachefs.sock"


class ControlConfig(Section):
    """Where the daemon and the command line meet."""

    socket: LocalPath = Field(default_factory=lambda: default_socket(os.environ, os.getuid()))

    @field_validator("socket")
    @classmethod
    def _fits(cls, socket: Path) -> Path:
        if len(os.fsencode(socket)) > LONGEST_SOCKET_PATH:
            raise ValueError(f"is longer than the {LONGEST_SOCKET_PATH} bytes that a socket's path may have")
        return socket


class Config(Section):
    """The whole configuration; valid as far as can be seen without touching a disk."""

    mountpoint: LocalPath = Field(examples=["/mnt/cachefs"])
    sources: tuple[SourceConfig, ...] = Field(min_length=1, examples=["[{path: /mnt/user/Media}]"])
    cache: CacheConfig = Field(examples=["{path: /mnt/ssd/cachefs}"])
    plex: PlexConfig | None = None
    policy: PolicyConfig = PolicyConfig()
    copying: CopyingConfig = CopyingConfig()
    control: ControlConfig = Field(default_factory=ControlConfig)
    fast_path: Literal["auto", "off"] = "auto"
    """Whether the kernel may read cached files by itself, past the daemon (FUSE passthrough)."""
    read_ahead: Annotated[int, BeforeValidator(parse_size)] | None = 1 << 20
    """Bytes that the kernel reads ahead in the mount; None or 0: as many as it likes."""
    acl: Literal["off", "on"] = "off"
    """Whether POSIX ACLs count in the mount: the kernel asks for them and enforces them."""
    _warnings: tuple[str, ...] = PrivateAttr(default=())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know although nothing is wrong."""
        return self._warnings

    @property
    def in_place(self) -> bool:
        """Whether the mount lies over the source's own folder."""
        return any(source.path == self.mountpoint for source in self.sources)


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """The configuration in a file, overridden by ``CACHEFS_`` variables; ``ConfigError`` with all that is wrong."""
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read()
    except FileNotFoundError:
        raise _refused(path, "there is no such file; begin with a copy of the example cachefs.yaml") from None
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise _refused(path, f"is no UTF-8 text (byte {error.start})") from None
    data, problems = read_yaml(text)
    if problems:
        raise ConfigError(str(path), problems)
    plex = data.get("plex")
    config = build(data, Path(os.path.abspath(path)).parent, environ, str(path))
    if mode & stat.S_IROTH and isinstance(plex, dict) and plex.get("token"):
        config._warnings += (f"{path} holds a Plex token and everybody may read it; run: chmod o-r {path}",)
    return config


def build(data: Mapping[str, object], folder: Path, environ: Mapping[str, str], origin: str) -> Config:
    """The configuration in ``data`` (which may be empty) with its overrides; relative paths start at ``folder``.

    ``origin`` names the configuration in problems.
    """
    overridden = override(data, environ, frozenset(Config.model_fields), variables_of(Config))
    problems = list(overridden.problems)
    config = None
    try:
        config = Config.model_validate(overridden.data, context={"folder": folder})
    except ValidationError as error:
        problems += explain(error, Config, overridden.origins)
    problems += _cross_checks(overridden.data, folder)
    if config is None or problems:
        raise ConfigError(origin, tuple(problems))
    config._warnings = (*overridden.warnings, *_doubts(config))
    return config


def _doubts(config: Config) -> Iterator[str]:
    """What is allowed, and can hardly be meant."""
    most = config.cache.max_size
    if most.percent is None and most.bytes < _SMALLEST_BYTES:
        yield f"cache.max_size is {most}: no film fits into that; write a unit, like 500GiB"


def _refused(path: Path, message: str) -> ConfigError:
    return ConfigError(str(path), (Problem("", message),))


def _clean_token(text: str) -> str:
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("holds no token; a token is one word of letters, digits, - and _")
    return token


# --- what only shows when several keys are seen together -------------------------------------------------------------


def _cross_checks(data: Data, folder: Path) -> Iterator[Problem]:
    """Compares whatever can be read, also when other keys are wrong; names only, no disk is asked."""
    mountpoint = _path_at(data, ("mountpoint",), folder)
    cache = _path_at(data, ("cache", "path"), folder)
    socket = _path_at(data, ("control", "socket"), folder)
    listed = data.get("sources")
    sources = [
        (f"sources[{index}]", path, str(_at(data, ("sources", index, "name")) or path.name))
        for index in range(len(listed) if isinstance(listed, list) else 0)
        if (path := _path_at(data, ("sources", index, "path"), folder)) is not None
    ]
    yield from _token_problems(data.get("plex"))
    for key, path, _ in sources:
        yield from _source_against(key, path, mountpoint, cache, len(sources))
    yield from _duplicates([(f"{key}.name", name) for key, _, name in sources], "give each source a name of its own")
    yield from _duplicates([(f"{key}.path", str(path)) for key, path, _ in sources], "name each folder once")
    for key, path, _ in sources:
        for outer in [other for _, other, _ in sources if other != path and path.is_relative_to(other)][:1]:
            yield Problem(
                f"{key}.path", f"{path} lies in the source {outer}, which shows it already; remove one of them"
            )
    if _at(data, ("cache", "mode")) == "move" and any(path == mountpoint for _, path, _ in sources):
        yield Problem(
            "cache.mode",
            f"move cannot be used when mounting in place, over {mountpoint}: without cachefs running, Plex would find "
            "the moved files gone. Mount elsewhere, or write copy",
        )
    if mountpoint and cache and (mountpoint.is_relative_to(cache) or cache.is_relative_to(mountpoint)):
        yield Problem("cache.path", f"{cache} and the mountpoint {mountpoint} lie in one another; put them apart")
    if mountpoint and socket and socket.is_relative_to(mountpoint):
        yield Problem("control.socket", f"{socket} lies in the mount {mountpoint}; put it elsewhere")
    for place, what in [(cache, "the cache"), *((path, "the source") for _, path, _ in sources if path != mountpoint)]:
        if place and socket and socket.is_relative_to(place):
            yield Problem("control.socket", f"{socket} lies in {what} {place}; put it elsewhere")


def _token_problems(plex: object) -> Iterator[Problem]:
    if isinstance(plex, dict):
        given = [key for key in ("token", "token_file") if plex.get(key) is not None]
        if not given:
            yield Problem("plex", NO_TOKEN)
        elif len(given) > 1:
            yield Problem("plex", "has both token and token_file; remove one of them")


def _source_against(
    key: str, source: Path, mountpoint: Path | None, cache: Path | None, sources: int
) -> Iterator[Problem]:
    if cache and cache.is_relative_to(source):
        yield Problem(
            "cache.path", f"{cache} lies in the source {source}; put the cache on the SSD, outside of sources"
        )
    elif cache and source.is_relative_to(cache):
        yield Problem(f"{key}.path", f"{source} lies in the cache {cache}; put the cache into a folder of its own")
    if mountpoint is None:
        return
    if mountpoint == source:
        if sources > 1:
            yield Problem("mountpoint", f"is the source {source}; mounting in place works with one source only")
    elif mountpoint.is_relative_to(source):
        yield Problem(
            "mountpoint", f"{mountpoint} lies in the source {source}; mount elsewhere, or over {source} itself"
        )
    elif source.is_relative_to(mountpoint):
        yield Problem("mountpoint", f"{mountpoint} would hide the source {source} that lies in it; mount elsewhere")


def _duplicates(named: list[tuple[str, str]], advice: str) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for key, name in named:
        if first.setdefault(name, key) != key:
            yield Problem(key, f"{name} is also {first[name]}; {advice}")


def _at(data: object, key: Key) -> object:
    for part in key:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def _path_at(data: Data, key: Key, folder: Path) -> Path | None:
    """A path that can be compared; what is wrong with any other has been said already."""
    try:
        return _path(_at(data, key), folder)
    except ValueError:
        return None
