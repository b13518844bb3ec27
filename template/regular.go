package template

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// openedFolder reads regular files inside of a folder, and nothing else.
type openedFolder struct {
	*os.Root
	path string // without links
}

func openFolder(dir string) (*openedFolder, error) {
	path, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &openedFolder{Root: root, path: path}, nil
}

// read returns the text of a file, or the problem for which it is not read. It never
// blocks: a named pipe without a writer would, and a device may have no end.
func (f *openedFolder) read(file string) (text []byte, problem string, err error) {
	target, err := filepath.EvalSymlinks(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, "this link leads to a file that does not exist; remove it, or create the file", nil
	case err != nil:
		return nil, "", err
	}
	path, err := filepath.Abs(target)
	if err != nil {
		return nil, "", err
	}
	folder, err := filepath.Abs(f.path)
	if err != nil {
		return nil, "", err
	}
	name, err := filepath.Rel(folder, path)
	if err != nil || !filepath.IsLocal(name) {
		return nil, fmt.Sprintf("this link leads out of the folder, to %s; copy the file into the folder", target), nil
	}
	// The kind is asked for before the file is opened, as opening a device may do something.
	info, err := f.Stat(name)
	if err != nil {
		return nil, "", err
	}
	if problem := problemOfKind(info.Mode()); problem != "" {
		return nil, problem, nil
	}
	opened, err := f.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, "", err
	}
	defer opened.Close()
	if info, err = opened.Stat(); err != nil { // another file may have taken the name
		return nil, "", err
	}
	if problem := problemOfKind(info.Mode()); problem != "" {
		return nil, problem, nil
	}
	text, err = io.ReadAll(io.LimitReader(opened, maxFileSize+1))
	if err != nil {
		return nil, "", err
	}
	if len(text) > maxFileSize {
		return nil, fmt.Sprintf("the file is larger than %d bytes; a template describes one workflow", maxFileSize), nil
	}
	return text, "", nil
}

// problemOfKind is "" for a regular file.
func problemOfKind(mode fs.FileMode) string {
	kind := "no regular file"
	switch {
	case mode.IsRegular():
		return ""
	case mode.IsDir():
		kind = "a folder"
	case mode&fs.ModeNamedPipe != 0:
		kind = "a named pipe"
	case mode&fs.ModeSocket != 0:
		kind = "a socket"
	case mode&fs.ModeDevice != 0:
		kind = "a device"
	}
	return "this is " + kind + "; a template is a regular file, or a link to one in the folder"
}
