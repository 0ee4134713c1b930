# cachefs in a container. The host needs /dev/fuse, and the mount must be made inside a folder that is shared with the
# host, so that Plex's container sees it appear:
#
#   mount --bind /srv/cachefs /srv/cachefs && mount --make-rshared /srv/cachefs         (once, on the host)
#   docker run --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor=unconfined \
#       -v /etc/cachefs:/config:ro -v /mnt/user/Media:/media -v /mnt/ssd/cachefs:/cache \
#       -v /srv/cachefs:/mnt/cachefs:rshared cachefs
#   and Plex's container: -v /srv/cachefs:/data:rslave
#
# In cachefs.yaml: mountpoint /mnt/cachefs/media (a folder below the shared one), sources at /media, the cache at /cache.

FROM debian:trixie-slim AS builder
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --no-install-recommends -y \
        ca-certificates gcc libc6-dev libfuse3-dev pkg-config python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/cachefs
WORKDIR /build
# Dependencies first: pyfuse3 is compiled, and need not be again when only cachefs itself has changed.
COPY pyproject.toml ./
RUN /opt/cachefs/bin/python -c 'import tomllib; \
        print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > requirements.txt \
    && /opt/cachefs/bin/pip install --no-cache-dir -r requirements.txt
COPY README.md ./
COPY cachefs ./cachefs
RUN /opt/cachefs/bin/pip install --no-cache-dir --no-deps .

FROM debian:trixie-slim
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --no-install-recommends -y \
        ca-certificates fuse3 libfuse3-4 python3 tini \
    && rm -rf /var/lib/apt/lists/*
COPY --from=builder /opt/cachefs /opt/cachefs
# Where the command looks when no file is named: docker exec CONTAINER cachefs status
RUN ln -s /config /etc/cachefs
ENV PATH=/opt/cachefs/bin:$PATH PYTHONUNBUFFERED=1
STOPSIGNAL SIGTERM
# tini passes signals on and reaps what an aborted mount leaves behind.
ENTRYPOINT ["tini", "--", "cachefs", "mount", "-c", "/config/cachefs.yaml"]
