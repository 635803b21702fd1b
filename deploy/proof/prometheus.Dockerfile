# Debian's Prometheus in the place of the image that docker-compose.yml names: the same program, the
# same flags, one major version older.
ARG BASE
FROM ${BASE}
RUN apt-get update -q \
 && apt-get install -q -y --no-install-recommends prometheus wget \
 && rm -rf /var/lib/apt/lists/* \
 && install -d -o nobody -g nogroup /prometheus
USER nobody
ENTRYPOINT ["prometheus"]
