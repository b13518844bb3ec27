package devstack

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// passwordFile is in the folder of a server. Only its owner can read it.
const passwordFile = "password"

// readPassword returns the password of a server that was started before; "": there is none.
func readPassword(dir string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, passwordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the server's password: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// keepPassword writes the password whole or not at all.
func keepPassword(dir, password string) error {
	file := filepath.Join(dir, passwordFile)
	if err := writePrivate(file+".incomplete", password+"\n"); err != nil {
		return fmt.Errorf("keep the server's password: %w", err)
	}
	if err := os.Rename(file+".incomplete", file); err != nil {
		return fmt.Errorf("keep the server's password: %w", err)
	}
	return nil
}

func forgetPassword(dir string) error {
	if err := os.Remove(filepath.Join(dir, passwordFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the password of an earlier server: %w", err)
	}
	return nil
}

// writePrivate writes a new file that only its owner can read.
func writePrivate(file, text string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.WriteFile(file, []byte(text), 0o600)
}

// newPassword has letters and digits alone, which no URL, setting or statement has to escape.
func newPassword() string { return rand.Text() }
