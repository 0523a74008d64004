# docs/ci.md says how to use it. The first stage has pip's build tools; the second only what runs.
FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY adadelta_cli adadelta_cli
RUN python -m venv /opt/adadelta \
    && /opt/adadelta/bin/python -m pip install --no-cache-dir .

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="adadelta" \
      org.opencontainers.image.description="Run, verify and benchmark the AdaDelta optimizer" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/adadelta-cli/adadelta" \
      org.opencontainers.image.documentation="https://adadelta-cli.github.io/adadelta/"
# OpenMP's runtime, which MXNet needs.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/adadelta /opt/adadelta
# The root may be read-only, and the user any: all that is written besides results goes to /tmp.
ENV PATH=/opt/adadelta/bin:$PATH \
    HOME=/tmp \
    NUMBA_CACHE_DIR=/tmp/adadelta/numba \
    MPLCONFIGDIR=/tmp/adadelta/matplotlib \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /work
ENTRYPOINT ["adadelta"]
CMD ["--help"]
