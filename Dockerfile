# cachefs in a container. README.md says how it is run, compose.yaml runs it together with Plex; in short, and at least:
#
#   docker run --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor=unconfined \
#       -v /etc/cachefs:/config:ro -v /mnt/user/Media:/media -v /mnt/ssd/cachefs:/cache \
#       -v /srv/cachefs:/mnt/cachefs:rshared cachefs
#
# Configured by /config/cachefs.yaml, by variables such as CACHEFS_PLEX__URL, or by both. A folder of the host that is
# shared with it by :rshared has to hold the mountpoint, so that Plex's container sees the mount.

ARG BASE=debian:trixie-slim

FROM ${BASE} AS builder
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --no-install-recommends -y \
        ca-certificates gcc libc6-dev libfuse3-dev pkg-config python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/cachefs
WORKDIR /build
# Every version is locked, of what is built with as well. Dependencies first: pyfuse3 is compiled, and need not be again
# when only cachefs itself has changed.
COPY packaging/constraints.txt pyproject.toml ./
ENV PIP_CONSTRAINT=/build/constraints.txt PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -c 'import tomllib; \
        print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > requirements.txt \
    && /opt/cachefs/bin/pip install -r requirements.txt
COPY README.md ./
COPY cachefs ./cachefs
# The channel between libfuse and the kernel is compiled here; pip and symbols are not needed any more.
RUN /opt/cachefs/bin/pip install --no-deps . \
    && find /opt/cachefs -name '*.so' -exec strip --strip-unneeded {} + \
    && /opt/cachefs/bin/python -P -c 'from cachefs.fs import channel; assert channel.is_loaded()' \
    && /opt/cachefs/bin/pip uninstall -y pip

FROM ${BASE}
LABEL org.opencontainers.image.title="cachefs" \
    org.opencontainers.image.description="Lets Plex read what will be watched next from an SSD, with no path change"
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --no-install-recommends -y \
        ca-certificates fuse3 libfuse3-4 python3 tini tzdata \
    && apt-get clean && rm -rf /var/lib/apt/lists/*
COPY --from=builder /opt/cachefs /opt/cachefs
# Where the command looks when no file is named: docker exec CONTAINER cachefs status
RUN ln -s /config /etc/cachefs
ENV PATH=/opt/cachefs/bin:$PATH PYTHONUNBUFFERED=1 LC_ALL=C.UTF-8 container=oci
# Within ten seconds of SIGTERM, as Docker gives them, the mount is gone, whatever a disk does.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=15s --start-period=10m --retries=2 CMD ["cachefs", "status", "--healthy"]
# tini passes signals on and reaps what nobody else waits for.
ENTRYPOINT ["tini", "--", "cachefs"]
CMD ["mount"]
