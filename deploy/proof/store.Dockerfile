# An S3 server for the proof, where the images that docker-compose.yml names cannot be had.
# It holds the condition If-None-Match, but keeps nothing on disk and believes any signature.
ARG IMAGE
FROM ${IMAGE}
USER 0
ARG PIP_CERT=
COPY requirements.lock /tmp/requirements.lock
RUN awk '/^[a-z]/ { keep = !/^(triton|ruff|mypy)==/ } keep' /tmp/requirements.lock > /tmp/chosen.lock \
 && pip install -q --no-cache-dir --no-compile --no-deps --require-hashes -r /tmp/chosen.lock \
 && rm /tmp/*.lock
USER 10001:10001
