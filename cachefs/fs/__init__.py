"""The file system: slow sources, their union, and the routing of reads. Imports neither plex nor cache's inside."""

from cachefs.fs import channel as channel  # before pyfuse3, which everything else here may import
