# An image for GKE: tpt with JAX for TPUs, and the configs. tpu_scripts/gke.sh create --built runs it as IMAGE.
#   docker build --tag tpt_jax .
#   docker run --rm tpt_jax --version
FROM python:3.12-slim

# Checkers run the programs that a model wrote in bubblewrap.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/tpt_jax
COPY pyproject.toml README.md LICENSE ./
COPY tpt_jax ./tpt_jax
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[tpu]'

COPY configs /workspace/configs
RUN useradd --create-home --uid 1000 tpt && chown -R tpt /workspace
USER 1000
WORKDIR /workspace
ENTRYPOINT ["tpt"]
