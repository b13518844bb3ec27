package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker/store"
)

var gateScopes = []string{"template", "handler", "queue", "key"}

func (a *app) gateCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use: "gate", Short: "Limit, pause and resume templates, handlers, queues and limit keys, across all workers",
		Long: `A gate stands before the attempts of a template (NAMESPACE/NAME), of a handler (a
Ruby class or the name of a Go handler), of a Sidekiq queue, or of a limit_key that
steps name in their template. It limits how many attempts are out at once and how
many start per second, or lets none start at all. Attempts that are out when it is
set may end.`,
		Example: `  tasker gate limit handler Billing::Charge --concurrency 5
  tasker gate limit key bank --rate 10
  tasker gate pause queue payments --reason 'the bank is down'`,
	})
	var l store.Limit
	var concurrency int
	var rate, burst float64
	limit := a.gateVerb("limit", "Set the limits of a gate; those that are not given are lifted, as `gate limit handler X` lifts all",
		func(c *cobra.Command, s *store.Store, key store.GateKey, by store.Operator) (string, error) {
			l = store.Limit{}
			var words []string
			if c.Flags().Changed("concurrency") {
				l.MaxAttempts = &concurrency
				words = append(words, fmt.Sprintf("%d attempts out at once", concurrency))
			}
			if c.Flags().Changed("rate") {
				l.PerSecond = &rate
				words = append(words, fmt.Sprintf("%v attempts per second", rate))
			}
			if c.Flags().Changed("burst") {
				l.Burst = &burst
			}
			if len(words) == 0 {
				words = []string{"no limit"}
			}
			return "has " + strings.Join(words, ", "), s.SetLimit(c.Context(), key, l, by)
		})
	limit.Flags().IntVar(&concurrency, "concurrency", 0, "attempts that may be out at once, from 1")
	limit.Flags().Float64Var(&rate, "rate", 0, "attempts that may start per second, above 0")
	limit.Flags().Float64Var(&burst, "burst", 0, "attempts that may start at once after a lull (default: a tenth of a second's worth, at least 1)")
	c.AddCommand(a.gateListCommand(), limit,
		a.gateVerb("pause", "Let nothing start behind a gate, from now on", func(c *cobra.Command, s *store.Store, key store.GateKey, by store.Operator) (string, error) {
			return "is paused", s.Pause(c.Context(), key, by)
		}),
		a.gateVerb("resume", "End a pause", func(c *cobra.Command, s *store.Store, key store.GateKey, by store.Operator) (string, error) {
			return "goes on", s.Resume(c.Context(), key, by)
		}))
	return c
}

func (a *app) gateVerb(name, short string, do func(*cobra.Command, *store.Store, store.GateKey, store.Operator) (string, error)) *cobra.Command {
	c := &cobra.Command{
		Use: name + " template|handler|queue|key NAME", Short: short, Args: argsExactly(2),
		RunE: func(c *cobra.Command, args []string) error {
			key := store.GateKey{Scope: args[0], Name: args[1]}
			if !slices.Contains(gateScopes, key.Scope) {
				return &usageError{fmt.Errorf("%q is nothing that has a gate; there are gates of a template, handler, queue or key: %s", key.Scope, c.UseLine())}
			}
			by := operatorOf(c)
			return a.withStore(c.Context(), func(s *store.Store) error {
				done, err := do(c, s, key, by)
				if err != nil {
					return err
				}
				if a.output == "json" {
					return a.printJSON(map[string]string{"scope": key.Scope, "name": key.Name, "done": name, "by": by.Name})
				}
				fprintf(a.stdout, "%s %s %s\n", key.Scope, key.Name, done)
				return nil
			})
		},
	}
	operatorFlags(c)
	return c
}

func (a *app) gateListCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "list", Short: "List limits and pauses, with what is out and waits", Args: argsExactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withStore(c.Context(), func(s *store.Store) error { return a.listGates(c.Context(), s, all) })
		},
	}
	c.Flags().BoolVar(&all, "all", false, "also those that have been lifted")
	return c
}

func (a *app) listGates(ctx context.Context, s *store.Store, all bool) error {
	gates, err := s.Gates(ctx)
	if err != nil {
		return err
	}
	gates = slices.DeleteFunc(gates, func(g store.Gate) bool { return !all && !g.Set() && g.Waiting == 0 })
	if a.output == "json" {
		return a.printJSON(append([]store.Gate{}, gates...))
	}
	if len(gates) == 0 {
		fprintln(a.stdout, "no limit is set, and nothing is paused")
		return nil
	}
	var t table
	t.add("scope", "name", "attempts", "out", "per second", "state", "in line", "since", "by", "reason")
	for i := range gates {
		g := &gates[i]
		state := "open"
		if g.PausedAt != nil {
			state = "paused"
		}
		t.add(g.Scope, g.Name, orDash(g.MaxAttempts), strconv.Itoa(g.Out), orDash(g.PerSecond), state, strconv.Itoa(g.Waiting),
			moment(g.ChangedAt), orDash(g.ChangedBy), orDash(g.Reason))
	}
	t.print(a.stdout)
	return nil
}

func orDash[T any](v *T) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprint(*v)
}
