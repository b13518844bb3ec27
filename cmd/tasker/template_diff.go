package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/store"
)

func (a *app) diffCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "diff A B", Short: "Show what changes from one template to another",
		Long: `A and B are registered templates, as billing/settle_invoice@1.2.0, or files, as
config/tasker/tasks/settle_invoice.yaml. With a database it also says how many
tasks are still to be finished by which version: they keep the one that they
started with.`,
		Args: argsExactly(2),
		RunE: func(c *cobra.Command, args []string) error {
			var sides [2]*tasker.Template
			for i, arg := range args {
				var err error
				if isTemplateFile(arg) {
					sides[i], err = a.templateFromFile(arg, "")
				} else {
					sides[i], err = a.registeredTemplate(c.Context(), arg)
				}
				if err != nil {
					return err
				}
			}
			diff, err := diffTemplates(sides[0], sides[1])
			if err != nil {
				return err
			}
			if a.databaseURL != "" {
				if err := a.withStore(c.Context(), func(s *store.Store) error {
					diff.OpenTasks, err = s.OpenTasksByVersion(c.Context(), sides[0].Namespace, sides[0].Name)
					return err
				}); err != nil {
					return err
				}
			}
			if a.output == "json" {
				return a.printJSON(diff)
			}
			diff.print(a.stdout)
			return nil
		},
	}
	a.settingFlags(c.Flags(), readingSettings...)
	return c
}

func isTemplateFile(arg string) bool {
	ext := filepath.Ext(arg)
	return ext == ".yaml" || ext == ".yml"
}

// templateDiff is what changes from one template to another.
type templateDiff struct {
	From      string              `json:"from"`
	To        string              `json:"to"`
	Same      bool                `json:"same"`
	Fields    []fieldChange       `json:"fields"`
	Added     []graphStepSummary  `json:"added"`
	Removed   []graphStepSummary  `json:"removed"`
	Changed   []stepChange        `json:"changed"`
	Reordered bool                `json:"reordered"`            // the steps that both have
	OpenTasks []store.TemplateUse `json:"open_tasks,omitempty"` // of From's name, by version
}

// fieldChange is one field, by its path within the template or step. Old or
// New is missing where the field is.
type fieldChange struct {
	Field string          `json:"field"`
	Old   json.RawMessage `json:"old,omitempty"`
	New   json.RawMessage `json:"new,omitempty"`
}

type stepChange struct {
	Step   string        `json:"step"`
	Fields []fieldChange `json:"fields"`
}

type graphStepSummary struct {
	Step    string   `json:"step"`
	Handler string   `json:"handler"`
	After   []string `json:"after"`
}

func diffTemplates(from, to *tasker.Template) (*templateDiff, error) {
	d := &templateDiff{From: from.FullName(), To: to.FullName(),
		Fields: []fieldChange{}, Added: []graphStepSummary{}, Removed: []graphStepSummary{}, Changed: []stepChange{}}
	var err error
	if d.Fields, err = diffFields(headOf(from), headOf(to)); err != nil {
		return nil, err
	}
	before, after := stepsByName(from), stepsByName(to)
	var kept [2][]string
	for i := range from.Steps {
		s := &from.Steps[i]
		now, still := after[s.Name]
		if !still {
			d.Removed = append(d.Removed, summary(s))
			continue
		}
		kept[0] = append(kept[0], s.Name)
		fields, err := diffFields(s, now)
		if err != nil {
			return nil, err
		}
		if len(fields) > 0 {
			d.Changed = append(d.Changed, stepChange{s.Name, fields})
		}
	}
	for i := range to.Steps {
		if s := &to.Steps[i]; before[s.Name] == nil {
			d.Added = append(d.Added, summary(s))
		} else {
			kept[1] = append(kept[1], s.Name)
		}
	}
	d.Reordered = !slices.Equal(kept[0], kept[1])
	d.Same = len(d.Fields)+len(d.Added)+len(d.Removed)+len(d.Changed) == 0 && !d.Reordered
	return d, nil
}

