"""``make container``: the image, and Plex beside it, tried with buildah, podman and runc."""
