# The tasker program: worker, command line, page. Ruby handlers run in your
# application's own image, with the gem tasker_core.

FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# The version that `tasker version` reports: docker build --build-arg VERSION=v1.2.3
ARG VERSION=
# Static: the image below has no C library. No VCS stamp: .git isn't in the
# build context.
RUN CGO_ENABLED=0 go build -buildvcs=false -trimpath -ldflags "-s -w ${VERSION:+-X main.version=$VERSION}" -o /tasker ./cmd/tasker

# Certificates, time zones and an unprivileged user; no shell.
FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /tasker /usr/local/bin/tasker
ENTRYPOINT ["/usr/local/bin/tasker"]
CMD ["worker"]
