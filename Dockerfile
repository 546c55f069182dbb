# The workflow in a container: its installation is the Makefile's, in the versions of constraints.txt.
#   docker build -t ask .                                    (GPU: --build-arg FAISS=faiss-gpu, and docker run --gpus all)
#   docker run --rm -v "$PWD/results:/ask/results" ask                  the demo
#   docker run --rm -v "$PWD/results:/ask/results" -v "$PWD/data:/ask/data" ask make paper
FROM python:3.11-slim-bookworm

# Debian keeps no old versions to pin these to.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /ask
ARG FAISS=faiss-cpu

# What the installation reads comes first: an edited configuration or rule installs nothing again.
COPY Makefile pyproject.toml constraints.txt README.md LICENSE ./
COPY ask ask
RUN make install FAISS="$FAISS"

COPY . .
CMD ["make", "demo"]
