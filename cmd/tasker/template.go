package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/template"
)

func (a *app) templateCommand() *cobra.Command {
	c := group(&cobra.Command{Use: "template", Short: "Check, register and show workflow templates"})
	load := func(path string) ([]*template.Loaded, error) {
		opts, err := a.templateOptions()
		if err != nil {
			return nil, err
		}
		return template.Load(path, opts)
	}
	validate := &cobra.Command{
		Use: "validate FOLDER|FILE", Short: "Check the templates of a folder, or one file, without a database", Args: argsExactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			loaded, err := load(args[0])
			if err != nil {
				return err
			}
			return a.printLoaded(loaded, func(l *template.Loaded) (string, error) { return "valid", nil })
		},
	}
	var dryRun bool
	register := &cobra.Command{
		Use: "register FOLDER|FILE", Short: "Put the templates of a folder, or of one file, into the database", Args: argsExactly(1),
		Long: `A version that tasks have used can't change: give the template a new version.
Workers register the folder given to them with --templates when they start; what is
refused then is logged, and the version that is registered is served. --dry-run, in CI,
finds that out before.`,
		RunE: func(c *cobra.Command, args []string) error {
			loaded, err := load(args[0])
			if err != nil {
				return err
			}
			return a.withStore(c.Context(), func(s *store.Store) error {
				return a.printLoaded(loaded, func(l *template.Loaded) (string, error) {
					register := s.RegisterTemplate
					if dryRun {
						register = s.TryTemplate
					}
					done, err := register(c.Context(), l.Template, template.Checksum(l.Template))
					if err != nil {
						return "", fmt.Errorf("%s: %w", l.File, err)
					}
					if dryRun && done != store.Unchanged {
						return "would be " + string(done), nil
					}
					return string(done), nil
				})
			})
		},
	}
	register.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	for _, c := range []*cobra.Command{validate, register} {
		a.settingFlags(c.Flags(), readingSettings...)
	}
	list := &cobra.Command{
		Use: "list", Short: "List the registered templates", Args: argsExactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withStore(c.Context(), func(s *store.Store) error {
				templates, err := s.Templates(c.Context())
				if err != nil {
					return err
				}
				if a.output == "json" {
					return a.printJSON(templates)
				}
				var t table
				t.add("template", "version", "steps", "used", "description")
				for _, x := range templates {
					used := "no"
					if x.UsedAt != nil {
						used = "since " + x.UsedAt.Local().Format("2006-01-02 15:04")
					}
					t.add(x.Namespace+"/"+x.Name, x.Version, fmt.Sprint(x.Steps), used, x.Description)
				}
				t.print(a.stdout)
				return nil
			})
		},
	}
	show := &cobra.Command{
		Use: "show NAMESPACE/NAME[@VERSION]", Short: "Show a registered template, by default the latest version", Args: argsExactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			namespace, name, version, err := parseName(args[0])
			if err != nil {
				return err
			}
			return a.withStore(c.Context(), func(s *store.Store) error {
				t, err := s.FindTemplate(c.Context(), namespace, name, version)
				if err != nil {
					return err
				}
				return a.printTemplate(t)
			})
		},
	}
	c.AddCommand(validate, register, list, show, a.graphCommand(), a.diffCommand())
	return c
}

// parseName takes namespace/name@version apart; the namespace may be left out.
func parseName(full string) (namespace, name, version string, err error) {
	namespace = "default"
	name, version, _ = strings.Cut(full, "@")
	if before, after, found := strings.Cut(name, "/"); found {
		namespace, name = before, after
	}
	if namespace == "" || name == "" {
		return "", "", "", &usageError{fmt.Errorf("%q is no template name: it looks like billing/settle_invoice or billing/settle_invoice@1.2.0", full)}
	}
	return namespace, name, version, nil
}

func (a *app) printLoaded(loaded []*template.Loaded, do func(*template.Loaded) (string, error)) error {
	type line struct {
		Template string `json:"template"`
		File     string `json:"file"`
		Steps    int    `json:"steps"`
		Result   string `json:"result"`
	}
	var lines []line
	var failed error
	for _, l := range loaded {
		result, err := do(l)
		if err != nil {
			failed = err
			break
		}
		lines = append(lines, line{l.Template.FullName(), l.File, len(l.Template.Steps), result})
	}
	if a.output == "json" {
		if err := a.printJSON(lines); err != nil {
			return err
		}
		return failed
	}
	for _, l := range lines {
		fprintf(a.stdout, "%s  %s  (%d steps, %s)\n", l.Result, l.Template, l.Steps, l.File)
	}
	return failed
}

func (a *app) printTemplate(t *tasker.Template) error {
	if a.output == "json" {
		return a.printJSON(t)
	}
	fprintf(a.stdout, "%s\n", t.FullName())
	if t.Description != "" {
		fprintf(a.stdout, "%s\n", t.Description)
	}
	fprintf(a.stdout, "up to %d steps at once\n\n", t.MaxParallelSteps)
	var out table
	out.add("step", "handler", "after", "attempts", "backoff", "queue")
	for i := range t.Steps {
		s := &t.Steps[i]
		queue := s.Queue
		if s.HandlerClass != "" && queue == "" {
			queue = "default"
		}
		out.add(s.Name, s.HandlerClass+s.Handler, firstOf(strings.Join(s.DependsOn, ", "), "-"), fmt.Sprint(s.AttemptLimit()),
			fmt.Sprintf("%s from %gs to %gs", s.Retry.Backoff, s.Retry.Base, s.Retry.Cap), firstOf(queue, "-"))
	}
	out.print(a.stdout)
	for i := range t.Steps {
		if c := t.Steps[i].HandlerConfig; len(c) > 0 && string(c) != "{}" && string(c) != "null" {
			var config any
			if yaml.Unmarshal(c, &config) == nil { // JSON is YAML, and YAML reads better here
				text, err := yaml.Marshal(config)
				if err != nil {
					return fmt.Errorf("print handler_config of %s: %w", t.Steps[i].Name, err)
				}
				fprintf(a.stdout, "\nhandler_config of %s:\n  %s", t.Steps[i].Name, indented(strings.TrimSpace(string(text))))
				fprintln(a.stdout)
			}
		}
	}
	return nil
}

// knownTemplate is an error that wraps store.ErrNotFound where no template is registered that
// has the namespace and the name, so that an empty answer is one. An empty word fits all.
func knownTemplate(ctx context.Context, s *store.Store, namespace, name string) error {
	if namespace == "" && name == "" {
		return nil
	}
	list, err := s.Templates(ctx)
	if err != nil {
		return err
	}
	var namespaces, names []string
	for i := range list {
		here := namespace == "" || list[i].Namespace == namespace
		if here && (name == "" || list[i].Name == name) {
			return nil
		}
		namespaces = append(namespaces, list[i].Namespace)
		if here {
			names = append(names, list[i].Name)
		}
	}
	if len(names) == 0 {
		return fmt.Errorf("no template is registered in namespace %s: %w%s", namespace, store.ErrNotFound, template.DidYouMean(namespace, namespaces))
	}
	where := ""
	if namespace != "" {
		where = namespace + "/"
	}
	return fmt.Errorf("no template %s%s is registered: %w%s", where, name, store.ErrNotFound, template.DidYouMean(name, names))
}
