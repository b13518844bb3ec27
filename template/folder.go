package template

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/taskerhq/tasker"
)

// Loaded is a template and the file that it came from.
type Loaded struct {
	Template *tasker.Template
	File     string
}

// LoadFolder reads every *.yaml and *.yml file in a folder and the folders
// within it, in the order of their paths; hidden ones are left out. It returns
// all templates or, with an error, none. The error is an Errors over all files
// when templates are wrong, and of another kind when the folder can't be read
// or holds no template.
func LoadFolder(dir string, opts Options) ([]*Loaded, error) {
	files, err := templateFiles(dir)
	if err != nil {
		return nil, err
	}
	var (
		loaded []*Loaded
		all    []Problem
		first  = make(map[string]string, len(files)) // full name → file
	)
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read template: %w", err)
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
		return nil
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no folder %s; create it, or name the one that holds the templates: %w", dir, err)
	case err != nil:
		return nil, fmt.Errorf("list templates: %w", err)
	case len(files) == 0:
		return nil, fmt.Errorf("no templates in %s; put *.yaml files there, or name the folder that holds them", dir)
	}
	return files, nil
}
