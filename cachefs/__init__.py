"""cachefs: Plex reads one mount; what will be watched next is read from the SSD."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("cachefs")
except PackageNotFoundError:  # run from a checkout that was not installed
    __version__ = "0+unknown"
