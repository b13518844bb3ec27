// Package template reads workflow templates from YAML.
//
// Who decides. Parse is strict: what it doesn't know it refuses, and it says
// where and how to mend it. Everything that is wrong is reported at once, each
// problem with file, line and column, because a template is mended by a person
// in an editor. Package dag is the judge of the dependencies; this package only
// finds the places of what dag complains about.
//
// What is trusted. Nothing: files come from other repositories and from uploads.
// Size, nesting and the growth of aliases are bounded, tags that stand for
// objects are refused, and so is text that Postgres can't hold (NUL, invalid
// UTF-8). What Parse returns is complete (defaults are filled in, overlays
// merged, retry policies resolved per step, variables replaced), so that no reader of a
// tasker.Template has to know a default.
//
// What happens when it breaks. An error of Parse is an Errors: no template
// comes with it. LoadFolder reads all files before it gives up, and returns all
// templates or none, so that half a deployment is never registered.
//
// Three things that YAML leaves open are settled here. A null value is the same
// as a key left out, and in an overlay it removes what is there. Keys of schema
// and handler_config are sorted and numbers normalised, since they are kept as
// JSON and compared by Checksum. And words such as yes and on are text, as in
// YAML 1.2; where true or false is wanted the message says so.
package template

import (
	"cmp"
	"slices"

	"github.com/taskerhq/tasker"
)

// Options say how to read a template.
type Options struct {
	// Environment names the overlay that is merged in. A template without an
	// overlay of that name is taken as it stands. All overlays are checked,
	// whichever is chosen: a mistake in production's shows in development.
	Environment string

	// Variables are what ${NAME} in a text value may name, and what is put in
	// its place; other names are refused. They are an allow-list: a template may
	// come from elsewhere, so it must not read whatever is in the environment.
	Variables map[string]string
}

// Parse reads one template from YAML; file is only its name, for messages. The
// error is an Errors, with everything that is wrong.
func Parse(file string, data []byte, opts Options) (*tasker.Template, error) {
	t, _, err := parse(file, data, opts)
	return t, err
}

// parse is Parse, and says where the template has its name.
func parse(file string, data []byte, opts Options) (*tasker.Template, place, error) {
	problems := &problems{file: file}
	root := readTree(data, problems)
	if root == nil {
		return nil, place{}, problems.err()
	}
	found := len(problems.list)
	interpolate(root, opts.Variables, problems)
	if err := problems.err(); err != nil && len(problems.list) > found {
		return nil, place{}, err // what a missing value leads to is no mistake of its own
	}

	// The base is read even where it isn't what is asked for: its problems are
	// told once and plainly, those that an overlay brings name the overlay.
	chosen := decodeTemplate(root, problems)
	for _, overlay := range overlays(root, problems) {
		merged := overlay.mergeInto(root, problems)
		inOverlay := problems.within(overlay.environment)
		t := decodeTemplate(merged, inOverlay)
		problems.take(inOverlay)
		if overlay.environment == opts.Environment {
			chosen = t
		}
	}
	if err := problems.err(); err != nil {
		return nil, place{}, err
	}
	return chosen, root.get("name").place, nil
}

// Problem is one thing that is wrong with a template.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line"`   // from 1
	Column  int    `json:"column"` // from 1, in characters
	Message string `json:"message"`
}

func comparePlaces(a, b Problem) int {
	return cmp.Or(
		cmp.Compare(a.File, b.File),
		cmp.Compare(a.Line, b.Line),
		cmp.Compare(a.Column, b.Column),
		cmp.Compare(a.Message, b.Message),
	)
}

// sorted puts problems in the order of the file, each once.
func sorted(list []Problem) Errors {
	slices.SortFunc(list, comparePlaces)
	return slices.Compact(list)
}