func summary(s *tasker.StepTemplate) graphStepSummary {
	return graphStepSummary{s.Name, handlerOf(s), append([]string{}, s.DependsOn...)}
}

// headOf is the template without its steps, and without its version, which
// stands in the head of the answer.
func headOf(t *tasker.Template) *tasker.Template {
	head := *t
	head.Steps, head.Version = nil, ""
	return &head
}

func stepsByName(t *tasker.Template) map[string]*tasker.StepTemplate {
	byName := make(map[string]*tasker.StepTemplate, len(t.Steps))
	for i := range t.Steps {
		byName[t.Steps[i].Name] = &t.Steps[i]
	}
	return byName
}

// diffFields compares what two values say as JSON, field by field.
func diffFields(from, to any) ([]fieldChange, error) {
	before, err := flatten(from)
	if err != nil {
		return nil, err
	}
	after, err := flatten(to)
	if err != nil {
		return nil, err
	}
	changes := []fieldChange{}
	paths := maps.Clone(before)
	maps.Copy(paths, after)
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		if old, now := before[path], after[path]; !bytes.Equal(old, now) {
			changes = append(changes, fieldChange{path, old, now})
		}
	}
	return changes, nil
}

// flatten lists the fields of a JSON object by their paths, as
// retry.cap_seconds. Lists, and objects without keys, are values.
func flatten(v any) (map[string]json.RawMessage, error) {
	written, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("compare templates: %w", err)
	}
	decoder := json.NewDecoder(bytes.NewReader(written))
	decoder.UseNumber()
	var tree any
	if err := decoder.Decode(&tree); err != nil {
		return nil, fmt.Errorf("compare templates: %w", err)
	}
	fields := map[string]json.RawMessage{}
	var walk func(path string, v any) error
	walk = func(path string, v any) error {
		if object, is := v.(map[string]any); is && len(object) > 0 {
			for key, held := range object {
				if err := walk(strings.TrimPrefix(path+"."+key, "."), held); err != nil {
					return err
				}
			}
			return nil
		}
		var out bytes.Buffer
		encoder := json.NewEncoder(&out)
		encoder.SetEscapeHTML(false)
		err := encoder.Encode(v)
		fields[path] = bytes.TrimSpace(out.Bytes())
		return err
	}
	return fields, walk("", tree)
}

func (d *templateDiff) print(w io.Writer) {
	fprintf(w, "%s → %s\n", d.From, d.To)
	if d.Same {
		fprintf(w, "\nno difference\n")
	} else {
		fprintln(w)
	}
	printFields(w, "", d.Fields)
	for _, s := range d.Added {
		fprintf(w, "+ %s\n", s)
	}
	for _, s := range d.Removed {
		fprintf(w, "- %s\n", s)
	}
	for _, s := range d.Changed {
		fprintf(w, "~ %s\n", s.Step)
		printFields(w, "    ", s.Fields)
	}
	if d.Reordered {
		fprintln(w, "the steps stand in another order")
	}
	if len(d.OpenTasks) > 0 {
		fprintf(w, "\ntasks still to be finished:\n")
		for _, use := range d.OpenTasks {
			fprintf(w, "    %s on %s\n", plural(int(use.OpenTasks), "task"), use.Version)
		}
	}
}

func (s graphStepSummary) String() string {
	if len(s.After) == 0 {
		return fmt.Sprintf("%s (%s)", s.Step, s.Handler)
	}
	return fmt.Sprintf("%s (%s) after: %s", s.Step, s.Handler, listNames(s.After))
}

func printFields(w io.Writer, indent string, fields []fieldChange) {
	for _, f := range fields {
		fprintf(w, "%s%s: %s → %s\n", indent, f.Field, firstOf(string(f.Old), "(none)"), firstOf(string(f.New), "(none)"))
	}
}
