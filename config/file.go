package config

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/taskerhq/tasker/template"
)

// found is a value in the file.
type found struct {
	value any
	place string // file:line
}

// Validate reads a file and reports all that is wrong with it.
func Validate(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	_, err = parse(path, data)
	return err
}

// parse reads a file's text into values by key. The error is Errors.
func parse(file string, data []byte) (map[string]found, error) {
	r := reader{file: file, values: map[string]found{}}
	root, err := template.ReadDocument(file, "configuration", data)
	var malformed template.Errors
	if errors.As(err, &malformed) {
		for _, p := range malformed {
			r.problems.add(fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column), true, "%s", p.Message)
		}
		return nil, r.problems
	}
	if root != nil && !null(root) { // a file with nothing in it sets nothing
		r.pairs(root, "tasker.yaml", "groups such as worker:", r.group)
	}
	return r.values, r.problems.err()
}

type reader struct {
	file     string
	values   map[string]found
	problems Errors
}

func (r *reader) add(at *yaml.Node, format string, args ...any) {
	r.problems.add(fmt.Sprintf("%s:%d:%d", r.file, max(at.Line, 1), max(at.Column, 1)), true, format, args...)
}

// pairs calls read for each key of a mapping, once.
func (r *reader) pairs(n *yaml.Node, what, of string, read func(name string, key, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		r.add(n, "%s must be a mapping of %s, not %s", what, of, shown(n))
		return
	}
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], follow(n.Content[i+1])
		name := follow(key).Value
		if line, twice := first[name]; twice {
			r.add(key, "%s is given twice; the first is in line %d", quoted(name), line)
			continue
		}
		first[name] = key.Line
		read(name, key, value)
	}
}

func (r *reader) group(name string, key, value *yaml.Node) {
	var names []string
	for _, g := range Groups {
		names = append(names, g.Name)
	}
	if !slices.Contains(names, name) {
		hint := elsewhere(name, "")
		if hint == "" {
			hint = template.DidYouMean(name, names)
		}
		if hint == "" {
			hint = "; the groups are " + strings.Join(names, ", ")
		}
		r.add(key, "unknown key %s in tasker.yaml%s", quoted(name), hint)
		return
	}
	if null(value) {
		return
	}
	r.pairs(value, name, "keys of its settings", func(leaf string, key, value *yaml.Node) { r.setting(name, leaf, key, value) })
}

func (r *reader) setting(group, name string, key, value *yaml.Node) {
	s := Find(group + "." + name)
	if s == nil {
		var names []string
		for i := range Settings {
			if Settings[i].Group() == group {
				names = append(names, Settings[i].Name())
			}
		}
		hint := template.DidYouMean(name, names)
		if hint == "" {
			hint = elsewhere(name, group)
		}
		if hint == "" {
			hint = "; its keys are " + strings.Join(names, ", ")
		}
		r.add(key, "unknown key %s in %s%s", quoted(name), group, hint)
		return
	}
	if null(value) { // the same as left out
		return
	}
	v, fault := s.fromNode(value)
	if fault != "" {
		r.add(value, "%s %s", s.Key, fault)
		return
	}
	r.values[s.Key] = found{v, fmt.Sprintf("%s:%d", r.file, key.Line)}
}

// elsewhere helps who wrote a setting under another group, or a whole key in one.
func elsewhere(name, group string) string {
	for i := range Settings {
		s := &Settings[i]
		if s.Key == name || s.Name() == name && s.Group() != group {
			return fmt.Sprintf("; write %s: under %s:", s.Name(), s.Group())
		}
	}
	return ""
}

// fromNode reads a value of the file. YAML knows kinds, so what has another one
// is refused even where its text could be read.
func (s *Setting) fromNode(n *yaml.Node) (value any, fault string) {
	if s.Kind == List {
		return s.listFrom(n)
	}
	if n.Kind != yaml.ScalarNode {
		return nil, fmt.Sprintf("must be %s, not %s", s.Allowed(), shown(n))
	}
	tag := n.ShortTag()
	switch {
	case s.Kind == Whole && tag == "!!str":
		if _, fault := s.parse(n.Value); fault == "" {
			return nil, fmt.Sprintf("must be %s, and this is text; leave out the quotes", s.Allowed())
		}
	case (s.Kind == URL || s.Kind == Secret) && tag != "!!str":
		return nil, "must be " + s.Allowed()
	case s.Kind == Text && tag != "!!str":
		return nil, fmt.Sprintf("must be text, not %s; write %s: %q", n.Value, s.Name(), n.Value)
	}
	return s.parse(n.Value)
}

func (s *Setting) listFrom(n *yaml.Node) (any, string) {
	if n.Kind != yaml.SequenceNode {
		return nil, fmt.Sprintf("must be a list, not %s; write %s: [%s]", shown(n), s.Name(), n.Value)
	}
	var items []string
	for _, item := range n.Content {
		if item = follow(item); item.Kind != yaml.ScalarNode || item.ShortTag() != "!!str" || item.Value == "" {
			return nil, fmt.Sprintf("must be a list of text, and has %s in line %d", shown(item), item.Line)
		}
		items = append(items, item.Value)
	}
	return items, s.itemsFault(items)
}

func follow(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func null(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func shown(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	default:
		return quoted(n.Value)
	}
}
