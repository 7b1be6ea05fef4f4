# Two stages: a static binary, then nothing but it. Runs as an unprivileged user;
# /var/lib/crossfade is the store and wants a volume.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/crossfade ./cmd/crossfade \
 && mkdir -p /out/data

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/crossfade /usr/bin/crossfade
COPY --from=build --chown=65532:65532 /out/data /var/lib/crossfade
USER 65532:65532
WORKDIR /var/lib/crossfade
VOLUME /var/lib/crossfade
# There is no /tmp, and nothing else that can be written to: large messages wait here while they are copied.
ENV TMPDIR=/var/lib/crossfade
# Port 25 needs `--sysctl net.ipv4.ip_unprivileged_port_start=25` or a mapping such as -p 25:2525.
EXPOSE 2525 8025
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["/usr/bin/crossfade", "health", "-c", "/etc/crossfade/crossfade.yaml"]
ENTRYPOINT ["/usr/bin/crossfade"]
CMD ["serve", "-c", "/etc/crossfade/crossfade.yaml"]
