package template

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/dag"
)

// Defaults of what a template leaves out.
const (
	defaultNamespace        = "default"
	defaultVersion          = "0.1.0"
	defaultMaxParallelSteps = 10
	defaultRetryLimit       = 3
)

var (
	templateKeys = []string{
		"name", "namespace_name", "version", "description", "task_handler_class", "schema",
		"max_parallel_steps", "on_failure", "deadline_seconds", "idempotency", "retry", "step_templates", "environments",
	}
	stepKeys = []string{
		"name", "description", "handler_class", "handler", "depends_on_step", "depends_on_steps",
		"default_retryable", "default_retry_limit", "retry", "timeout_seconds", "schedule_to_start_seconds", "heartbeat_seconds",
		"queue", "limit_key", "handler_config", "skippable", "bypassable", "result_schema",
	}
	retryKeys = []string{"backoff", "base_seconds", "cap_seconds", "jitter", "retry_after_cap_seconds"}

	backoffs = []string{
		string(tasker.BackoffNone), string(tasker.BackoffFixed), string(tasker.BackoffLinear),
		string(tasker.BackoffExponential), string(tasker.BackoffFibonacci),
	}
)

// decodeTemplate reads a template whose overlay, if any, is merged in already.
// What it returns is sound only when nothing was reported.
func decodeTemplate(root *value, problems *problems) *tasker.Template {
	f := fields{problems: problems, of: root, what: "the template"}
	f.only(templateKeys)
	t := &tasker.Template{
		Namespace:        defaultNamespace,
		Name:             f.name("name"),
		Version:          defaultVersion,
		Description:      f.text("description"),
		TaskHandlerClass: f.constant("task_handler_class"),
		MaxParallelSteps: f.whole("max_parallel_steps", 1, defaultMaxParallelSteps),
	}
	if root.get("name") == nil {
		f.add(root.place, "the template has no name; add name: and a name")
	}
	if namespace := f.name("namespace_name"); namespace != "" {
		t.Namespace = namespace
	}
	if version := f.version(); version != "" {
		t.Version = version
	}
	t.Schema = f.schema("schema")
	t.OnFailure = tasker.OnFailure(f.oneOf("on_failure", string(tasker.Continue), string(tasker.FailFast)))
	t.Idempotency = tasker.Idempotency(f.oneOf("idempotency", string(tasker.IdempotentByKey), string(tasker.IdempotentByContext)))
	t.Deadline = f.seconds("deadline_seconds", 0)
	retry := f.retry(tasker.DefaultRetryPolicy())
	f.steps(t, retry)
	return t
}

// oneOf reads a word of a list. It leaves the default, which is the first,
// empty, whether it is written or not: templates from before the key was known
// keep their checksum, and so stay unchanged.
func (f fields) oneOf(key string, words ...string) string {
	v := f.kindOf(key, text)
	switch {
	case v == nil || v.text == words[0]:
	case slices.Contains(words, v.text):
		return v.text
	default:
		f.add(v.place, "unknown %s %s; there are %s%s", key, v.shown(), enumerate(words), didYouMean(v.text, words))
	}
	return ""
}

func (f fields) version() string {
	v := f.of.get("version")
	if v != nil && v.kind == number { // 1.2 is a number to YAML, and so is 1
		f.add(v.place, "version must be MAJOR.MINOR.PATCH, as 1.2.0, not %s", v.text)
		return ""
	}
	return f.matching("version", versionForm, "MAJOR.MINOR.PATCH, as 1.2.0")
}

// retry reads a retry policy; what it leaves out is as in otherwise.
func (f fields) retry(otherwise tasker.RetryPolicy) tasker.RetryPolicy {
	v := f.object("retry")
	if v == nil {
		return otherwise
	}
	r := fields{problems: f.problems, of: v, what: "retry"}
	r.only(retryKeys)
	policy := tasker.RetryPolicy{
		Backoff:       otherwise.Backoff,
		Base:          r.seconds("base_seconds", otherwise.Base),
		Cap:           r.seconds("cap_seconds", otherwise.Cap),
		Jitter:        r.real("jitter", 0, 1, otherwise.Jitter),
		RetryAfterCap: r.seconds("retry_after_cap_seconds", otherwise.RetryAfterCap),
	}
	if backoff := r.kindOf("backoff", text); backoff != nil {
		if slices.Contains(backoffs, backoff.text) {
			policy.Backoff = tasker.Backoff(backoff.text)
		} else {
			r.add(backoff.place, "unknown backoff %s; there are %s%s", backoff.shown(), enumerate(backoffs), didYouMean(backoff.text, backoffs))
		}
	}
	if policy.Base > policy.Cap && policy.Backoff != tasker.BackoffNone {
		r.add(v.place, "base_seconds (%v) is above cap_seconds (%v), so every delay would be the cap; raise cap_seconds", policy.Base, policy.Cap)
	}
	return policy
}

// stepPlaces remembers where a step and its dependencies are written.
type stepPlaces struct {
	name         place
	dependencies map[string]place
}

func (f fields) steps(t *tasker.Template, retry tasker.RetryPolicy) {
	v := f.kindOf("step_templates", list)
	switch {
	case v == nil && f.of.get("step_templates") == nil:
		f.add(f.of.place, "the template has no step_templates; add the list of its steps")
		return
	case v == nil:
		return
	case len(v.items) == 0:
		f.add(v.place, "step_templates is empty; a template needs a step")
		return
	case len(v.items) > tasker.MaxSteps:
		f.add(v.place, "step_templates has %d steps, and a template may have %d", len(v.items), tasker.MaxSteps)
		return
	}
	t.Steps = make([]tasker.StepTemplate, 0, len(v.items))
	places := make([]stepPlaces, 0, len(v.items))
	for i, item := range v.items {
		if item.kind != mapping {
			f.add(item.place, "step %d must be a mapping with a name and a handler, not %s", i+1, item.shown())
			continue
		}
		step, at := f.step(i, item, retry)
		if step.Name != "" {
			t.Steps = append(t.Steps, step)
			places = append(places, at)
		}
	}
	f.checkGraph(t.Steps, places)
}

