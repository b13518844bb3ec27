package template

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// Limits on a file. The largest template (tasker.MaxSteps steps, each with a
// retry policy and a config) stays well within them.
const (
	maxFileBytes = 8 << 20
	maxDepth     = 100       // nesting; a handler_config deeper than that is a mistake
	maxValues    = 1_000_000 // once aliases are followed: nine anchors, each holding the one before nine times, would be 387,420,489
)

// kind is what a value is.
type kind string

// The kinds, as messages call them.
const (
	nothing kind = "null"
	boolean kind = "true or false"
	number  kind = "a number"
	text    kind = "text"
	list    kind = "a list"
	mapping kind = "a mapping"
)

// value is a YAML value with its place. Aliases and merge keys are resolved.
// Values are never changed once they are read, so that overlays and aliases can
// share them.
type value struct {
	kind kind
	place
	text  string   // of scalars, as written
	items []*value // of lists
	pairs []pair   // of mappings, in file order, keys unique
}

type pair struct {
	key   string
	at    place
	value *value
}

// get finds the value of a key. It is nil when there is none, or a null.
func (v *value) get(key string) *value {
	for i := range v.pairs {
		if v.pairs[i].key == key && v.pairs[i].value.kind != nothing {
			return v.pairs[i].value
		}
	}
	return nil
}

// readTree reads the one document of a file. It returns nil when there is
// nothing that could be looked at any further, and has then said why.
func readTree(data []byte, problems *problems) *value {
	document, sound := readDocument(data, "template", problems)
	switch {
	case !sound:
		return nil
	case document == nil:
		problems.add(place{}, "the file is empty; a template needs a name and step_templates")
		return nil
	}
	r := reader{problems: problems}
	root := r.read(document, 0)
	switch {
	case r.stopped:
		return nil
	case root.kind != mapping:
		problems.add(root.place, "a template is a mapping of keys such as name and step_templates; this is %s", root.kind)
		return nil
	}
	return root
}

// ReadDocument reads the one YAML document of a file that is no template, and
// refuses with the same words what can't be read. what is what the file holds.
// The node is nil when the file is empty.
func ReadDocument(file, what string, data []byte) (*yaml.Node, error) {
	problems := &problems{file: file}
	node, _ := readDocument(data, what, problems)
	return node, problems.err()
}

// readDocument returns nil when there is nothing in the file, or, not sound,
// nothing that could be looked at any further.
func readDocument(data []byte, what string, problems *problems) (_ *yaml.Node, sound bool) {
	if len(data) > maxFileBytes {
		problems.add(place{}, "the file has %d bytes, and a %s may have %d", len(data), what, maxFileBytes)
		return nil, false
	}
	if !readable(data, problems) {
		return nil, false
	}
	var document, second yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF):
		return nil, true
	case err != nil:
		malformed(err, problems)
		return nil, false
	}
	switch err := decoder.Decode(&second); {
	case err == nil:
		problems.add(place{second.Line, second.Column}, "a second document starts here, and a file holds one %s; move it to a file of its own", what)
		return nil, false
	case !errors.Is(err, io.EOF):
		malformed(err, problems)
		return nil, false
	}
	if len(document.Content) != 1 {
		return nil, true
	}
	return document.Content[0], true
}

// readable refuses what neither YAML nor Postgres takes, before the parser
// sees it: its own message for this has no place.
func readable(data []byte, problems *problems) bool {
	at := place{1, 1}
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			problems.add(at, "this is not valid UTF-8 (byte 0x%02X); save the file as UTF-8", data[i])
			return false
		case r == 0:
			problems.add(at, "a NUL byte; remove it")
			return false
		case r == '\n':
			at = place{at.line + 1, 0}
		case r < ' ' && r != '\t' && r != '\r', r == 0x7F:
			problems.add(at, "a control character (0x%02X); remove it, or write it as an escape within double quotes", r)
			return false
		}
		i += size
		at.column++
	}
	return true
}

// malformed reports what the YAML parser says.
func malformed(err error, problems *problems) {
	var at place
	message := err.Error()
	if load := new(yaml.LoadError); errors.As(err, &load) {
		message = load.Message
		mark := load.Mark
		if mark.Line == 0 {
			mark = load.ContextMark
		}
		at = place{mark.Line, mark.Column}
		if load.ContextMsg != "" {
			message = load.ContextMsg + ": " + message
			if started := load.ContextMark; started.Line > 0 && started.Line != mark.Line {
				message += " (it starts in line " + itoa(started.Line) + ")"
			}
		}
	}
	problems.add(at, "malformed YAML: %s", strings.TrimPrefix(message, "yaml: "))
}

// reader turns the parser's nodes into values.
type reader struct {
	problems *problems
	values   int
	stopped  bool // a limit is passed: nothing more is read
}

