# OpenStack Swift with its S3 API, for the proof, where the store's image that docker-compose.yml
# names cannot be had. It keeps what it is given, and believes no wrong key (swift_store.py).
ARG BASE
FROM ${BASE}
ARG PIP_CERT=
COPY deploy/proof/swift.lock /opt/store/swift.lock
RUN python3 -m venv /opt/store/env \
 && /opt/store/env/bin/pip install -q --no-cache-dir --no-deps --require-hashes \
      -r /opt/store/swift.lock \
 && groupadd --gid 10001 store \
 && useradd --uid 10001 --gid store --no-create-home store
COPY deploy/proof/swift_store.py /opt/store/swift_store.py
ENV PATH=/opt/store/env/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
