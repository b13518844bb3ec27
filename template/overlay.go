package template

import "slices"

// overlay is what one environment changes about a template.
type overlay struct {
	environment string
	v           *value
}

// An overlay may not make another template of the one it changes.
var identityKeys = []string{"name", "namespace_name", "version", "environments"}

// choices are keys that stand for one another: an overlay that gives one of
// them replaces all, so that a test may put a Go handler in place of a Ruby
// class, or other dependencies in place of those there are.
var choices = [][]string{
	{"handler_class", "handler"},
	{"depends_on_step", "depends_on_steps"},
}

// overlays lists a template's overlays in file order.
func overlays(root *value, problems *problems) []overlay {
	f := fields{problems: problems, of: root, what: "the template"}
	environments := f.object("environments")
	if environments == nil {
		return nil
	}
	var found []overlay
	for _, p := range environments.pairs {
		switch sound := f.soundName("an environment's name", &value{kind: text, place: p.at, text: p.key}); {
		case !sound, p.value.kind == nothing:
		case p.value.kind == mapping:
			found = append(found, overlay{environment: p.key, v: p.value})
		default:
			problems.add(p.value.place, "environment %q must be a mapping of what it changes, not %s", p.key, p.value.shown())
		}
	}
	return found
}

// mergeInto returns the template as the overlay makes it. Mappings merge key by
// key, step_templates step by step, by name; all else, lists too, is replaced.
// A null removes what is there.
func (o overlay) mergeInto(root *value, problems *problems) *value {
	changes := &value{kind: mapping, place: o.v.place}
	var steps *value
	for _, p := range o.v.pairs {
		switch {
		case slices.Contains(identityKeys, p.key):
			problems.add(p.at, "environment %q can't change %s: it would be another template", o.environment, p.key)
		case p.key == "step_templates":
			steps = p.value
		default:
			changes.pairs = append(changes.pairs, p)
		}
	}
	merged := merge(root, changes)
	if steps != nil && steps.kind != nothing {
		merged = o.mergeSteps(merged, steps, problems)
	}
	return merged
}

func (o overlay) mergeSteps(root, changes *value, problems *problems) *value {
	if changes.kind != list {
		problems.add(changes.place, "step_templates of environment %q must be a list, not %s", o.environment, changes.shown())
		return root
	}
	base := root.get("step_templates")
	if base == nil || base.kind != list {
		return root // reported with the base
	}
	positions := make(map[string]int, len(base.items))
	var names []string
	for i, step := range base.items {
		if name := step.get("name"); name != nil {
			positions[name.text] = i
			names = append(names, name.text)
		}
	}

	steps := slices.Clone(base.items)
	changed := make(map[string]place, len(changes.items))
	for i, change := range changes.items {
		name := change.get("name")
		if name == nil || name.kind != text {
			problems.add(change.place, "step %d of environment %q has no name; name the step that it changes", i+1, o.environment)
			continue
		}
		at, known := positions[name.text]
		if !known {
			problems.add(name.place, "environment %q changes step %s, and there is no such step; the steps are %s%s",
				o.environment, name.shown(), enumerate(names), didYouMean(name.text, names))
			continue
		}
		if first, twice := changed[name.text]; twice {
			problems.add(name.place, "environment %q changes step %s twice; the first is in line %d", o.environment, name.shown(), first.line)
			continue
		}
		changed[name.text] = name.place
		steps[at] = merge(withoutChoices(steps[at], change), change)
	}
	return merge(root, &value{kind: mapping, place: root.place, pairs: []pair{{
		key: "step_templates", at: base.place, value: &value{kind: list, place: base.place, items: steps},
	}}})
}

// withoutChoices leaves out of a step what the change gives in another spelling.
func withoutChoices(step, change *value) *value {
	left := *step
	for _, keys := range choices {
		given := slices.ContainsFunc(keys, func(key string) bool { return change.get(key) != nil })
		if given {
			left.pairs = slices.DeleteFunc(slices.Clone(left.pairs), func(p pair) bool { return slices.Contains(keys, p.key) })
		}
	}
	return &left
}

// merge lays change over base. Neither is altered.
func merge(base, change *value) *value {
	if base.kind != mapping || change.kind != mapping {
		return change
	}
	merged := &value{kind: mapping, place: base.place, pairs: make([]pair, 0, len(base.pairs)+len(change.pairs))}
	changes := make(map[string]pair, len(change.pairs))
	for _, p := range change.pairs {
		changes[p.key] = p
	}
	for _, p := range base.pairs {
		over, changed := changes[p.key]
		switch {
		case !changed:
			merged.pairs = append(merged.pairs, p)
		case over.value.kind != nothing:
			merged.pairs = append(merged.pairs, pair{key: p.key, at: over.at, value: merge(p.value, over.value)})
		}
		delete(changes, p.key)
	}
	for _, p := range change.pairs {
		if _, added := changes[p.key]; added && p.value.kind != nothing {
			merged.pairs = append(merged.pairs, p)
		}
	}
	return merged
}