func (r *reader) stop(at place, format string, args ...any) {
	if !r.stopped {
		r.stopped = true
		r.problems.add(at, format, args...)
	}
}

// read reads a node. It never returns nil.
func (r *reader) read(n *yaml.Node, depth int) *value {
	v := &value{kind: nothing, place: place{n.Line, n.Column}}
	r.values++
	switch {
	case r.stopped:
		return v
	case depth > maxDepth: // this also ends an alias that holds itself
		r.stop(v.place, "nested more than %d levels deep, or an alias that contains itself", maxDepth)
		return v
	case r.values > maxValues:
		r.stop(v.place, "more than %d values, once aliases are followed", maxValues)
		return v
	}

	switch n.Kind {
	case yaml.AliasNode:
		return r.read(n.Alias, depth+1)
	case yaml.ScalarNode:
		r.readScalar(v, n)
	case yaml.SequenceNode:
		r.checkTag(v, n, "!!seq")
		v.kind = list
		for _, item := range n.Content {
			v.items = append(v.items, r.read(item, depth+1))
		}
	case yaml.MappingNode:
		r.checkTag(v, n, "!!map")
		r.readMapping(v, n, depth)
	default:
		r.problems.add(v.place, "this can't be read as YAML")
	}
	return v
}

func (r *reader) checkTag(v *value, n *yaml.Node, allowed string) {
	if tag := n.ShortTag(); tag != allowed {
		r.problems.add(v.place, "the tag %s is not allowed; a template holds plain values", tag)
	}
}

func (r *reader) readScalar(v *value, n *yaml.Node) {
	v.text = n.Value
	switch tag := n.ShortTag(); tag {
	case "!!null":
		v.kind = nothing
	case "!!bool":
		v.kind, v.text = boolean, strings.ToLower(n.Value)
		if v.text != "true" && v.text != "false" {
			r.problems.add(v.place, "%q is neither true nor false", shorten(n.Value))
			v.kind = nothing // so that what reads on takes the default
		}
	case "!!int", "!!float":
		v.kind = number
		if _, fault := normalNumber(n.Value); fault != "" {
			r.problems.add(v.place, "%s", fault)
			v.kind = nothing
		}
	case "!!str", "!!timestamp", "!!merge":
		v.kind = text
		if strings.ContainsRune(n.Value, 0) {
			r.problems.add(v.place, "this text contains a NUL character, which Postgres can't store; remove it")
		}
	default:
		v.kind = text
		r.checkTag(v, n, "!!str")
	}
}

// readMapping reads pairs, refuses keys that are given twice, and resolves
// merge keys: what a mapping says itself goes before what it merges in, and of
// several merged mappings the first goes before the next.
func (r *reader) readMapping(v *value, n *yaml.Node, depth int) {
	v.kind = mapping
	seen := make(map[string]place, len(n.Content)/2)
	var merged []*value
	for k := 0; k+1 < len(n.Content) && !r.stopped; k += 2 {
		key, at := n.Content[k], place{n.Content[k].Line, n.Content[k].Column}
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if key.ShortTag() == "!!merge" {
			merged = append(merged, r.readMerged(n.Content[k+1], depth+1)...)
			continue
		}
		name, sound := r.readKey(key, at, depth+1)
		held := r.read(n.Content[k+1], depth+1)
		if !sound {
			continue
		}
		if first, twice := seen[name]; twice {
			r.problems.add(at, "%q is given twice; the first is in line %d", shorten(name), first.line)
			continue
		}
		seen[name] = at
		v.pairs = append(v.pairs, pair{key: name, at: at, value: held})
	}
	for _, m := range merged {
		for _, p := range m.pairs {
			if _, own := seen[p.key]; !own {
				seen[p.key] = p.at
				v.pairs = append(v.pairs, p)
			}
		}
	}
}

// readKey reads a mapping's key. Numbers and the like are taken as they are
// written, as in 200: or true:.
func (r *reader) readKey(n *yaml.Node, at place, depth int) (name string, sound bool) {
	switch key := r.read(n, depth); key.kind {
	case nothing, list, mapping:
		if r.stopped {
			return "", false
		}
		r.problems.add(at, "a key must be text, not %s", key.kind)
		return "", false
	default:
		return n.Value, true
	}
}

// readMerged reads the value of a merge key: a mapping or a list of mappings.
func (r *reader) readMerged(n *yaml.Node, depth int) []*value {
	v := r.read(n, depth)
	found := []*value{v}
	if v.kind == list {
		found = v.items
	}
	for _, m := range found {
		if m.kind != mapping && !r.stopped {
			r.problems.add(place{n.Line, n.Column}, "<< merges mappings, and this is %s", m.kind)
		}
	}
	return found
}
