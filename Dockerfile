# An image with align-anything and its tested versions.
#
#   docker build -t align-anything .
#   docker run --rm align-anything make test                        on the CPU
#   docker run --rm --gpus all --shm-size 16g -v "$PWD/data:/data" align-anything bash
#                                                                   on NVIDIA GPUs
#
# The torch wheels bring the CUDA libraries along, so the one image serves both; GPUs need the NVIDIA container
# toolkit on the host. DeepSpeed compiles its CPU and CUDA operators on first use: for the CUDA ones start FROM a
# `-devel` image of NVIDIA's CUDA images instead.
# This file has not been built by the project's tests, which run where no Docker engine does.
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential git make ninja-build \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 align

WORKDIR /app
RUN chown align:align /app
USER align

# The environment first: it changes less often than the code, so its layer is kept.
COPY --chown=align:align pyproject.toml setup.py constraints.txt overrides.txt README.md LICENSE Makefile ./
COPY --chown=align:align align_anything/__init__.py align_anything/__init__.py
RUN make install

COPY --chown=align:align . .
ENV PATH="/app/.venv/bin:$PATH"
CMD ["bash"]
