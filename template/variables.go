package template

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

var variableForm = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// interpolate replaces ${NAME} in all text values, also those of overlays that
// aren't chosen, and $${ by ${. Keys stay as they are. What a variable holds
// is text and stays text: it is never read as YAML, nor looked through for
// further names, so it can't change the shape of a template.
func interpolate(v *value, variables map[string]string, problems *problems) {
	for _, item := range v.items {
		interpolate(item, variables, problems)
	}
	for _, p := range v.pairs {
		interpolate(p.value, variables, problems)
	}
	if v.kind == text && strings.Contains(v.text, "${") {
		v.text = expand(v, variables, problems)
	}
}

func expand(v *value, variables map[string]string, problems *problems) string {
	var out strings.Builder
	rest := v.text
	for {
		at := strings.Index(rest, "${")
		switch {
		case at < 0:
			out.WriteString(rest)
			return out.String()
		case at > 0 && rest[at-1] == '$':
			out.WriteString(rest[:at-1])
			out.WriteString("${")
			rest = rest[at+len("${"):]
			continue
		}
		out.WriteString(rest[:at])
		name, after, closed := strings.Cut(rest[at+len("${"):], "}")
		held, known := variables[name]
		switch {
		case !closed:
			problems.add(v.place, "${ has no } after it; write $${ to have ${ as text")
			return v.text
		case !variableForm.MatchString(name):
			problems.add(v.place, "${%s} names no variable: a name has letters, digits and _; write $${ to have ${ as text", shorten(name))
		case !known:
			problems.add(v.place, "${%s} is not among the variables that templates may use, which are %s%s; write $${ to have ${ as text",
				shorten(name), allowed(variables), didYouMean(name, slices.Sorted(maps.Keys(variables))))
		case strings.ContainsRune(held, 0) || !utf8.ValidString(held):
			problems.add(v.place, "${%s} holds a NUL or is not UTF-8, which Postgres can't store", name)
		default:
			out.WriteString(held)
		}
		rest = after
	}
}

func allowed(variables map[string]string) string {
	if len(variables) == 0 {
		return "none"
	}
	return enumerate(slices.Sorted(maps.Keys(variables)))
}
