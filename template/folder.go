package template

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/taskerhq/tasker"
)

// Loaded is a template and the file that it came from.
type Loaded struct {
	Template *tasker.Template
	File     string
}

// What is read at most: a mistaken path must not fill the memory.
const (
	maxFileSize = 1 << 20 // bytes
	maxFiles    = 5000    // of a folder
)

// Load reads a folder as LoadFolder does, or one file, whatever its name.
func Load(path string, opts Options) ([]*Loaded, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no file or folder %s: %w", path, err)
	case err != nil:
		return nil, fmt.Errorf("read template: %w", err)
	case info.IsDir():
		return LoadFolder(path, opts)
	}
	target, err := filepath.EvalSymlinks(path) // a file that was named may be a link to anywhere
	if err != nil {
		return nil, fmt.Errorf("read template: %w", err)
	}
	return load(filepath.Dir(target), []string{path}, opts)
}

// LoadFolder reads every *.yaml and *.yml file in a folder and the folders
// within it, in the order of their paths; hidden ones are left out. A link is
// read if it leads to a regular file inside of the folder, as those of a
// Kubernetes ConfigMap do. LoadFolder returns
// all templates or, with an error, none. The error is an Errors over all files
// when templates are wrong, and of another kind when the folder can't be read
// or holds no template.
func LoadFolder(dir string, opts Options) ([]*Loaded, error) {
	files, err := templateFiles(dir)
	if err != nil {
		return nil, err
	}
	return load(dir, files, opts)
}

// load reads files, whose targets have to be inside of the folder.
func load(dir string, files []string, opts Options) ([]*Loaded, error) {
	within, err := openFolder(dir)
	if err != nil {
		return nil, fmt.Errorf("read templates: %w", err)
	}
	defer func() { _ = within.Close() }() // it was only read
	var (
		loaded []*Loaded
		all    []Problem
		first  = make(map[string]string, len(files)) // full name → file
	)
	for _, file := range files {
		data, problem, err := within.read(file)
		switch {
		case err != nil:
			return nil, fmt.Errorf("read template: %w", err)
		case problem != "":
			all = append(all, Problem{File: file, Line: 1, Column: 1, Message: problem})
			continue
		}
		t, named, err := parse(file, data, opts)
		var wrong Errors
		switch {
		case errors.As(err, &wrong):
			all = append(all, wrong...)
			continue
		case err != nil:
			return nil, fmt.Errorf("parse template: %w", err)
		}
		if other, taken := first[t.FullName()]; taken {
			p := problems{file: file}
			p.add(named, "%s is defined in %s already; give one of the two another name or version", t.FullName(), other)
			all = append(all, p.list...)
			continue
		}
		first[t.FullName()] = file
		loaded = append(loaded, &Loaded{Template: t, File: file})
	}
	if len(all) > 0 {
		return nil, Errors(all)
	}
	return loaded, nil
}

// templateFiles lists the files in lexical order, as WalkDir meets them.
func templateFiles(dir string) ([]string, error) {
	var files []string
	root := dir + string(filepath.Separator) // so that a link to a folder is followed
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch hidden := path != root && strings.HasPrefix(entry.Name(), "."); {
		case err != nil:
			return err
		case hidden && entry.IsDir():
			return filepath.SkipDir
		case hidden || entry.IsDir():
			return nil
		}
		if ext := filepath.Ext(path); ext == ".yaml" || ext == ".yml" {
			files = append(files, path)
		}
		if len(files) > maxFiles {
			return fmt.Errorf("%s holds more than %d templates; name a folder that holds nothing else", dir, maxFiles)
		}
		return nil
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no folder %s; create it, or name the one that holds the templates: %w", dir, err)
	case errors.Is(err, syscall.ENOTDIR):
		return nil, fmt.Errorf("%s is a file; name the folder that holds it: %w", dir, err)
	case err != nil:
		return nil, fmt.Errorf("list templates: %w", err)
	case len(files) == 0:
		return nil, fmt.Errorf("no templates in %s; put *.yaml files there, or name the folder that holds them", dir)
	}
	return files, nil
}
