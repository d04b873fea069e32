# Sourced by the scripts beside it: finds the launcher and a free port, and stops at the first failure.

set -euo pipefail

REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# The environment that `make install` makes, where none is active that has the launcher.
if ! command -v deepspeed >/dev/null && [ -x "${REPOSITORY}/.venv/bin/deepspeed" ]; then
    export PATH="${REPOSITORY}/.venv/bin:${PATH}"
fi
if ! command -v deepspeed >/dev/null; then
    echo "deepspeed is not installed here: run 'make install' in ${REPOSITORY}, or activate your environment." >&2
    exit 1
fi

# Tokenizers are used in data workers, which are forked; their own threads would only be warned about.
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"

# Two runs on one machine must not meet at the launcher's default port.
if [ -z "${MASTER_PORT:-}" ]; then
    MASTER_PORT="$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')"
fi
export MASTER_PORT

# What the launcher tells of itself is seldom news; DEEPSPEED_LOG_LEVEL=info brings it back.
deepspeed() {
    command deepspeed --log_level "${DEEPSPEED_LOG_LEVEL:-error}" "$@"
}