func (f fields) step(i int, v *value, retry tasker.RetryPolicy) (tasker.StepTemplate, stepPlaces) {
	s := fields{problems: f.problems, of: v, what: fmt.Sprintf("step %d", i+1)}
	name := s.name("name")
	at := stepPlaces{name: v.place}
	if written := v.get("name"); written != nil {
		at.name = written.place
		if len(written.text) <= maxNameBytes {
			name = written.text // wrong ones too: to depend on one is no mistake of its own
		}
		s.what = "step " + written.shown()
	} else {
		s.add(v.place, "step %d has no name; add name: and a name", i+1)
	}
	s.only(stepKeys)
	step := tasker.StepTemplate{
		Name:         name,
		Description:  s.text("description"),
		HandlerClass: s.constant("handler_class"),
		Handler:      s.name("handler"),
		Retryable:    s.truth("default_retryable", true),
		RetryLimit:   s.whole("default_retry_limit", 1, defaultRetryLimit),
		Retry:        s.retry(retry),
		Timeout:      s.seconds("timeout_seconds", 0),
		StartTimeout: s.seconds("schedule_to_start_seconds", 0),
		Heartbeat:    s.seconds("heartbeat_seconds", 0),
		LimitKey:     s.name("limit_key"),
		Queue:        s.name("queue"),
		Skippable:    s.truth("skippable", false),
		Bypassable:   s.truth("bypassable", false),
		ResultSchema: s.schema("result_schema"),
	}
	switch class, handler := v.get("handler_class"), v.get("handler"); {
	case class == nil && handler == nil:
		s.add(at.name, "%s has no handler; give it a handler_class (a Ruby class) or a handler (a Go handler)", s.what)
	case class != nil && handler != nil:
		s.add(handler.place, "%s has both handler_class (line %d) and handler; keep one", s.what, class.line)
	case handler != nil && strings.HasPrefix(step.Handler, "tasker.") && !slices.Contains(tasker.BuiltinHandlers, step.Handler):
		s.add(handler.place, "%s names %s, and there is no such handler among those that a worker brings: %s%s",
			s.what, step.Handler, strings.Join(tasker.BuiltinHandlers, ", "), didYouMean(step.Handler, tasker.BuiltinHandlers))
	}
	if config := s.object("handler_config"); config != nil {
		step.HandlerConfig = config.json()
	}
	step.DependsOn, at.dependencies = s.dependencies()
	return step, at
}

// dependencies reads both spellings into one list: depends_on_step first, each
// name once.
func (f fields) dependencies() ([]string, map[string]place) {
	var written []*value
	if one := f.kindOf("depends_on_step", text); one != nil {
		written = append(written, one)
	}
	if many := f.of.get("depends_on_steps"); many != nil && many.kind == text {
		f.add(many.place, "depends_on_steps must be a list, not %s; for a single step write depends_on_step", many.shown())
	} else {
		written = append(written, f.list("depends_on_steps")...)
	}
	var names []string
	places := make(map[string]place, len(written))
	for _, v := range written {
		if v.kind != text {
			f.add(v.place, "a dependency must be the name of a step, not %s", v.shown())
			continue
		}
		if _, twice := places[v.text]; !twice {
			places[v.text] = v.place
			names = append(names, v.text)
		}
	}
	return names, places
}

// checkGraph asks dag, and finds the places of what it complains about.
func (f fields) checkGraph(steps []tasker.StepTemplate, places []stepPlaces) {
	_, err := dag.New(steps)
	names := namesOf(steps)
	for _, problem := range dag.Problems(err) {
		if f.cut {
			return
		}
		var (
			duplicate *dag.DuplicateNameError
			unknown   *dag.UnknownDependencyError
			self      *dag.SelfDependencyError
			cycle     *dag.CycleError
		)
		switch {
		case errors.As(problem, &duplicate):
			first := places[duplicate.First].name
			f.add(places[duplicate.Second].name, "%v (the other is in line %d)", duplicate, first.line)
		case errors.As(problem, &unknown):
			f.add(places[unknown.Position].dependencies[unknown.Dependency], "step %q depends on %q, and there is no such step; the steps are %s%s",
				unknown.Step, shorten(unknown.Dependency), enumerate(names), didYouMean(unknown.Dependency, names))
		case errors.As(problem, &self):
			f.add(places[self.Position].dependencies[self.Step], "%v", self)
		case errors.As(problem, &cycle):
			f.add(f.startOf(cycle, steps, places), "%v", cycle)
		default:
			f.add(f.of.place, "%v", problem)
		}
	}
}

// startOf is where the first step of a cycle names the last one, the edge that
// closes it.
func (f fields) startOf(cycle *dag.CycleError, steps []tasker.StepTemplate, places []stepPlaces) place {
	first, last := cycle.Cycle[0], cycle.Cycle[len(cycle.Cycle)-1]
	for i := range steps {
		if steps[i].Name == first {
			return places[i].dependencies[last]
		}
	}
	return f.of.place
}

func namesOf(steps []tasker.StepTemplate) []string {
	names := make([]string, len(steps))
	for i := range steps {
		names[i] = steps[i].Name
	}
	return names
}
