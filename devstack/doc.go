// Package devstack starts private Postgres and Redis servers as children of
// this process: for `tasker dev`, for `make demo` and for tests.
//
// A server started here belongs to whoever started it. Nobody else is meant
// to find it (it listens on 127.0.0.1 only, on a port that was free), and it
// doesn't outlive its owner: Stop ends it in good order, and on Linux the
// kernel ends it when the owner dies without having said so (see process.go).
// Its data lives in the folder that the caller names, and nowhere else.
//
// The servers are meant for development. Each has a random password, which
// URL returns. The password is kept in the server's folder, in a file that only
// its owner can read, so URLs stay the same over a restart. There are no Unix
// sockets, and no other account of the machine can connect.
//
// Postgres refuses to run as root. When this process is root (containers, CI)
// the Postgres processes run as the user postgres, or nobody where that user
// doesn't exist; the data folder is given to that user. WorkDir finds a folder
// that such a user can reach.
package devstack
