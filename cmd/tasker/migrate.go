package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker/migrations"
)

func (a *app) migrateCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "migrate",
		Short: "Bring the database's schema up to this release, take it back, or show where it is",
		Long: `Everything lives in the schema "tasker": River's tables and tasker's own.
Any number of machines may migrate at once: one works, the others wait for it.`,
	})
	var dryRun bool
	up := &cobra.Command{
		Use: "up", Short: "Apply what is missing", Args: argsExactly(0),
		RunE: func(c *cobra.Command, _ []string) error { return a.migrateUp(c, dryRun) },
	}
	up.Flags().BoolVar(&dryRun, "dry-run", false, "print the SQL instead of running it")

	var all, yes bool
	var steps int
	down := &cobra.Command{
		Use: "down", Short: "Take migrations back, the last one first", Args: argsExactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case all && c.Flags().Changed("steps"):
				return &usageError{errors.New("--steps or --all, not both")}
			case steps < 1:
				return &usageError{fmt.Errorf("--steps is a number from 1, not %d", steps)}
			case !yes:
				return &usageError{errors.New("taking migrations back deletes what is in their tables; add --yes if that is meant")}
			}
			pool, err := a.server(c.Context())
			if err != nil {
				return err
			}
			defer pool.Close()
			undone, err := migrations.Down(c.Context(), pool, steps, all)
			if a.output == "json" && err == nil {
				return a.printJSON(map[string]any{"taken_back": versions(undone), "all": all})
			}
			for _, m := range undone {
				fprintf(a.stdout, "took back %04d %s\n", m.Version, m.Name)
			}
			if err == nil && len(undone) == 0 && !all {
				fprintln(a.stdout, "there is nothing to take back")
			}
			if err == nil && all {
				fprintf(a.stdout, "schema %s is gone, River's tables with it\n", migrations.Schema)
			}
			return err
		},
	}
	down.Flags().BoolVar(&all, "all", false, "remove everything: River's tables, every task, the schema itself")
	down.Flags().BoolVar(&yes, "yes", false, "do it: data is deleted")
	down.Flags().IntVar(&steps, "steps", 1, "how many migrations to take back")

	status := &cobra.Command{
		Use: "status", Short: "Show what is applied and what is missing", Args: argsExactly(0),
		RunE: func(c *cobra.Command, _ []string) error { return a.migrateStatus(c) },
	}
	var printRoles bool
	roles := &cobra.Command{
		Use: "roles", Short: "Create the roles for apps, workers, operators and readers, and give them their rights", Args: argsExactly(0),
		Long: `Creates tasker_app, tasker_worker, tasker_operator and tasker_reader, which nobody
logs in as, and gives each what it needs and no more: SECURITY.md says what. Grant
them to the users of your database:

  GRANT tasker_app TO shop;            -- Rails, and its Sidekiq
  GRANT tasker_worker TO tasker;       -- tasker worker
  GRANT tasker_operator TO ada;        -- a person with the command line
  GRANT tasker_reader TO dashboard;

It takes the schema's owner with the right to create roles. Run again it changes
nothing. From then on migrate up keeps the rights current.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if printRoles {
				_, err := fprintf(a.stdout, "%s", styled(migrations.RolesSQL()))
				return err
			}
			pool, err := a.server(c.Context())
			if err != nil {
				return err
			}
			defer pool.Close()
			if err := migrations.Roles(c.Context(), pool); err != nil {
				return err
			}
			if a.output == "json" {
				return a.printJSON(map[string][]string{"roles": {"tasker_app", "tasker_operator", "tasker_reader", "tasker_worker"}})
			}
			_, err = fprintln(a.stdout, "roles tasker_app, tasker_operator, tasker_reader and tasker_worker have their rights; grant them to your users")
			return err
		},
	}
	roles.Flags().BoolVar(&printRoles, "dry-run", false, "print the SQL instead of running it")
	c.AddCommand(up, down, status, roles)
	return c
}

// some is the list, never null: scripts ask for its length.
func some(list []int) []int {
	if list == nil {
		return []int{}
	}
	return list
}

func versions(list []migrations.Migration) []int {
	numbers := make([]int, len(list))
	for i, m := range list {
		numbers[i] = m.Version
	}
	return numbers
}

func (a *app) migrateUp(c *cobra.Command, dryRun bool) error {
	pool, err := a.server(c.Context())
	if err != nil {
		return err
	}
	defer pool.Close()
	if dryRun {
		sql, err := migrations.DryRun(c.Context(), pool)
		if err != nil {
			return err
		}
		if a.output == "json" {
			return a.printJSON(map[string]string{"sql": sql})
		}
		if sql == "" {
			sql = "-- nothing to do: the schema is current\n"
		}
		_, err = fprintf(a.stdout, "%s", styled(sql))
		return err
	}
	before, err := migrations.ReadStatus(c.Context(), pool)
	if err != nil {
		return err
	}
	if err := migrations.Up(c.Context(), pool); err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(map[string]any{"applied": some(before.Pending), "river": migrations.RiverVersion, "current": true})
	}
	if before.Current() {
		fprintln(a.stdout, "the schema is current")
		return nil
	}
	if before.River < migrations.RiverVersion {
		fprintf(a.stdout, "River's schema is at version %d\n", migrations.RiverVersion)
	}
	for _, m := range migrations.All() {
		for _, version := range before.Pending {
			if m.Version == version {
				fprintf(a.stdout, "applied %04d %s\n", m.Version, m.Name)
			}
		}
	}
	return nil
}

func (a *app) migrateStatus(c *cobra.Command) error {
	pool, err := a.server(c.Context())
	if err != nil {
		return err
	}
	defer pool.Close()
	status, err := migrations.ReadStatus(c.Context(), pool)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(map[string]any{
			"river": status.River, "river_target": status.RiverTarget, "applied": some(status.Applied), "pending": some(status.Pending),
			"unknown_newer": some(status.UnknownNewer), "current": status.Current(),
		})
	}
	var t table
	t.add("migration", "state")
	state := "applied"
	switch {
	case status.River < status.RiverTarget:
		state = fmt.Sprintf("at version %d, missing up to %d", status.River, status.RiverTarget)
	case status.River > status.RiverTarget:
		state = fmt.Sprintf("at version %d, newer than this binary (%d)", status.River, status.RiverTarget)
	}
	t.add("River", state)
	pending := map[int]bool{}
	for _, v := range status.Pending {
		pending[v] = true
	}
	for _, m := range migrations.All() {
		state := "applied"
		if pending[m.Version] {
			state = "missing"
		}
		t.add(fmt.Sprintf("%04d %s", m.Version, m.Name), state)
	}
	for _, v := range status.UnknownNewer {
		t.add(fmt.Sprintf("%04d", v), "from a newer release")
	}
	t.print(a.stdout)
	return nil
}
