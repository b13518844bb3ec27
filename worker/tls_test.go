package worker_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/testenv"
)

// certificate writes one for localhost, signed by itself, and returns the files.
func certificate(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// A worker and a Sidekiq that reach a Postgres and a Redis that take nothing but
// TLS, whose certificates they verify.
func TestEverythingOverTLS(t *testing.T) {
	b, postgres := setupOwnPostgres(t)
	b.register(rubyWork)
	b.register(oneRubyStep)

	// Postgres: the certificate lies with its data, and is its own.
	var data string
	b.must(b.pool.QueryRow(t.Context(), `SHOW data_directory`).Scan(&data))
	cert, key := certificate(t, data)
	info, err := os.Stat(data)
	b.must(err)
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Skip("who owns the folder is not known here")
	}
	for _, path := range []string{cert, key} {
		b.must(os.Chown(path, int(owner.Uid), int(owner.Gid)))
	}
	b.exec(`ALTER SYSTEM SET ssl = on`)
	b.must(os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte("hostssl crash postgres localhost trust\n"), 0o600))
	b.exec(`SELECT pg_reload_conf()`)
	root := filepath.Join(t.TempDir(), "root.crt")
	text, err := os.ReadFile(cert)
	b.must(err)
	b.must(os.WriteFile(root, text, 0o644))

	// Redis.
	dir := t.TempDir()
	redisCert, redisKey := certificate(t, dir)
	both, err := os.ReadFile(redisCert)
	b.must(err)
	trusted := filepath.Join(dir, "trusted.crt")
	b.must(os.WriteFile(trusted, append(both, text...), 0o644))
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	b.must(err)
	_, port, err := net.SplitHostPort(free.Addr().String())
	b.must(err)
	b.must(free.Close())
	server := b.spawn(exec.Command("redis-server", "--bind", "127.0.0.1", "--port", "0", "--tls-port", port, "--save", "", "--dir", dir,
		"--tls-cert-file", redisCert, "--tls-key-file", redisKey, "--tls-ca-cert-file", redisCert, "--tls-auth-clients", "no"))
	b.until("Redis takes connections", func() bool { return strings.Contains(server.log.String(), "Ready to accept connections") })

	plain := b.url
	secure, err := url.Parse(fmt.Sprintf("postgres://postgres@localhost:%d/crash?sslmode=verify-full&sslrootcert=%s", postgres.Port(), root))
	b.must(err)
	b.url, b.redisURL = secure.String(), "rediss://localhost:"+port+"/0"
	b.pool = testenv.Pool(t, b.url)
	b.store = store.New(b.pool)
	b.until("Postgres takes nothing but TLS", func() bool {
		_, err := pgconn.Connect(t.Context(), plain)
		var refused *pgconn.PgError
		return errors.As(err, &refused) && refused.Code == "28000"
	})
	b.workerEnv = []string{"SSL_CERT_FILE=" + trusted}
	b.sidekiqEnv = []string{"SSL_CERT_FILE=" + trusted}
	b.worker()
	b.sidekiq()
	b.enqueueMany("work", `{}`, 5)
	b.finish()
	b.want("5", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)

	// A certificate that nobody vouches for is not taken.
	wrong := strings.Replace(b.url, root, redisCert, 1)
	var out bytes.Buffer
	command := exec.Command(testenv.TaskerBinary(t), "worker", "--database-url", wrong)
	command.Stdout, command.Stderr = &out, &out
	if err := command.Run(); err == nil || !strings.Contains(out.String(), "certificate") {
		t.Errorf("a worker that can't verify Postgres's certificate ended with %v and said\n%s", err, out.String())
	}
}
