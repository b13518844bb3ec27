package template

import (
	"math"
	"regexp"
	"slices"
	"strconv"

	"github.com/taskerhq/tasker"
)

// fields reads the keys of one mapping into Go values. What doesn't fit is
// reported and read as if it weren't there, so that reading goes on.
type fields struct {
	*problems
	of   *value
	what string // what the mapping is, for messages
}

// only reports keys that nobody will read.
func (f fields) only(keys []string) {
	for _, p := range f.of.pairs {
		if slices.Contains(keys, p.key) {
			continue
		}
		if advice, old := retiredKeys[p.key]; old {
			f.add(p.at, "%q is a key of Tasker's Rails engine; %s", p.key, advice)
			continue
		}
		hint := didYouMean(p.key, keys)
		if hint == "" {
			hint = "; the keys are " + enumerate(keys)
		}
		f.add(p.at, "unknown key %q in %s%s", shorten(p.key), f.what, hint)
	}
}

// retiredKeys help who brings a template along from the Rails engine.
var retiredKeys = map[string]string{
	"named_steps":              "remove it: the steps are those of step_templates",
	"concurrent":               "remove it, or limit max_parallel_steps to 1 to run one step at a time",
	"module_namespace":         "remove it: handler_class is the full name of the class",
	"default_dependent_system": "remove it",
	"dependent_system":         "remove it",
	"custom_events":            "remove it: each transition has its event",
}

func (f fields) kindOf(key string, wanted kind) *value {
	v := f.of.get(key)
	if v == nil {
		return nil
	}
	if v.kind == wanted {
		return v
	}
	switch {
	case wanted == text && (v.kind == number || v.kind == boolean):
		f.add(v.place, "%s must be text, not %s; write %s: %q", key, v.shown(), key, v.text)
	default:
		f.add(v.place, "%s must be %s, not %s", key, wanted, v.shown())
	}
	return nil
}

// text reads free text.
func (f fields) text(key string) string {
	if v := f.kindOf(key, text); v != nil {
		return v.text
	}
	return ""
}

// matching reads text that has to look like form, which example spells out.
func (f fields) matching(key string, form *regexp.Regexp, example string) string {
	v := f.kindOf(key, text)
	if v == nil {
		return ""
	}
	if !form.MatchString(v.text) {
		f.add(v.place, "%s must be %s, not %s", key, example, v.shown())
		return ""
	}
	return v.text
}

const maxNameBytes = 128

var (
	nameForm     = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.-]*$`)
	versionForm  = regexp.MustCompile(`^(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})$`)
	constantForm = regexp.MustCompile(`^[A-Z][A-Za-z0-9_]*(::[A-Z][A-Za-z0-9_]*)*$`)
)

// name reads a name of ours. It becomes part of keys, paths and metrics, so it
// holds no more than letters, digits, dot, dash and underscore.
func (f fields) name(key string) string {
	v := f.kindOf(key, text)
	if v == nil || !f.soundName(key, v) {
		return ""
	}
	return v.text
}

func (f fields) soundName(key string, v *value) bool {
	switch {
	case v.text == "":
		f.add(v.place, "%s is empty; give it a value", key)
	case len(v.text) > maxNameBytes:
		f.add(v.place, "%s has %d bytes, and a name may have %d", key, len(v.text), maxNameBytes)
	case !nameForm.MatchString(v.text):
		f.add(v.place, "%s may hold letters, digits, _, . and -, and must not begin with one of the last two; %s is no such name", key, v.shown())
	default:
		return true
	}
	return false
}

// constant reads the full name of a Ruby class.
func (f fields) constant(key string) string {
	return f.matching(key, constantForm, "the full name of a Ruby class, as Billing::Charge")
}

func (f fields) truth(key string, otherwise bool) bool {
	if v := f.kindOf(key, boolean); v != nil {
		return v.text == "true"
	}
	return otherwise
}

// whole reads a whole number of at least least; Postgres keeps it as an
// integer.
func (f fields) whole(key string, least, otherwise int) int {
	v := f.kindOf(key, number)
	if v == nil {
		return otherwise
	}
	n, err := strconv.Atoi(v.decimal())
	switch {
	case err == nil && n < least:
		f.add(v.place, "%s must be at least %d, not %s", key, least, v.text)
	case err != nil || n > math.MaxInt32:
		f.add(v.place, "%s must be a whole number from %d to %d, not %s", key, least, math.MaxInt32, v.shown())
	default:
		return n
	}
	return otherwise
}

// maxSeconds is a year of 365 days. No wait within a workflow is meant to be
// longer, and up to here every unit and interval holds it.
const maxSeconds = 365 * 24 * 60 * 60

func (f fields) seconds(key string, otherwise tasker.Seconds) tasker.Seconds {
	return tasker.Seconds(f.real(key, 0, maxSeconds, float64(otherwise)))
}

// real reads a number from least to most.
func (f fields) real(key string, least, most, otherwise float64) float64 {
	v := f.kindOf(key, number)
	if v == nil {
		return otherwise
	}
	x, err := strconv.ParseFloat(v.decimal(), 64)
	if err != nil || x < least || x > most {
		f.add(v.place, "%s must be a number from %v to %s, not %s", key, least, strconv.FormatFloat(most, 'f', -1, 64), v.shown())
		return otherwise
	}
	return x
}

// list reads the items of a list.
func (f fields) list(key string) []*value {
	if v := f.kindOf(key, list); v != nil {
		return v.items
	}
	return nil
}

// object reads a mapping that is kept as JSON.
func (f fields) object(key string) *value { return f.kindOf(key, mapping) }

// shown is the value as a message quotes it.
func (v *value) shown() string {
	switch v.kind {
	case text:
		return strconv.Quote(shorten(v.text))
	case number, boolean:
		return shorten(v.text)
	default:
		return string(v.kind)
	}
}

func shorten(s string) string {
	const most = 100
	if runes := []rune(s); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return s
}
