package main

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker/config"
)

func (a *app) configCommand() *cobra.Command {
	c := group(&cobra.Command{Use: "config", Short: "Show, check and make the file of settings"})
	show := &cobra.Command{
		Use: "show", Short: "Show each setting and where its value came from; passwords are hidden", Args: argsExactly(0),
		RunE: func(*cobra.Command, []string) error { return a.showSettings() },
	}
	for i := range config.Settings {
		if s := &config.Settings[i]; s.Flag != "" && !slices.Contains(globalSettings, s.Key) {
			a.settingFlags(show.Flags(), s.Key)
		}
	}
	withoutSettings := func(*cobra.Command, []string) error { return a.check() } // the file is what it is about
	validate := &cobra.Command{
		Use: "validate [FILE]", Short: "Check a file of settings (default " + config.File + "), without the environment and flags",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return &usageError{fmt.Errorf("one file at a time: %s", c.UseLine())}
			}
			return nil
		},
		PersistentPreRunE: withoutSettings,
		RunE: func(_ *cobra.Command, args []string) error {
			file := firstOf(append(args, a.configFile, a.sources().Getenv(config.FileVariable), config.File)...)
			switch err := config.Validate(file); {
			case errors.Is(err, fs.ErrNotExist):
				return &usageError{fmt.Errorf("there is no file %s; name one, or make one: tasker config init > %s", file, config.File)}
			case err != nil:
				return err
			}
			if a.output == "json" {
				return a.printJSON(map[string]any{"file": file, "valid": true})
			}
			fprintf(a.stdout, "valid  %s\n", file)
			return nil
		},
	}
	sample := &cobra.Command{
		Use: "init", Short: "Print a file of settings: all of them, at their defaults, with the reasons", Args: argsExactly(0),
		Example:           "  tasker config init > " + config.File,
		PersistentPreRunE: withoutSettings,
		RunE: func(*cobra.Command, []string) error {
			fprintf(a.stdout, "%s", styled(config.Sample()))
			return nil
		},
	}
	c.AddCommand(show, validate, sample)
	return c
}

func (a *app) showSettings() error {
	type line struct {
		Key     string `json:"key"`
		Value   string `json:"value"`
		Source  string `json:"source"` // default, file, environment, flag
		Place   string `json:"place,omitempty"`
		Default string `json:"default"`
		Live    bool   `json:"reloaded_on_sighup"`
	}
	var lines []line
	var t table
	t.add("setting", "value", "from")
	for i := range config.Settings {
		s := &config.Settings[i]
		origin := a.settings.Origin(s.Key)
		l := line{s.Key, a.settings.Shown(s), origin.Source, origin.Place, s.Default, s.Live}
		lines = append(lines, l)
		t.add(l.Key, firstOf(l.Value, "-"), origin.String())
	}
	if a.output == "json" {
		return a.printJSON(lines)
	}
	t.print(a.stdout)
	return nil
}
